"""Figures of resumes: jumps of the loss where a run went on."""

from typing import Any

import numpy as np

from fledge.diagnosis.curves.loss import has_level, training_loss
from fledge.diagnosis.curves.robust import noise
from fledge.training_log.records import Series, TrainingLog

RESUMES = frozenset({"resume", "startup", "recipe_changed", "world_size"})
"""Kinds of events that a process writes when it goes on with a run."""
WINDOW = 20


def resume_figures(log: TrainingLog) -> dict[str, Any]:
    """The largest jump of the loss at a resume, with its step and its statistic."""
    series = training_loss(log)
    if series is None or not has_level(log):
        return {}
    steps = resumed_at(log, series)
    jumps = [jump for step in steps if (jump := _jump(series, step)) is not None]
    figures: dict[str, Any] = {"curve/resumes": len(steps)}
    if jumps:
        figures["curve/resume_jump"] = max(jumps, key=lambda jump: jump["z"])
    return figures


def resumed_at(log: TrainingLog, series: Series) -> list[float]:
    """Steps at which a process went on with the run: from the log's events, and where the learning rate starts again."""
    steps = {float(event["step"]) for event in log.events if event.get("kind") in RESUMES and _is_number(event.get("step"))}
    rates = log.get("train/lr")
    if rates is not None and len(rates) > 2:
        jumps = np.flatnonzero(_restarts(rates.values)) + 1
        steps |= {float(rates.steps[place]) for place in jumps}
    first = series.steps[0]
    return sorted(step for step in steps if step > first + 1)


def _restarts(rates: np.ndarray) -> np.ndarray:
    """Whether the rate falls abruptly to less than a half, and rises again within the next points: a second warm-up."""
    falls = rates[1:] < 0.5 * rates[:-1]
    later = np.array([rates[place + 1 : place + 1 + 50].max() for place in np.flatnonzero(falls)])
    found = np.zeros(len(falls), bool)
    places = np.flatnonzero(falls)
    found[places] = later > 1.5 * rates[1:][places] if len(places) else False
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _jump(series: Series, step: float) -> dict[str, float] | None:
    """The loss after a step − before it."""
    place = int(np.searchsorted(series.steps, step))
    before, after = series.values[max(0, place - WINDOW) : place], series.values[place : place + WINDOW]
    if len(before) < 5 or len(after) < 5:
        return None
    after = after[: max(5, len(after) // 2)]
    size = float(after.mean() - before.mean())
    error = noise(series.values) * np.sqrt(1 / len(before) + 1 / len(after))
    return {"step": step, "size": size, "level": float(before.mean()), "z": size / error if error > 0 else 0.0}
