"""Figures of resumes: jumps of the loss where a run went on."""

from typing import Any

import numpy as np

from fledge.diagnosis.curves.loss import has_level, training_loss
from fledge.diagnosis.curves.robust import noise
from fledge.training_log.records import Series, TrainingLog

RESUMES = frozenset({"resume", "startup", "recipe_changed", "world_size"})
"""Kinds of events that a process writes when it goes on with a run."""
RISING_AGAIN = ("restart", "cyclic")
"""Words in the names of schedules whose rate falls and rises again by plan."""
WELL_ABOVE = 0.1  # of the peak: a rate that is lower is at the end of its fall, where the next point is often less than half
ABRUPT = 3.0  # times the fall to the point before: a rate that was falling as fast already falls on by its schedule
WINDOW, FIRST_AFTER = 20, 5
GROUPS = ("attention", "mlp")


def resume_figures(log: TrainingLog) -> dict[str, Any]:
    """The largest jump of the loss at a resume, with its step and its statistic."""
    series = training_loss(log)
    if series is None or not has_level(log):
        return {}
    steps = resumed_at(log, series)
    jumps = [{**jump, **_of_updates(log, step)} for step in steps if (jump := _jump(series, step)) is not None]
    figures: dict[str, Any] = {"curve/resumes": len(steps)}
    if jumps:
        figures["curve/resume_jump"] = max(jumps, key=lambda jump: max(jump["z"], jump.get("gradient_z", 0.0)))
    return figures


def resumed_at(log: TrainingLog, series: Series) -> list[float]:
    """Steps at which a process went on with the run: from the log's events, and where the learning rate starts again, unless
    the schedule itself does so."""
    steps = {float(event["step"]) for event in log.events if event.get("kind") in RESUMES and _is_number(event.get("step"))}
    rates = log.get("train/lr")
    is_planned = any(word in (log.settings.schedule or "").lower() for word in RISING_AGAIN)
    if rates is not None and len(rates) > 2 and not is_planned:
        jumps = np.flatnonzero(_restarts(rates.values)) + 1
        steps |= {float(rates.steps[place]) for place in jumps}
    first = series.steps[0]
    return sorted(step for step in steps if step > first + 1)


def _restarts(rates: np.ndarray) -> np.ndarray:
    """Whether the rate falls abruptly from well above 0 to less than a half, and rises again within the next points: a second
    warm-up. A schedule with restarts falls no faster than just before, and rises from its bottom."""
    steps = rates[:-1] - rates[1:]
    before = np.concatenate(([0.0], np.maximum(steps[:-1], 0.0)))
    falls = (rates[1:] < 0.5 * rates[:-1]) & (rates[:-1] > WELL_ABOVE * rates.max()) & (steps > ABRUPT * before)
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


def _of_updates(log: TrainingLog, step: float) -> dict[str, float]:
    """How much larger gradients are in the first updates after a step (in standard errors of their logarithm), and the updates
    themselves, relative to the weights and to the learning rate: without its state, an optimizer makes them as large as at
    first."""
    found: dict[str, float] = {}
    norms = log.get("train/grad_norm")
    if norms is not None:
        place = int(np.searchsorted(norms.steps, step))
        before, after = norms.values[max(0, place - WINDOW) : place], norms.values[place : place + FIRST_AFTER]
        if len(before) >= 8 and len(after) == FIRST_AFTER and min(before.min(), after.min()) > 0:
            error = max(float(np.log(before).std()), 0.05) * np.sqrt(1 / len(before) + 1 / len(after))
            found["gradient_z"] = float((np.log(after).mean() - np.log(before).mean()) / error)
    factors = [factor for group in GROUPS if (factor := _growth_of_updates(log, group, step)) is not None]
    if factors:
        found["update_factor"] = min(factors)
    return found


def _growth_of_updates(log: TrainingLog, group: str, step: float) -> float | None:
    """The first size of an update after a step ÷ the last one before it, per learning rate."""
    ratios, rates = log.get(f"update_ratio/{group}"), log.get("train/lr")
    if ratios is None or rates is None:
        return None
    place = int(np.searchsorted(ratios.steps, step))
    if not 0 < place < len(ratios) or ratios.steps[place] > step + WINDOW:
        return None
    then, now = np.interp(ratios.steps[place - 1 : place + 1], rates.steps, rates.values)
    if min(then, now, ratios.values[place - 1]) <= 0:
        return None
    return float(ratios.values[place] / ratios.values[place - 1] * then / now)
