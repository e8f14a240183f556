"""Figures of gradients and updates: norms, clipping, loss scale, size of updates, noise scale."""

from typing import Any

import numpy as np

from fledge.training_log.records import Series, TrainingLog

EARLY_STEPS = 100
FIRST_STEPS = 10  # updates that are looked at for a size that only the first ones have
RATIO = "update_ratio/"


def gradient_figures(log: TrainingLog) -> dict[str, Any]:
    """All figures of gradients and of the updates that are made of them."""
    return _norms(log) | _scale(log) | _updates(log) | _noise_scale(log)


def _norms(log: TrainingLog) -> dict[str, Any]:
    series = log.get("train/grad_norm")
    if series is None:
        return {}
    norms, threshold = series.values, log.settings.max_grad_norm
    late = norms[len(norms) // 2 :]
    median = float(np.median(late))
    figures: dict[str, Any] = {
        "curve/grad_norm": median,
        "curve/grad_norm_max": float(norms.max()),
        "curve/grad_norm_zero_share": float((norms == 0).mean()),
    }
    figures |= _early(series, median) | _growth(series)
    if threshold:
        figures["curve/clipped_share"] = float((norms > threshold).mean())
        figures["curve/clip_factor"] = float(np.median(norms) / threshold)
    elif (clipped := log.get("train/clip_fraction")) is not None:
        figures["curve/clipped_share"] = float(clipped.values[-1])
    return figures


def _early(series: Series, median: float) -> dict[str, Any]:
    """The largest norm of the first steps against the usual one."""
    early = series.values[series.steps <= series.steps[0] + EARLY_STEPS]
    if len(series) < 3 * len(early) or not len(early) or median <= 0:
        return {}
    return {"curve/early_grad_peak": float(early.max() / median)}


def _growth(series: Series) -> dict[str, Any]:
    """The norm of the last tenth against the lowest and against the first level."""
    size = len(series) // 10
    if size < 3:
        return {}
    usable = series.values[: size * 10].reshape(10, size)
    levels = np.median(usable, axis=1)
    figures: dict[str, Any] = {}
    if levels.min() > 0:
        figures["curve/grad_norm_growth"] = float(levels[-1] / levels.min())
        figures["curve/grad_norm_shrinkage"] = float(levels[-1] / levels[0])
    return figures


def _scale(log: TrainingLog) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    scale, skipped = log.get("train/loss_scale"), log.get("train/skipped_steps")
    if scale is not None:
        figures |= {
            "curve/first_loss_scale": float(scale.values[0]),
            "curve/last_loss_scale": float(scale.values[-1]),
            "curve/lowest_loss_scale": float(scale.values.min()),
        }
    if skipped is not None and len(skipped) >= 2 and skipped.steps[-1] > skipped.steps[0]:
        half = len(skipped) // 2
        late = (skipped.values[-1] - skipped.values[half]) / max(1.0, skipped.steps[-1] - skipped.steps[half])
        figures["curve/skipped_share"] = float(skipped.values[-1] / skipped.steps[-1])
        figures["curve/late_skipped_share"] = float(late)
    return figures


def _updates(log: TrainingLog) -> dict[str, Any]:
    """By group of parameters: the usual RMS of an update ÷ RMS of the weights while the rate is high; the first ones; what the
    first one would have been at the peak of the rate; and the sum over all updates, which is how far weights could have moved.
    """
    figures: dict[str, dict[str, float]] = {
        name: {} for name in ("update_ratio", "first_update", "update_at_peak", "update_total")
    }
    rates = log.get("train/lr")
    peak = float(rates.values.max()) if rates is not None else 0.0
    for name in sorted(log.series):
        series = log.get(name) if name.startswith(RATIO) else None
        if series is None:
            continue
        group, ratios = name.removeprefix(RATIO), series.values
        figures["update_total"][group] = float(ratios.mean() * series.steps[-1])
        figures["first_update"][group] = float(ratios[series.steps <= series.steps[0] + FIRST_STEPS].max())
        if rates is not None and peak > 0:
            then = np.interp(series.steps, rates.steps, rates.values)
            if then[0] > 0:
                figures["update_at_peak"][group] = float(ratios[0] * peak / then[0])
            ratios = ratios[then >= 0.5 * peak] if (then >= 0.5 * peak).any() else ratios
        figures["update_ratio"][group] = float(np.median(ratios))
    return {f"curve/{name}": found for name, found in figures.items() if found}


def _noise_scale(log: TrainingLog) -> dict[str, Any]:
    """The gradient noise scale: the median of its single values, of which each says little."""
    series = log.get("grad_noise/scale")
    if series is None or len(series) < 5:
        return {}
    return {"curve/noise_scale": float(np.median(series.values)), "curve/noise_scale_points": len(series)}
