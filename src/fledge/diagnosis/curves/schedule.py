"""Figures of the column of the learning rate: its size and its shape."""

from typing import Any

import numpy as np

from fledge.training_log.records import Floats, Series, TrainingLog

FLAT = 0.01  # relative differences of rates that are equal in a log with few digits


def schedule_figures(log: TrainingLog) -> dict[str, Any]:
    """Peak, warm-up, last rate, and where the rate reaches the bottom or starts again."""
    series = log.get("train/lr")
    if series is None:
        return {}
    rates, peak = series.values, float(series.values.max())
    figures: dict[str, Any] = {
        "curve/lr_points": len(series),
        "curve/peak_lr": peak,
        "curve/last_lr": float(rates[-1]),
        "curve/lr_zero_share": float((rates == 0).mean()),
    }
    if peak <= 0 or len(series) < 3:
        return figures
    return figures | _shape(series, rates / peak)


def _shape(series: Series, shares: Floats) -> dict[str, Any]:
    """`shares`: the rates as shares of the peak."""
    steps = series.steps
    first_peak = int(np.argmax(shares >= 1 - FLAT))
    last_share = float(shares[-1])
    at_end = np.flatnonzero(np.abs(shares - last_share) > FLAT)
    bottom = int(at_end[-1] + 1) if len(at_end) else 0
    lowest_so_far = np.minimum.accumulate(shares[first_peak:])
    again = np.flatnonzero(shares[first_peak:] > 3 * lowest_so_far + FLAT)
    tail = shares[len(shares) // 2 :]
    return {
        "curve/lr_is_constant": bool(shares.min() >= 1 - FLAT),
        "curve/first_lr_share": float(shares[0]),
        "curve/first_lr_step": float(steps[0]),
        "curve/warmup_steps": float(steps[first_peak]) if first_peak else 0.0,
        "curve/last_lr_share": last_share,
        "curve/lr_flat_from_step": float(steps[bottom]),
        "curve/lr_late_fall": float(tail[0] - tail[-1]),
        "curve/lr_restart_step": float(steps[first_peak + again[0]]) if len(again) else None,
        "curve/mean_lr": _mean(series),
    }


def _mean(series: Series) -> float | None:
    """The mean over steps, by the trapezoidal rule."""
    lengths = np.diff(series.steps)
    if lengths.sum() <= 0:
        return None
    return float(((series.values[1:] + series.values[:-1]) / 2 * lengths).sum() / lengths.sum())
