"""`read_logs`: which reader a path is for, by a table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fledge.errors import FledgeError
from fledge.training_log import fledge_run, huggingface, llama_factory, tensorboard, wandb_file
from fledge.training_log.assemble import settings_notes, with_kind
from fledge.training_log.axis import RESUME
from fledge.training_log.derive import derived
from fledge.training_log.given import Given, GivenError, no_stage
from fledge.training_log.names import own_name
from fledge.training_log.plain_text import read_plain_text
from fledge.training_log.records import Series, TrainingLog, TrainingSettings
from fledge.training_log.setting_names import CHOSEN_SECTION
from fledge.training_log.tables import (
    delimiter_of,
    looks_like_json,
    looks_like_json_lines,
    read_csv,
    read_json_document,
    read_json_lines,
)
from fledge.training_log.text_file import LOG_HINT, read_text


@dataclass(frozen=True)
class Reader:
    """A kind of log. `recognises` looks at a path; `read` returns its logs, one for each stage. An entry of a table."""

    name: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path, Given], list[TrainingLog]]


def _read_fledge(target: Path, given: Given) -> list[TrainingLog]:
    folders = [folder for folder in fledge_run.stage_folders(target) if (folder / fledge_run.EVENTS).is_file()]
    if not folders:
        raise FledgeError("no stage of this run has begun to train", where=str(target))
    chosen = given.stages([folder.name for folder in folders], target)
    return [_renamed(fledge_run.read_stage(folder), given) for folder in folders if folder.name in chosen]


def _renamed(log: TrainingLog, given: Given) -> TrainingLog:
    """The log with figures under other names, as the user says: name → series."""
    settings = given.settings(log.stage)
    if settings.known() or settings.other:
        log = with_settings(log, settings)
    if not given.columns:
        return log
    missing = [raw for raw in given.columns.values() if raw not in log.series]
    if missing:
        raise GivenError(
            f"there is no figure '{missing[0]}'", where=log.path, hint=f"figures: {', '.join(sorted(log.series)[:20])}"
        )
    return replace(log, series={**log.series, **{own_name(name): log.series[raw] for name, raw in given.columns.items()}})


def _read_state(target: Path, given: Given) -> list[TrainingLog]:
    file = huggingface.state_file(target)
    assert file is not None
    return huggingface.read_trainer_state(file, given)


def _read_llama_factory(target: Path, given: Given) -> list[TrainingLog]:
    file = llama_factory.log_file(target)
    assert file is not None
    return llama_factory.read_trainer_log(file, given)


def _is_event_file(target: Path) -> bool:
    return ".tfevents." in target.name if target.is_file() else any(target.rglob(tensorboard.PATTERN))


def _is_text(test: Callable[[str], bool]) -> Callable[[Path], bool]:
    return lambda target: target.is_file() and test(read_text(target))


READERS: tuple[Reader, ...] = (
    Reader("run of fledge", lambda target: bool(fledge_run.stage_folders(target)), _read_fledge),
    Reader(
        "Hugging Face trainer_state.json",
        lambda target: target.name.endswith(huggingface.STATE) if target.is_file() else (target / huggingface.STATE).is_file(),
        _read_state,
    ),
    Reader("LLaMA-Factory trainer_log.jsonl", lambda target: llama_factory.log_file(target) is not None, _read_llama_factory),
    Reader("checkpoints of Hugging Face", lambda target: huggingface.state_file(target) is not None, _read_state),
    Reader("Weights & Biases offline run", lambda target: bool(wandb_file.wandb_files(target)), wandb_file.read_wandb),
    Reader("TensorBoard event files", _is_event_file, tensorboard.read_tensorboard),
    Reader("JSON lines", _is_text(looks_like_json_lines), read_json_lines),
    Reader("JSON", _is_text(looks_like_json), read_json_document),
    Reader("CSV", _is_text(lambda text: delimiter_of(text) is not None), read_csv),
    Reader("text log", Path.is_file, read_plain_text),
)
"""The kinds of logs, in the order in which they are tried: the first that recognises a path reads it."""
LOG_FILES = ("*.jsonl", "*.csv", "*.tsv", "*.log", "*.log.gz", "*.out", "*.txt")
"""Files that may be the log of a folder that is of no other kind."""


def read_logs(
    target: Path,
    *,
    columns: Mapping[str, str] | None = None,
    stage: str | None = None,
    settings: TrainingSettings | Callable[[str], TrainingSettings] | None = None,
) -> list[TrainingLog]:
    """The logs at a path, one for each stage, in order.

    `columns`: name of a figure in fledge → column of the log, such as `{"train/loss": "my_col"}`, where a guess is wrong or
    none is made; `step` and `epoch` name counts. `stage`: only this one; where a log has no stages, the section of its
    settings. `settings`: of a configuration, put over those of the log; they tell what its steps count; or what gives them for
    the name of a stage, which is empty for a log without stages. Raises FledgeError if nothing is there, nothing is recognised,
    or there is no such stage and no such section.
    """
    if not target.exists():
        raise FledgeError("there is no such file or folder", where=str(target), hint=LOG_HINT)
    of_stage = settings if callable(settings) else lambda name: settings or TrainingSettings()
    return _read(target, Given(columns or {}, of_stage, stage))


def _read(target: Path, given: Given) -> list[TrainingLog]:
    reader = next((one for one in READERS if one.recognises(target)), None)
    if reader is None:
        return _read_folder(target, given)
    logs = reader.read(target, given)
    stage = given.stage
    if stage is None or any(log.settings.other.get(CHOSEN_SECTION) for log in logs):
        return logs
    chosen = [log for log in logs if log.stage == stage]
    if not chosen:
        raise no_stage(stage, [log.stage for log in logs], str(target))
    return chosen


def _read_folder(target: Path, given: Given) -> list[TrainingLog]:
    """The log of a folder that is of no known kind: its only file that is a log."""
    files = sorted({file for pattern in LOG_FILES for file in target.glob(pattern) if file.is_file()})
    given.settings("")  # an error in a configuration is told, and not taken for one in a file that is no log
    found: dict[Path, list[TrainingLog]] = {}
    unfit: list[GivenError] = []
    for file in files:
        try:
            found[file] = _read(file, given)
        except GivenError as error:
            unfit += [error] if _is_log(file) else []
        except FledgeError:
            continue
    if len(found) == 1:
        return next(iter(found.values()))
    if not found and unfit:
        raise unfit[0]
    if found:
        names = ", ".join(file.name for file in found)
        raise FledgeError("this folder holds several logs", where=str(target), hint=f"name one of them: {names}")
    held = ", ".join(sorted(item.name for item in target.iterdir())[:8]) or "nothing"
    raise FledgeError(f"no log of a training run is in this folder; it holds {held}", where=str(target), hint=LOG_HINT)


def _is_log(file: Path) -> bool:
    """Whether a file is a log, whatever a user says about it."""
    try:
        return bool(_read(file, Given()))
    except FledgeError:
        return False


def with_settings(log: TrainingLog, settings: TrainingSettings) -> TrainingLog:
    """The log with settings that were given beside it put over its own. Steps that count micro-batches become updates where
    the accumulation is known now."""
    merged = derived(log.settings.updated(settings))
    log = replace(log, settings=merged, notes=tuple(dict.fromkeys((*log.notes, *settings_notes(merged)))))
    accumulation = merged.accumulation_steps
    if log.step_unit == "micro-batch" and accumulation:
        series = {name: Series(one.steps / accumulation, one.values) for name, one in log.series.items()}
        events = tuple({**one, "step": one["step"] / accumulation} if one["kind"] == RESUME else one for one in log.events)
        note = f"Its steps count micro-batches: they are divided by {accumulation:g} accumulation steps."
        log = replace(log, series=series, events=events, step_unit="update", notes=(*log.notes, note))
    return with_kind(log)
