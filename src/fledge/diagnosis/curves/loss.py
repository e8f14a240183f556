"""Figures of the training loss: levels, slopes, noise, plateau, spikes, divergence, constant and non-finite values."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fledge.diagnosis.curves.robust import NORMAL, blocks, centred_mean, noise, running_mean, spread, trailing_median, trend
from fledge.diagnosis.thresholds import threshold
from fledge.training_log.records import Floats, Series, TrainingLog

SPIKE_HISTORY = 31  # points before a spike that it is compared with
LATE_BLOCKS, ALL_BLOCKS = 10, 20
NO_LEVEL = frozenset({"grpo"})
"""Kinds of stage whose loss is centred on 0, so that its level says nothing (advantages of a group sum to 0)."""


def training_loss(log: TrainingLog) -> Series | None:
    """The finite points of the training loss, else of the means of epochs."""
    return log.get("train/loss") or log.get("train/epoch_loss")


def has_level(log: TrainingLog) -> bool:
    """Whether the level of the loss says something: not for losses that are centred on 0."""
    series = training_loss(log)
    if series is None or log.settings.kind in NO_LEVEL:
        return False
    return bool((series.values > 0).mean() > 1 - threshold("curves", "negative_share"))


def window_of(count: int) -> int:
    """Points of which the level is a mean: a fortieth of the log, 5 to 200, at most all."""
    return min(count, int(np.clip(count // 40, 5, 200)))


def loss_figures(log: TrainingLog) -> dict[str, Any]:
    """All figures of the training loss; those of its level are left out where it has none."""
    figures: dict[str, Any] = non_finite_figures(log)
    series = training_loss(log)
    if series is None:
        return figures
    figures["curve/points"] = len(series)
    figures["curve/loss_is_level"] = has_level(log)
    figures["curve/last_step"] = float(series.steps[-1])
    figures |= constant_figures(series)
    if figures["curve/loss_is_level"]:
        figures |= level_figures(series) | slope_figures(series) | spike_figures(series) | order_figures(series)
    return figures


def non_finite_figures(log: TrainingLog) -> dict[str, Any]:
    """Losses and gradient norms that are no finite numbers: their share, the first step, and whether they last to the end."""
    figures: dict[str, Any] = {}
    for name, key in (("loss", "train/loss"), ("grad_norm", "train/grad_norm")):
        series = log.series.get(key)
        if series is None or not len(series):
            continue
        bad = ~np.isfinite(series.values)
        figures[f"curve/{name}_not_finite"] = float(bad.mean())
        if bad.any():
            tail = bad[-min(len(bad), 5) :]
            figures[f"curve/{name}_not_finite_from"] = float(series.steps[np.argmax(bad)])
            figures[f"curve/{name}_not_finite_at_end"] = bool(tail.all())
    return figures


def constant_figures(series: Series) -> dict[str, Any]:
    """The one value that all points have, where they are equal to six digits."""
    low, high = float(series.values.min()), float(series.values.max())
    is_constant = len(series) >= 5 and high - low <= 1e-6 * max(1.0, abs(high))
    return {"curve/loss_constant": float(series.values[0])} if is_constant else {}


def level_figures(series: Series) -> dict[str, Any]:
    """First, last and lowest level, noise, and the rise since the lowest level."""
    values, window = series.values, window_of(len(series))
    smooth = running_mean(values, window)
    lowest = int(np.argmin(smooth))
    late = values[len(values) // 2 :]
    of_points = noise(late) if len(late) >= 8 else noise(values)
    error = max(of_points * np.sqrt(2 / window), blocks(series, ALL_BLOCKS).error)
    rise = float(smooth[-1] - smooth[lowest])
    head = values[: max(1, min(window, len(values) // 10))]
    return {
        "curve/first_loss": float(values[0]),
        "curve/first_step": float(series.steps[0]),
        "curve/head_loss": float(head.mean()),
        "curve/last_loss": float(smooth[-1]),
        "curve/lowest_loss": float(smooth[lowest]),
        "curve/lowest_step": float(series.steps[lowest : lowest + window].mean()),
        "curve/loss_noise": of_points,
        "curve/level_error": float(error),
        "curve/rise": rise,
        "curve/rise_z": rise / error if error > 0 else (np.inf if rise > 0 else 0.0),
    }


def slope_figures(series: Series) -> dict[str, Any]:
    """Whether the loss falls: over all, and in the last half; from which share of the log on it stays where it is."""
    if len(series) < 8:
        return {}
    everything = blocks(series, ALL_BLOCKS)
    half = Series(series.steps[len(series) // 2 :], series.values[len(series) // 2 :])
    late = blocks(half, LATE_BLOCKS)
    slope, slope_z = trend(late.means)
    fall = float(everything.means[0] - everything.means[1:].min())
    tail = everything.means[-max(1, len(everything) // 5) :].mean()
    band = max(threshold("curves", "plateau_band") * abs(tail), 3 * everything.error)
    moves = np.flatnonzero(np.abs(everything.means - tail) > band)
    bends = np.diff(everything.means, 2)
    return {
        "curve/fall": fall,
        "curve/fall_z": fall / everything.error / np.sqrt(2) if everything.error > 0 else (np.inf if fall > 0 else 0.0),
        "curve/late_fall": -slope * (len(late) - 1),
        "curve/late_z": slope_z,
        "curve/plateau_from": float((moves[-1] + 1) / len(everything)) if len(moves) else 0.0,
        "curve/plateau_level": float(tail),
        "curve/swing": float(spread(bends[len(bends) // 4 :]) / np.sqrt(6)) if len(bends) >= 8 else 0.0,
        "curve/swing_expected": float(noise(series.values) / np.sqrt(everything.points)),
    }


def spike_figures(series: Series) -> dict[str, Any]:
    """Points far above the median of those before: how many events, and the largest that lasted for several points."""
    values = series.values
    if len(values) <= SPIKE_HISTORY + 8:
        return {}
    base = trailing_median(values, SPIKE_HISTORY)
    above = values[SPIKE_HISTORY:] - base
    deviation = _local_noise(values)[SPIKE_HISTORY:]
    limit = np.maximum(
        threshold("curves", "spike_sigma") * deviation,
        np.maximum(threshold("curves", "spike_share") * np.abs(base), threshold("curves", "spike_nats")),
    )
    starts, ends = _runs(above > limit, gap=SPIKE_HISTORY)
    events = [_spike(series, base, deviation, int(start), int(end)) for start, end in zip(starts, ends, strict=True)]
    lasting = [event for event in events if event["points"] >= threshold("curves", "spike_points")]
    figures: dict[str, Any] = {"curve/spikes": len(lasting), "curve/outliers": len(events) - len(lasting)}
    if lasting:
        figures["curve/largest_spike"] = max(lasting, key=lambda event: event["size"])
        figures["curve/first_spike_step"] = lasting[0]["step"]
    return figures


def _local_noise(values: Floats) -> Floats:
    """The noise of points, from the absolute differences of up to 500 neighbours on both sides, [N]."""
    steps = np.abs(np.diff(values))
    cut = np.minimum(steps, 6 * NORMAL * np.median(steps)) if len(steps) else steps
    mean = centred_mean(np.concatenate([cut, cut[-1:]]), 500)
    return mean * np.sqrt(np.pi) / 2  # mean of |difference| of two normal numbers: 2σ/√π


def _runs(flags: np.ndarray, gap: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last places of runs of flags; those with fewer than `gap` places between them are one."""
    places = np.flatnonzero(flags)
    if not len(places):
        return places, places
    breaks = np.flatnonzero(np.diff(places) > gap)
    return places[np.concatenate([[0], breaks + 1])], places[np.concatenate([breaks, [len(places) - 1]])]


def _spike(series: Series, base: Floats, deviation: Floats, start: int, end: int) -> Mapping[str, float]:
    """One event: its first step, the height over the level before, and the points until it is back there."""
    values, level = series.values[SPIKE_HISTORY:], base[start]
    back = np.flatnonzero(values[start:] <= level + 3 * deviation[start])
    points = int(back[0]) if len(back) else len(values) - start
    reach = values[start : start + max(points, end - start + 1)]
    return {
        "step": float(series.steps[SPIKE_HISTORY + start]),
        "size": float(reach.max() - level),
        "level": float(level),
        "points": points,
        "recovered": float(bool(len(back))),
    }


def order_figures(series: Series) -> dict[str, Any]:
    """The correlation of losses of neighbouring points, without the slow trend, in the last half; with its statistic."""
    values = series.values[len(series) // 2 :]
    if len(values) < 100:
        return {}
    rest = values - centred_mean(values, 32)
    cut = np.clip(rest, -4 * spread(rest), 4 * spread(rest))
    size = float(cut @ cut)
    found = float(np.mean([cut[lag:] @ cut[:-lag] for lag in (1, 2, 3)])) / size if size > 0 else 0.0
    return {"curve/autocorrelation": found, "curve/autocorrelation_z": found * np.sqrt(3 * len(values))}


def trend_of(series: Series | None, count: int = ALL_BLOCKS) -> tuple[float, float] | None:
    """(last block − first block, z of a monotone trend) of any series; None for fewer than eight points."""
    if series is None or len(series) < 8:
        return None
    found = blocks(series, count)
    return float(found.means[-1] - found.means[0]), trend(found.means)[1]
