"""Judging of stored runs: the doctor's diagnoses from logs and figures, without training again."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fledge.diagnosis.case import Case
from fledge.diagnosis.cause import Diagnoses
from fledge.diagnosis.diagnose import diagnose
from fledge.diagnosis.symptoms import SYMPTOMS
from fledge.doctor_bench.case_key import CaseKey
from fledge.doctor_bench.records import CaseRecord, Figures, plain
from fledge.errors import FledgeError
from fledge.training_log import TrainingLog
from fledge.training_log.read import read_logs

PREFIXES = (10, 20, 40, 80, 160)  # steps of a log that was read while the run went on
SURE = ("certain", "likely")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the doctor says about a case at one moment, in short.

    `is_alarm`: something is wrong. `causes`: those that were found, the first one first, each with category, confidence, and
    the message. `symptoms`: those that nothing explains. `seen`: the names of all, explained or not.
    """

    is_alarm: bool
    causes: tuple[Mapping[str, Any], ...] = ()
    symptoms: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()

    @property
    def first(self) -> Mapping[str, Any] | None:
        """The cause that is named: the first one that is at least likely; None: the doctor abstains."""
        return next((cause for cause in self.causes if cause["confidence"] in SURE), None)

    @classmethod
    def of(cls, found: Diagnoses) -> "Verdict":
        """The verdict of diagnoses."""
        causes = tuple(
            {
                "cause": one.cause,
                "category": one.category,
                "confidence": one.sign.finding.confidence,
                "severity": one.sign.finding.severity,
                "strength": round(one.sign.strength, 3),
                "message": one.sign.finding.message,
            }
            for one in found.found
        )
        symptoms = tuple(finding.check for finding in found.unexplained if finding.severity != "info")
        told = {finding.check for one in found.found for finding in one.consequences}
        told |= {finding.check for finding in found.unexplained}
        seen = tuple(one.name for one in SYMPTOMS if one.name in told)
        return cls(is_alarm=not found.is_healthy, causes=causes, symptoms=symptoms, seen=seen)


MOMENTS = ("curves", "full", "before", "within 20 steps")
"""`curves`: the log alone; `full`: all figures; `before`: data and start weights, no log; `within 20 steps`: these and the
first 20 steps of the log."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The verdicts on a case by moment. `steps`: steps of the log after which a verdict first was an alarm, 0 for before the
    first step; None: never. `failure`: why it could not be judged."""

    key: str
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    steps: int | None = None
    failure: str | None = None

    @property
    def case(self) -> CaseKey:
        """The key of the case."""
        return CaseKey.parse(self.key)


def judge(folder: Path, record: CaseRecord) -> Judgement:
    """Judge a stored case. What the doctor cannot read or judge is recorded as a failure."""
    if record.failure is not None:
        return Judgement(key=record.key, failure=f"the run: {record.failure}")
    try:
        log = _log(folder, record)
        return _judged(record, log)
    except Exception as error:  # a rule that fails on one case must not hide the others: it is counted
        return Judgement(key=record.key, failure=f"{type(error).__name__}: {error}")


def _judged(record: CaseRecord, log: TrainingLog) -> Judgement:
    data, start = record.figures.get("data", {}), record.figures.get("start", {})
    everything = {**data, **record.figures.get("last", start)}
    verdicts = {"curves": _verdict(log, {}), "full": _verdict(log, everything)}
    if start or record.case.is_fault is False:
        verdicts["before"] = _verdict(_prefix(log, -1), {**data, **start}, 0)
        verdicts["within 20 steps"] = _verdict(_prefix(log, 20), {**data, **start}, 0)
    steps = None
    if verdicts.get("before", _verdict(_prefix(log, -1), data)).is_alarm:
        steps = 0
    elif verdicts["full"].is_alarm:
        ends = _last_step(log)
        early = {**data, **start}
        steps = next((step for step in PREFIXES if step < ends and _verdict(_prefix(log, step), early, 0).is_alarm), ends)
    return Judgement(key=record.key, verdicts=verdicts, steps=steps)


def _verdict(log: TrainingLog, figures: Figures, probed_step: int | None = None) -> Verdict:
    """`probed_step`: see `Case`; 0: the figures of probes are those of the start weights."""
    return Verdict.of(diagnose(Case(log=log, figures=dict(figures), probed_step=probed_step)))


def _log(folder: Path, record: CaseRecord) -> TrainingLog:
    """The log of the case. The message that a run ended with is in it, as a console shows it."""
    stage = folder / record.log
    try:
        (log, *_) = read_logs(stage)
    except FledgeError:
        if record.error is None:
            raise
        log = TrainingLog(source="console", path=str(stage), series={}, stage=record.case.shape)
    if record.error is None:
        return log
    crash = {"kind": "crash", "text": record.error, "step": _last_step(log)}
    return replace(log, events=(*log.events, crash), ended=False)


def _last_step(log: TrainingLog) -> int:
    return int(max((series.steps[-1] for series in log.series.values() if len(series)), default=0))


def _prefix(log: TrainingLog, step: int) -> TrainingLog:
    """The log as it was after a step, with the message of a run that had ended by then; −1: before the first one."""
    series = {name: one.between(float("-inf"), step) for name, one in log.series.items()}
    events = tuple(event for event in log.events if float(event.get("step") or 0) <= step)
    return replace(log, series={name: one for name, one in series.items() if len(one)}, events=events, ended=False)


# -- files --------------------------------------------------------------------------------------------------------------


def write_judgements(file: Path, judgements: list[Judgement]) -> None:
    """Write one line of JSON for each case."""
    lines = [json.dumps(plain(asdict(one)), ensure_ascii=False) for one in judgements]
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
