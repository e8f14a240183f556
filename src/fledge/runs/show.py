"""`fledge runs show`: what a run, a stage or a step has trained and reached."""

from collections.abc import Mapping
from typing import Any

from fledge.checkpoint.find import step_name, step_number
from fledge.evaluate.records import BEFORE, SetResult
from fledge.run import StageDirectory
from fledge.run.events import read_events
from fledge.runs.read import Subject, metrics, metrics_by_step, plan_values, planned_steps, sets


def show(subject: Subject) -> dict[str, Any]:
    """What the directories say of a subject, as JSON values: each stage with its plan, metrics, checkpoints, sets, verdict."""
    if subject.run is None:
        return {"name": subject.name, "stages": {}, "sets": _sets({}, sets(subject, None))}
    return {"name": subject.name, "stages": {name: _stage(subject, name) for name in subject.stages}}


def _stage(subject: Subject, name: str) -> dict[str, Any]:
    directory = subject.directory(name)
    result, plan, evaluated = directory.result() or {}, plan_values(directory), metrics_by_step(directory)
    return {
        "kind": plan.get("kind"),
        "finished": bool(result),
        "steps": result.get("step", max(evaluated, default=0)) if subject.step is None else subject.step,
        "planned_steps": planned_steps(plan),
        "tokens": plan.get("tokens"),
        "parameters": plan.get("parameters"),
        "trained_parameters": result.get("trained_parameters"),
        "seconds": result.get("wall_seconds"),
        "stop": result.get("stop"),
        "model": result.get("model"),
        "before": directory.metrics(BEFORE),
        "after": metrics(subject, name),
        "checkpoints": _checkpoints(directory, result, evaluated),
        "sets": _sets(sets(subject, name, BEFORE), sets(subject, name)),
        "findings": _findings(directory, subject.step),
        "verdict": result.get("verdict") if subject.step is None else None,
    }


FINDING_KEYS = ("step", "cause", "severity", "confidence", "message", "hint", "patch")


def _findings(directory: StageDirectory, last: int | None) -> list[dict[str, Any]]:
    """What the doctor found while the stage trained, up to a step: the newest event of each cause."""
    found: dict[str, dict[str, Any]] = {}
    for event in read_events(directory.events):
        if event["kind"] == "finding" and (last is None or event["step"] <= last):
            found[str(event.get("cause"))] = {key: event.get(key) for key in FINDING_KEYS}
    return list(found.values())


def _checkpoints(
    directory: StageDirectory, result: dict[str, Any], evaluated: Mapping[int, dict[str, Any]]
) -> list[dict[str, Any]]:
    """Each step with an evaluation or a checkpoint: its metrics, whether it is saved, the best one, the one that goes on."""
    saved = {step for path in directory.checkpoint_paths() if (step := step_number(path.name)) is not None}
    return [
        {
            "step": step,
            "saved": step in saved,
            "best": result.get("best_step") == step,
            "goes_on": f"/{step_name(step)}/" in f"/{result.get('model', '')}/",
            "metrics": evaluated.get(step, {}),
        }
        for step in sorted({*evaluated, *saved})
    ]


def _sets(before: dict[str, SetResult], after: dict[str, SetResult]) -> dict[str, Any]:
    """The metrics of each set before and now, as JSON values."""
    return {
        name: {
            "kind": result.kind,
            "items": len(result.items),
            "same_set": name in before and before[name].fingerprint == result.fingerprint,
            "before": {key: vars(value) for key, value in before[name].metrics.items()} if name in before else {},
            "after": {key: vars(value) for key, value in result.metrics.items()},
            "groups": {group: {key: vars(value) for key, value in values.items()} for group, values in result.groups.items()},
            "notes": list(result.notes),
        }
        for name, result in after.items()
    }
