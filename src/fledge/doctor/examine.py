"""One examination: from a target to a case for each stage, its figures as deep as asked, and what they mean."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fledge.diagnosis import Case, Diagnoses
from fledge.diagnosis.case import Figure
from fledge.diagnosis.diagnose import diagnose
from fledge.diagnosis.measures import CHECKPOINT, MEASURES
from fledge.doctor.examination import Examination
from fledge.doctor.given_words import WORDS, loss_of_kind, word_meant
from fledge.doctor.known_trainers import known_trainer
from fledge.doctor.options import DATA_SAMPLE, PROBE_SECONDS, QUICK_SAMPLE, QUICK_SECONDS, DoctorOptions, ExaminationDepth
from fledge.doctor.target import Target, find_target, started_from
from fledge.errors import FledgeError, first_line
from fledge.training_log import TrainingLog, TrainingSettings, read_logs, read_settings

if TYPE_CHECKING:
    from fledge.recipe import Recipe

NUMBERS = frozenset(one.name for one in fields(TrainingSettings) if one.type in ("float | None", float | None))
UNKNOWN_CONTEXT = 4096  # tokens of an example, where nobody says at how many the trainer cuts
GIVEN = "given on the command line"


def examine(path: Path, options: DoctorOptions | None = None, log: Callable[[str], None] | None = None) -> list[Examination]:
    """Examine a run of fledge or a log of another trainer: one examination for each stage, in their order.

    `log` is told what is being done. Raises FledgeError if there is nothing to read, or if a file that was named is no such
    file.
    """
    options, log = options or DoctorOptions(), log or (lambda text: None)
    target = find_target(path, options.stage)
    _check_options(options, target)
    began = time.perf_counter()
    logs = read_logs(path, columns=dict(options.columns) or None, stage=target.stage, settings=_beside(options, target))
    _check_found(logs, target)
    _check_start(logs, options)
    reading = (time.perf_counter() - began) / len(logs)
    trainer = None if target.is_run else known_trainer(path, options.config)
    recipe = _recipe(target) if target.is_run else None
    found: list[Examination] = []
    for one in logs:
        completed = one if trainer is None else replace(one, settings=trainer.completes(one.settings))
        examination = Examination(target=target, case=Case(log=completed), diagnoses=NOTHING, trainer=trainer)
        examination.seconds["reading"] = reading
        _measure(examination, options, recipe, log)
        with _timed(examination, "judging"):
            examination.diagnoses = _with_trainer(diagnose(examination.case), examination)
        examination.after = _faulty_start(examination, found)
        found.append(examination)
    return found


NOTHING = Diagnoses(found=(), unexplained=(), missing={})


def _with_trainer(found: Diagnoses, examination: Examination) -> Diagnoses:
    """The diagnoses, with what is wrong with the published code of the trainer behind those that are certain."""
    trainer = examination.trainer
    own = None if trainer is None else trainer.diagnosis(examination.case.settings)
    if own is None:
        return found
    certain = [one for one in found.found if one.sign.finding.confidence == "certain"]
    return replace(found, found=(*certain, own, *(one for one in found.found if one not in certain)))


def _check_options(options: DoctorOptions, target: Target) -> None:
    """FledgeError for files that are not there, and for those that a run of fledge has itself."""
    named = [("--data", file) for file in options.data]
    named += [(name, file) for name, file in (("--tokenizer", options.tokenizer), ("--start", options.start)) if file]
    for name, file in named:
        if target.is_run:
            raise FledgeError("a run of fledge has its own data, tokenizer and start model, which are read",
                              where=name, hint="leave it out; it belongs to logs of other trainers")  # fmt: skip
        if not file.exists():
            raise FledgeError(f"there is no such file or folder: {file}", where=name)


def _check_found(logs: list[TrainingLog], target: Target) -> None:
    if logs:
        return
    if target.stage is not None:
        raise FledgeError(f"there is no log of a stage '{target.stage}'", where=str(target.path), hint="leave --stage out")
    raise FledgeError("no stage of this run has written an event yet", where=str(target.path), hint="wait for its first steps")


def _check_start(logs: list[TrainingLog], options: DoctorOptions) -> None:
    """FledgeError if there is no model to compare with the one that a run of another trainer started from."""
    if options.start is not None and not any(_model_directory(Path(one.path)) for one in logs):
        hint = "leave it out, or put config.json and the weights (safetensors) beside the log"
        raise FledgeError("no model lies beside this log, to be compared with that one", where="--start", hint=hint)


def _recipe(target: Target) -> "Recipe | None":
    """The recipe of a run; None where it cannot be read, such as that of an earlier version: its curves can still be judged."""
    from fledge.recipe import load_recipe

    assert target.run is not None
    try:
        return load_recipe([str(target.run / "recipe.yaml")])
    except FledgeError:
        return None


def _beside(options: DoctorOptions, target: Target) -> Callable[[str], TrainingSettings]:
    """Name of a stage → the settings of the file that was named, with what was given by hand put over them. For a log without
    stages, --stage names a section of the file."""
    by_hand = given_settings(options.given)

    @cache
    def of_stage(stage: str) -> TrainingSettings:
        if options.config is None:
            return by_hand
        try:
            found = read_settings(options.config, stage=stage or (None if target.is_run else options.stage))
        except FledgeError:
            if target.is_run or not stage:
                raise
            found = read_settings(options.config)  # runs of other trainers are seldom named like sections of a file
        return found.updated(by_hand)

    return of_stage


def given_settings(given: Any) -> TrainingSettings:
    """Settings that a person gives by name, words in whatever way trainers write them. Raises FledgeError for an unknown name,
    a word that is not known, and a number that is none."""
    values: dict[str, Any] = {}
    for name, text in given.items():
        if name in WORDS:
            values[name] = word_meant(name, text)
        elif name in NUMBERS:
            values[name] = _number(name, text)
        else:
            known = ", ".join(sorted(NUMBERS | WORDS.keys()))
            raise FledgeError(f"'{name}' is no setting that the doctor knows", where="--given", hint=f"these are: {known}")
    if (loss := loss_of_kind(given.get("kind", ""))) is not None:
        values.setdefault("loss_type", loss)
    return TrainingSettings(**values, origin=dict.fromkeys(values, GIVEN))


def _number(name: str, text: str) -> float:
    scale = {"k": 1e3, "M": 1e6, "B": 1e9}.get(text[-1:], 1.0)
    try:
        return float(text[:-1] if scale != 1.0 else text) * scale
    except ValueError:
        raise FledgeError(f"'{text}' is no number", where=f"--given {name}", hint="such as 1e-4, 300 or 26M") from None


@contextmanager
def _timed(examination: Examination, name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    examination.seconds[name] = examination.seconds.get(name, 0.0) + time.perf_counter() - began


def _measure(examination: Examination, options: DoctorOptions, recipe: "Recipe | None", log: Callable[[str], None]) -> None:
    """Measure the figures of the data and of a checkpoint, where they are asked for and can be measured."""
    for depth, measure in MEASURED.items():
        if not options.looks_at(depth):
            examination.left_out[depth] = f"--depth {options.depth} was asked for"
            continue
        began = time.perf_counter()
        try:
            figures, left_out = measure(examination, options, recipe)
        except FledgeError as error:
            figures, left_out = {}, {depth: error.what}
        except Exception as error:  # whatever it is: one depth less, and not the end of the examination
            figures, left_out = {}, {depth: f"this failed: {type(error).__name__}: {first_line(error)}"}
        examination.case.figures.update(figures)
        examination.left_out.update(left_out)
        if figures:
            seconds = examination.seconds[depth] = time.perf_counter() - began
            name = examination.stage or examination.case.log.source
            log(f"{name}: {len(figures)} figures of {depth} in {seconds:.1f} s")


Measured = tuple[dict[str, Figure], dict[str, str]]


def _data_figures(examination: Examination, options: DoctorOptions, recipe: "Recipe | None") -> Measured:
    """Figures of the training data: of the stage's built data, or of the files that were named."""
    sample, target = QUICK_SAMPLE if options.quick else DATA_SAMPLE, examination.target
    if not target.is_run and (not options.data or options.tokenizer is None):
        raise FledgeError(f"it needs {MEASURES['data/examples'].needs}")
    from fledge.doctor.data_figures import data_figures, data_figures_of_files

    if target.is_run:
        if recipe is None:
            raise FledgeError("the recipe of this run cannot be read")
        return data_figures(target.stage_directory(examination.stage), recipe, sample=sample), {}
    assert options.tokenizer is not None
    settings = examination.case.settings
    context = UNKNOWN_CONTEXT if settings.context is None else int(settings.context)
    figures = data_figures_of_files(list(options.data), options.tokenizer, settings.kind, context, sample=sample)
    if settings.context is not None or figures.pop("data/truncated_share", None) is None:
        return figures, {}
    return figures, {"data/truncated_share": "the context is not known: --given context=512"}


def _probe_figures(examination: Examination, options: DoctorOptions, recipe: "Recipe | None") -> Measured:
    """Figures of probes: of the newest checkpoint of a stage, or of its start weights before the first one; of another
    trainer's model directory."""
    target, deadline = examination.target, QUICK_SECONDS if options.quick else PROBE_SECONDS
    model = _model_directory(Path(examination.case.log.path)) if target.run is None else None
    if target.run is None and model is None:
        raise FledgeError(f"it needs {CHECKPOINT}")
    from fledge.doctor.probes import probe_directory, probe_run

    if target.run is not None:
        report = probe_run(target.run, examination.stage, deadline_seconds=deadline)
        examination.case.probed_step = report.step
        return report.figures, report.left_out
    assert model is not None
    settings = examination.case.settings
    report = probe_directory(
        model,
        files=options.data,
        tokenizer=options.tokenizer,
        start=options.start,
        kind=settings.kind,
        max_seq_len=None if settings.context is None else int(settings.context),
        deadline_seconds=deadline,
    )
    return report.figures, report.left_out


def _model_directory(log: Path) -> Path | None:
    """The folder of the model beside a log of another trainer; None if there is none with weights that are no pickle."""
    folder = log if log.is_dir() else log.parent
    has_model = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    return folder if has_model else None


MEASURED: dict[ExaminationDepth, Callable[[Examination, DoctorOptions, "Recipe | None"], Measured]] = {
    "data": _data_figures,
    "probes": _probe_figures,
}
"""Depth of an examination beyond the log → what measures its figures; raises FledgeError with the reason where it cannot."""


def _faulty_start(examination: Examination, earlier: list[Examination]) -> str | None:
    """The earlier stage that this one started from, if something is wrong with it or with what it started from."""
    if not examination.target.is_run:
        return None
    start = started_from(examination.target.stage_directory(examination.stage))
    source = next((one for one in earlier if one.stage == start), None)
    if source is None:
        return None
    return source.stage if not source.is_healthy else source.after
