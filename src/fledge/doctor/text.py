"""An examination in words: what was understood, what was found with its evidence, what to change, and what cannot be told."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from fledge.diagnosis import Diagnosis
from fledge.diagnosis.measures import MEASURES
from fledge.doctor.evidence_series import evidence_series
from fledge.doctor.examination import Examination
from fledge.doctor.levels import levels
from fledge.doctor.lines import Line
from fledge.doctor.sparkline import number, sparkline
from fledge.doctor.synonyms import dialect_of, in_dialect
from fledge.doctor.taken import taken_by_recipe
from fledge.doctor.usual_guesses import usual_guesses
from fledge.findings import Finding

MOST_NAMED = 8  # of figures, settings, notes or causes on one line
MOST_LINES = 12  # of a finding
MOST_FIGURES = 4  # of evidence on a line
SHOWN_SETTINGS = (
    "kind", "initial", "method", "learning_rate", "schedule", "warmup_steps", "steps", "epochs", "rows", "batch_rows",
    "batch_tokens", "micro_batch_rows", "accumulation_steps", "processes", "context", "vocab_size", "hidden_size", "parameters",
    "precision", "optimizer", "max_grad_norm", "beta", "loss_type", "num_generations",
)  # fmt: skip
NOT_IN_LOG = "not in the log"
OF_OTHERS = "hoped for"  # in a note on figures of a document that are not those of the run: told last
DECIDERS = {"data": "data", "probe": "probes"}  # the depth of a measure → the depth of an examination


def text_of(examinations: list[Examination], levels_: str | None = None) -> Iterator[Line]:
    """The lines of all examinations. `levels_`: characters of small plots; None: what standard output can write."""
    for number_, examination in enumerate(examinations):
        if number_:
            yield Line("")
        yield from examination_lines(examination, levels_)


def examination_lines(examination: Examination, levels_: str | None = None) -> Iterator[Line]:
    """The lines of one stage, or of one log."""
    log, found = examination.case.log, examination.diagnoses
    yield Line(f"{log.stage or 'log'}: {log.source}, {log.path}")
    yield from understood_lines(examination)
    if examination.after:
        yield Line(
            f"this stage started from {examination.after}, where something is wrong: mend that first, because it goes on here",
            2, "! ",
        )  # fmt: skip
    yield Line("")
    for place, diagnosis in enumerate(found.found, 1):
        yield from finding_lines(examination, diagnosis, place, levels_)
    yield from unexplained_lines(examination, levels_)
    if not found.found and not found.unexplained:
        yield from healthy_lines(examination)
    yield from guess_lines(examination)
    yield from missing_lines(examination)


def understood_lines(examination: Examination) -> Iterator[Line]:
    """What was read, where settings came from, and what was not read."""
    log = examination.case.log
    yield Line(f"read: {log.records:,} records{_steps(examination)}; {_figures(examination)}", 2)
    if said := _settings(examination):
        yield Line(f"settings: {said}", 2)
    for what, count in list(log.unread.items())[:MOST_NAMED]:
        yield Line(f"not read: {what} ({count:,})", 2)
    notes = sorted(log.notes, key=lambda note: OF_OTHERS in note)
    for note in notes[:MOST_NAMED]:
        yield Line(note, 2, "- ")
    if len(log.notes) > MOST_NAMED:
        yield Line(f"{len(log.notes) - MOST_NAMED} more notes are in --json", 2, "- ")
    for line in levels(examination):
        yield Line(line, 2, "- ")


def _steps(examination: Examination) -> str:
    log = examination.case.log
    ends = [(float(one.steps[0]), float(one.steps[-1])) for one in log.series.values() if len(one)]
    if not ends:
        return ""
    first, last = min(end[0] for end in ends), max(end[1] for end in ends)
    planned = log.settings.steps
    of = f" of {number(planned)} planned" if planned else ""
    state = {True: ", ended", False: ", not ended", None: ""}[log.ended]
    return f", steps {number(first)} to {number(last)}{of}{state}"


def _figures(examination: Examination) -> str:
    names = sorted(examination.case.log.series)
    if not names:
        return "no figure"
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"figures {', '.join(names[:MOST_NAMED])}{more}"


def _settings(examination: Examination) -> str:
    settings = examination.case.settings
    known = settings.known()
    shown = [name for name in SHOWN_SETTINGS if name in known]
    file = f"{examination.case.log.path.rsplit('/', 1)[-1]}: "
    places = dict.fromkeys(settings.origin[name].removeprefix(file) for name in shown if name in settings.origin)
    said = ", ".join(f"{name} {_value(known[name])}" for name in shown)
    return f"{said} (from {', '.join(list(places)[:4])})" if places else said


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float | int):
        return number(float(value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(one)}" for name, one in list(value.items())[:MOST_FIGURES])
    if isinstance(value, list | tuple):
        more = " …" if len(value) > MOST_FIGURES else ""
        return ", ".join(map(_value, value[:MOST_FIGURES])) + more
    return str(value)


def finding_lines(examination: Examination, diagnosis: Diagnosis, place: int, levels_: str | None = None) -> Iterator[Line]:
    """A finding: what, evidence, what else it could be, what to change, how to prove it; its consequences below."""
    sign, finding = diagnosis.sign, diagnosis.sign.finding
    sure = f", {finding.confidence}" if finding.confidence else ""
    yield Line(f"{place}. {diagnosis.cause} ({diagnosis.category}{sure}, {finding.severity})")
    yield Line(finding.message, 3)
    if evidence := _evidence(finding):
        yield Line(f"evidence: {evidence}", 3)
    for name, series in evidence_series(diagnosis, examination.case):
        for row in sparkline(series, name, sign.steps, levels_):
            yield Line(row, 5, verbatim=True)
    for other, decider in list(sign.alternatives.items())[:2]:
        yield Line(f"or: {other}; what decides: {_decider(decider)}", 3)
    if finding.hint:
        yield Line(finding.hint, 3, "→ ")
    yield from patch_lines(examination, finding)
    yield Line(f"proof: {_proof(examination, diagnosis)}", 3)
    if consequences := list(diagnosis.consequences):
        yield Line("what follows from it:", 3)
        for one in consequences[:3]:
            yield Line(one.message, 5, "· ")
        if len(consequences) > 3:
            yield Line(f"{len(consequences) - 3} more are in --json", 5, "· ")
    yield Line("")


def _evidence(finding: Finding) -> str:
    shown = [(name, value) for name, value in finding.evidence.items() if value is not None]
    return ", ".join(f"{name} {_value(value)}" for name, value in shown[:MOST_FIGURES])


def _decider(text: str) -> str:
    """A figure that would decide, with what it is."""
    measure = MEASURES.get(text)
    return f"{text} ({measure.meaning})" if measure else text


def patch_lines(examination: Examination, finding: Finding) -> Iterator[Line]:
    """The change of the settings: for a run of fledge as options and as YAML, as far as its recipe takes it, else in the names
    of its trainer."""
    if not finding.patch:
        return
    if examination.target.is_run:
        taken, left_out = taken_by_recipe(examination, finding.patch)
        if taken:
            yield Line(replace(finding, patch=taken).overrides(), 3, "→ ", verbatim=True)
            yield Line(f"as YAML: {yaml_line(taken)}", 3)
        for key, why in left_out.items():
            yield Line(f"left out: {key}: {why}", 3)
        return
    trainer, ignored = dialect_of(examination.case), examination.trainer
    for line in in_dialect(finding.patch, examination.case):
        yield Line(f"{line} ({trainer})", 3, "→ ", verbatim=True)
    if ignored is not None and any(_ignores(ignored.without_effect, key) for key in finding.patch):
        yield Line(
            f"the published code of {ignored.name} does not use this setting, so that this alone changes nothing", 3, "! "
        )


def _ignores(without_effect: Mapping[str, str], key: str) -> bool:
    return key.rsplit(".", 1)[-1] in without_effect or (key.endswith("warmup") and "warmup_steps" in without_effect)


def yaml_line(patch: Mapping[str, Any]) -> str:
    """A patch as YAML in flow style on one line: `stages: {sft: {optimizer: {learning_rate: 0.0005}}}`."""
    tree: dict[str, Any] = {}
    for key, value in patch.items():
        *sections, last = key.split(".")
        at = tree
        for section in sections:
            at = at.setdefault(section, {})
        at[last] = value
    return ", ".join(f"{name}: {_flow(value)}" for name, value in tree.items())


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_flow(one)}" for name, one in value.items()) + "}"
    return value if isinstance(value, str) and value.replace(" ", "").isalnum() else json.dumps(value, ensure_ascii=False)


def _proof(examination: Examination, diagnosis: Diagnosis) -> str:
    target, patch = examination.target, diagnosis.sign.finding.patch
    if target.run is None or not patch or not taken_by_recipe(examination, patch)[0]:
        return diagnosis.sign.proof or "train again with the change and with nothing else changed, and compare"
    stage = f" --stage {examination.stage}" if examination.stage else ""
    return f"fledge doctor {target.run}{stage} --prove"


def unexplained_lines(examination: Examination, levels_: str | None = None) -> Iterator[Line]:
    """What is seen and has no cause that the figures tell."""
    found = examination.diagnoses
    if not found.unexplained:
        return
    yield Line("seen, and its cause cannot be told from this:")
    for finding in found.unexplained:
        yield Line(finding.message, 3, "· ")
        if evidence := _evidence(finding):
            yield Line(f"evidence: {evidence}", 5)
    loss = examination.case.log.series.get("train/loss")
    if not found.found and loss is not None:
        for row in sparkline(loss, "train/loss", levels=levels_):
            yield Line(row, 5, verbatim=True)
    yield Line("")


def healthy_lines(examination: Examination) -> Iterator[Line]:
    """That nothing wrong was found, and in what."""
    case = examination.case
    looked = [f"{len(case.log.series)} figures of the log"]
    for depth, words in (("plan", "of the plan"), ("data", "of the data"), ("probe", "of probes")):
        count = sum(figure.depth == depth for figure in case.figures.values())
        looked += [f"{count} {words}"] if count else []
    yield Line(f"nothing wrong was found in {', '.join(looked)}")
    yield Line("")


def guess_lines(examination: Examination) -> Iterator[Line]:
    """What people usually change, and what the figures say about it; only where something is wrong."""
    guesses = usual_guesses(examination)
    if not guesses:
        return
    yield Line("what is usually changed first, and what these figures say about it:")
    for guess in guesses:
        yield Line(f"{guess.change}: {guess.verdict}; {guess.reason}", 3, "· ")
    yield Line("")


def summary_lines(examinations: list[Examination]) -> Iterator[Line]:
    """One line for each stage: what is wrong, the root first."""
    for one in examinations:
        name = one.stage or one.case.log.source
        causes = [f"{found.cause} ({found.sign.finding.confidence})" for found in one.diagnoses.found]
        seen = [f"{finding.check} (seen, no cause told)" for finding in one.diagnoses.unexplained]
        yield Line(f"{name}: {', '.join([*causes, *seen]) or 'nothing wrong was found'}")


def seconds_line(examinations: list[Examination]) -> Line:
    """How long it took, by what was done."""
    total: dict[str, float] = {}
    for one in examinations:
        for name, seconds in one.seconds.items():
            total[name] = total.get(name, 0.0) + seconds
    parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in total.items())
    return Line(f"examined in {sum(total.values()):.1f} s: {parts}")


def missing_lines(examination: Examination) -> Iterator[Line]:
    """What cannot be told, and which figure would decide; what was left out, and why."""
    by_need: dict[str, dict[str, list[str]]] = {}
    for name, causes in examination.diagnoses.missing.items():
        measure = MEASURES.get(name)
        reason = examination.left_out.get(name) or (measure and examination.left_out.get(DECIDERS.get(measure.depth, "")))
        need = NOT_IN_LOG
        if measure:
            was_there = any(figure.depth == measure.depth for figure in examination.case.figures.values())
            need = "it does not apply here, or these rows do not tell it" if was_there else f"it needs {measure.needs}"
        by_need.setdefault(str(reason or need), {})[name] = list(causes)
    if not by_need:
        return
    yield Line("not measured, so that these cannot be told:")
    for reason, figures in by_need.items():
        causes = dict.fromkeys(cause for named in figures.values() for cause in named)
        shown = ", ".join(list(causes)[:MOST_NAMED])
        more = f" and {len(causes) - MOST_NAMED} more" if len(causes) > MOST_NAMED else ""
        names = ", ".join(list(figures)[:MOST_NAMED]) + (", …" if len(figures) > MOST_NAMED else "")
        said = f"the log has no {names}" if reason == NOT_IN_LOG else reason
        yield Line(f"{shown}{more}: {said}", 3, "· ")
    yield Line("")
