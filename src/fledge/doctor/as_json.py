"""Examinations as one JSON object."""

import math
from typing import Any

from fledge.diagnosis import Diagnosis, Figure
from fledge.doctor.examination import Examination
from fledge.doctor.levels import levels
from fledge.doctor.taken import taken_by_recipe
from fledge.doctor.usual_guesses import usual_guesses


def as_json(examinations: list[Examination]) -> dict[str, Any]:
    """All that is known: `logs` (what was read of each stage), `findings` and `unexplained` (with their `stage`), `missing`
    (stage → figure → causes), `figures` (stage → name → value, depth, steps, note), `left_out`, `guesses`, `seconds`."""
    return {
        "healthy": all(one.is_healthy for one in examinations),
        "logs": [_log(one) for one in examinations],
        "findings": [_finding(one, found) for one in examinations for found in one.diagnoses.found],
        "unexplained": [
            {"stage": one.stage, **plain(found.as_dict())} for one in examinations for found in one.diagnoses.unexplained
        ],
        "missing": {one.stage: {name: list(causes) for name, causes in one.diagnoses.missing.items()} for one in examinations},
        "figures": {one.stage: {name: _figure(of) for name, of in one.case.figures.items()} for one in examinations},
        "left_out": {one.stage: dict(one.left_out) for one in examinations},
        "guesses": [{"stage": one.stage, **guess.as_dict()} for one in examinations for guess in usual_guesses(one)],
        "seconds": {one.stage: {name: round(value, 3) for name, value in one.seconds.items()} for one in examinations},
    }


def _finding(examination: Examination, found: Diagnosis) -> dict[str, Any]:
    """A finding, with as much of its patch as the recipe of the run takes."""
    tree, patch = found.as_dict(), found.sign.finding.patch
    if patch:
        taken, left_out = taken_by_recipe(examination, patch)
        tree |= {"patch": taken or None} | ({"left_out": left_out} if left_out else {})
    return {"stage": examination.stage, **plain(tree)}


def _log(examination: Examination) -> dict[str, Any]:
    log = examination.case.log
    return {
        "stage": log.stage,
        "source": log.source,
        "path": log.path,
        "records": log.records,
        "series": {name: len(series) for name, series in log.series.items()},
        "settings": plain(log.settings.known()),
        "other_settings": {str(name): str(value) for name, value in log.settings.other.items()},
        "origin": dict(log.settings.origin),
        "unread": dict(log.unread),
        "notes": [*log.notes, *levels(examination)],
        "ended": log.ended,
        "after": examination.after,
        "trainer": None if examination.trainer is None else examination.trainer.name,
    }


def _figure(figure: Figure) -> dict[str, Any]:
    return {"value": plain(figure.value), "depth": figure.depth, "steps": figure.steps, "note": figure.note}


def plain(value: Any) -> Any:
    """A value as JSON has it: numbers of numpy as numbers, none that JSON cannot write (null)."""
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one) for one in value]
    if value is None or isinstance(value, bool | str | int):
        return value
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)
