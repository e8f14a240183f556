"""Figures of the plan: what the log should be by settings, data and published laws, and how far it is from that."""

import math
from typing import Any

import numpy as np

from fledge.diagnosis.case import Case
from fledge.diagnosis.facts import TOKEN_KINDS, Facts, facts_of
from fledge.diagnosis.rate_bands import batch_band, rate_band
from fledge.plan.lr_schedule import cosine, linear

FEWEST_RATES = 20  # equal ones, before a rate is taken for constant
FALLS = {"cosine": cosine, "linear": linear}
"""Schedules that are computed again: name → share of the peak by progress after the warm-up."""


def plan_figures(case: Case) -> dict[str, Any]:
    """All figures of the plan by name (`curve_measures.CURVE_MEASURES`); those that cannot be told are left out."""
    facts = facts_of(case)
    figures: dict[str, Any] = {
        "plan/steps": facts.whole_steps,
        "plan/progress": facts.progress,
        "plan/is_done": facts.is_done,
        "plan/is_fresh": facts.is_fresh,
        "plan/epochs": facts.epochs,
        "plan/updates_per_epoch": facts.updates_per_epoch,
        "plan/batch_tokens": facts.batch_tokens,
        "plan/width": facts.width,
        "plan/has_adapter": facts.has_adapter,
    }
    figures |= _levels(case, facts) | _rates(case, facts) | _batch(case, facts) | _schedule(case)
    if facts.is_fresh and facts.tokens and facts.parameters:
        figures["plan/tokens_per_parameter"] = facts.tokens / facts.parameters
    return {name: value for name, value in figures.items() if value is not None}


def _levels(case: Case, facts: Facts) -> dict[str, Any]:
    """The level of the loss beside that of a uniform guess, and of the frequencies of tokens and of pairs of tokens."""
    if case.kind not in TOKEN_KINDS or not case.value("curve/loss_is_level"):
        return {}
    figures: dict[str, Any] = {"plan/log_vocabulary": facts.log_vocabulary}
    first, last = case.value("curve/first_loss"), case.value("curve/last_loss")
    if facts.log_vocabulary and first is not None and last is not None:
        figures["plan/first_loss_share"] = first / facts.log_vocabulary
        figures["plan/last_loss_share"] = last / facts.log_vocabulary
    for name in ("unigram", "bigram"):
        entropy = case.value(f"data/{name}_entropy")
        if isinstance(entropy, int | float) and math.isfinite(entropy) and last is not None:
            figures[f"plan/over_{name}"] = last - entropy
    return figures


def _rates(case: Case, facts: Facts) -> dict[str, Any]:
    """The peak of the learning rate (else the one that was set) beside its band. `plan/rate_factor`: how many times it is above
    (or, below 1, below) the nearer end of the band; 1 inside."""
    peak, last, points = (case.value(f"curve/{name}") for name in ("peak_lr", "last_lr", "lr_points"))
    is_flat = bool(case.value("curve/lr_is_constant")) and points >= FEWEST_RATES
    if peak and last >= 0.99 * peak and not is_flat and not facts.is_done:
        peak = case.settings.learning_rate  # the log ends within the warm-up: its largest rate is not the peak
    elif peak is None:
        peak = case.settings.learning_rate
    if any((event.get("evidence") or {}).get("lr_factor") for event in case.log.events):
        peak = case.settings.learning_rate or peak  # a guard lowered it later
    if peak is None:
        return {}
    figures: dict[str, Any] = {"plan/peak_lr": peak}
    if facts.steps:
        figures["plan/summed_rates"] = (case.value("curve/mean_lr") or peak) * facts.steps
    if (band := rate_band(case, facts)) is not None:
        figures |= {
            "plan/rate_low": band.low, "plan/rate_high": band.high, "plan/rate_middle": band.middle,
            "plan/rate_source": band.source, "plan/rate_is_own": band.is_own,
        }  # fmt: skip
        if peak > 0:
            figures["plan/rate_factor"] = peak / band.high if peak > band.high else peak / band.low if peak < band.low else 1.0
    return figures


def _batch(case: Case, facts: Facts) -> dict[str, Any]:
    """The tokens of an update beside the band of published laws and the gradient noise scale."""
    figures: dict[str, Any] = {}
    band = batch_band(facts)
    if band is not None and facts.batch_tokens:
        low, high, source = band
        batch = facts.batch_tokens
        figures |= {"plan/batch_low": low, "plan/batch_high": high, "plan/batch_source": source}
        figures["plan/batch_factor"] = batch / high if batch > high else batch / low if batch < low else 1.0
    noise = case.value("curve/noise_scale")
    size = facts.batch_tokens if case.kind in TOKEN_KINDS else facts.rows_per_update
    if noise and size:
        figures["plan/batch_per_noise_scale"] = size / noise
    return figures


def _schedule(case: Case) -> dict[str, Any]:
    """The column of the learning rate beside the planned one: the ratio of the peaks, and the share of points that are off."""
    settings, series = case.settings, case.log.get("train/lr")
    base = settings.learning_rate
    if series is None or not base or len(series) < 3 or series.values.max() <= 0 or case.log.step_unit != "update":
        return {}
    steps = settings.steps
    warmup = settings.warmup_steps or 0.0
    figures: dict[str, Any] = {}
    if series.steps[-1] > warmup + 1:
        figures["plan/peak_ratio"] = float(series.values.max() / base)
    fall = FALLS.get((settings.schedule or "").lower())
    low = settings.min_learning_rate
    if fall is None or not steps or low is None or steps <= warmup + 1:
        return figures
    progress = np.clip((series.steps - max(warmup, 1)) / (steps - max(warmup - 1, 0)), 0, 1)
    falling = np.array([low + (base - low) * fall(float(one)) for one in progress[:: max(1, len(progress) // 500)]])
    rising = base * series.steps[:: max(1, len(progress) // 500)] / max(warmup, 1)
    planned = np.minimum(falling, rising)
    actual = series.values[:: max(1, len(progress) // 500)]
    figures["plan/lr_off_share"] = float((np.abs(actual - planned) > 0.1 * base).mean())
    return figures
