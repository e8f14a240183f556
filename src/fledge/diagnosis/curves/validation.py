"""Figures of the validation loss: its minimum, its rise since, its noise, and its distance from the training loss."""

from typing import Any

import numpy as np

from fledge.diagnosis.curves.epochs import epochs_at
from fledge.diagnosis.curves.loss import has_level, training_loss
from fledge.diagnosis.curves.robust import NORMAL
from fledge.training_log.records import Floats, Series, TrainingLog

NEIGHBOURS = 25  # points of the training loss on each side of an evaluation


def validation_figures(log: TrainingLog) -> dict[str, Any]:
    """All figures of the validation loss and of the gap to the training loss."""
    series = log.get("eval/loss")
    if series is None:
        return {"curve/evaluations": 0}
    figures: dict[str, Any] = {"curve/evaluations": len(series)}
    if has_level(log) or training_loss(log) is None:
        figures |= _levels(log, series)
    if has_level(log):
        figures |= _gaps(log, series)
    return figures


def _levels(log: TrainingLog, series: Series) -> dict[str, Any]:
    values = series.values
    lowest = int(np.argmin(values))
    bends = np.diff(values, 2)[-max(2, (len(values) - 2) // 2) :]  # of the late ones: the first fall is no jitter
    jitter = float(np.median(np.abs(bends))) * NORMAL / np.sqrt(6) if len(values) >= 4 else 0.0
    figures: dict[str, Any] = {
        "curve/first_validation": float(values[0]),
        "curve/first_validation_step": float(series.steps[0]),
        "curve/last_validation": float(values[-1]),
        "curve/lowest_validation": float(values[lowest]),
        "curve/lowest_validation_step": float(series.steps[lowest]),
        "curve/last_validation_step": float(series.steps[-1]),
        "curve/validation_rise": float(values[-1] - values[lowest]),
        "curve/validation_rise_evaluations": len(values) - 1 - lowest,
        "curve/validation_jitter": float(jitter),
    }
    if len(values) >= 6:
        ups = np.diff(values) > 0
        figures["curve/validation_turns"] = float(np.mean(ups[1:] != ups[:-1]))
    positions = epochs_at(log, series.steps)
    if positions is not None:
        figures["curve/lowest_validation_epoch"] = float(positions[lowest])
    return figures


def _gaps(log: TrainingLog, series: Series) -> dict[str, Any]:
    """Validation − training loss at each evaluation after the first points of the log, and what both fell by over the later
    half of these evaluations."""
    losses = training_loss(log)
    if losses is None or len(losses) < 5:
        return {}
    inside = series.steps > losses.steps[0]
    if not inside.any():
        return {}
    levels = _levels_at(losses, series.steps[inside])
    gaps, ratios = series.values[inside] - levels, series.values[inside] / np.where(levels > 0, levels, np.nan)
    middle = len(gaps) // 2
    return {
        "curve/training_fall_late": float(levels[middle] - levels[-1]),
        "curve/validation_fall_late": float(series.values[inside][middle] - series.values[-1]),
        "curve/first_gap": float(gaps[0]),
        "curve/last_gap": float(gaps[-1]),
        "curve/training_at_last_validation": float(levels[-1]),
        "curve/validation_ratio": float(np.nanmedian(ratios)) if np.isfinite(ratios).any() else None,
        "curve/validation_ratios": [float(np.nanmin(ratios)), float(np.nanmax(ratios))] if np.isfinite(ratios).any() else None,
        "curve/gaps_below_zero": float((gaps < 0).mean()),
        "curve/gaps": int(inside.sum()),
    }


def _levels_at(losses: Series, steps: Floats) -> Floats:
    """The training loss around some steps: the median of the points nearest to each."""
    places = np.searchsorted(losses.steps, steps)
    half = int(np.clip(len(losses) // 20, 2, NEIGHBOURS))
    found = []
    for place in places:
        low = int(np.clip(place - half, 0, max(0, len(losses) - 2 * half)))
        found.append(np.median(losses.values[low : low + 2 * half]))
    return np.asarray(found)
