"""Figures of the plan: what the log should be by settings, data and published laws, and how far it is from that."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fledge.diagnosis.case import Case
from fledge.diagnosis.facts import TOKEN_KINDS, Facts, facts_of
from fledge.diagnosis.rate_bands import batch_band, rate_band
from fledge.plan.lr_schedule import cosine, linear
from fledge.training_log.records import Floats, Series

FEWEST_RATES = 20  # equal ones, before a rate is taken for constant
SAME_RATE = 0.01  # relative difference of rates that are equal
LATE_START = 0.5  # share of the steps before the first point of a column that begins in the middle of a run
STEEPER = 10  # times as steep as behind its first point a rate may have fallen before it
LEVEL = frozenset({"constant", "wsd"})
"""Schedules whose rate stays at its peak for most of a run."""
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
    elif peak is None or _may_have_reached(case, peak):
        peak = case.settings.learning_rate
    if any((event.get("evidence") or {}).get("lr_factor") for event in case.log.events):
        peak = case.settings.learning_rate or peak  # a guard lowered it later
    if peak is None:
        return {}
    figures: dict[str, Any] = {"plan/peak_lr": peak}
    if facts.steps:
        figures["plan/summed_rates"] = (case.value("curve/mean_lr") or _mean_of_schedule(case, peak)) * facts.steps
    if (band := rate_band(case, facts)) is not None:
        figures |= {
            "plan/rate_low": band.low, "plan/rate_high": band.high, "plan/rate_middle": band.middle,
            "plan/rate_source": band.source, "plan/rate_is_own": band.is_own,
        }  # fmt: skip
        if peak > 0:
            figures["plan/rate_factor"] = peak / band.high if peak > band.high else peak / band.low if peak < band.low else 1.0
    return figures


def _mean_of_schedule(case: Case, peak: float) -> float:
    """The mean rate of a run whose rates are not logged: the middle between its peak and its end, but of schedules that stay
    at their peak this one."""
    if (case.settings.schedule or "").lower() in LEVEL:
        return peak
    return (peak + min(peak, case.settings.min_learning_rate or 0.0)) / 2


def _may_have_reached(case: Case, peak: float) -> bool:
    """Whether the rate may have been the one that was set between the points of its column, whose largest is `peak`."""
    series, base = case.log.get("train/lr"), case.settings.learning_rate
    if series is None or not base or not 0 < peak < base:
        return False
    top = _top(series) if len(series) >= 3 else None
    return top is None or top >= base


def _top(series: Series) -> float | None:
    """The largest rate that a schedule can have had between the points of its column, three or more; None where nothing tells
    it: the rate still rises, or the column begins in the middle of the run."""
    steps, rates = series.steps, series.values
    highest = float(rates.max())
    top = np.flatnonzero(rates >= (1 - SAME_RATE) * highest)
    first, last = int(top[0]), int(top[-1])
    if steps[0] > max(1.0, LATE_START * steps[-1]):
        return None
    if 2 * len(top) >= len(rates):
        return highest
    if last == len(rates) - 1:
        return None
    falls = float(rates[last] - rates[last + 1])
    if first > 0:
        return highest + max(float(rates[first] - rates[first - 1]), falls)
    return highest + STEEPER * falls * max(0.0, float(steps[0]) - 1) / max(float(steps[last + 1] - steps[last]), 1.0)


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
    """The column of the learning rate beside the planned one: the ratio of the peaks, as far as the points of the column show
    that of the run, and the share of points that are off."""
    settings, series = case.settings, case.log.get("train/lr")
    base = settings.learning_rate
    if series is None or not base or len(series) < 3 or series.values.max() <= 0 or case.log.step_unit != "update":
        return {}
    steps = settings.steps
    warmup = settings.warmup_steps or 0.0
    figures: dict[str, Any] = {}
    if series.steps[-1] > warmup + 1:
        figures["plan/peak_ratio"] = _peak_ratio(case, series)
    fall = FALLS.get((settings.schedule or "").lower())
    low = settings.min_learning_rate
    if fall is None or not steps or low is None or steps <= warmup + 1:
        return figures
    every = slice(None, None, max(1, len(series) // 500))
    planned = _planned(case, series.steps[every], fall)
    figures["plan/lr_off_share"] = float((np.abs(series.values[every] - planned) > 0.1 * base).mean())
    return figures


def _planned(case: Case, at: Floats, fall: Callable[[float], float]) -> Floats:
    """The planned rates at these steps."""
    settings = case.settings
    base, low, steps = settings.learning_rate or 0.0, settings.min_learning_rate or 0.0, settings.steps or 0.0
    warmup = settings.warmup_steps or 0.0
    progress = np.clip((at - max(warmup, 1)) / (steps - max(warmup - 1, 0)), 0, 1)
    falling = np.array([low + (base - low) * fall(float(one)) for one in progress])
    return np.minimum(falling, base * at / max(warmup, 1))


def _peak_ratio(case: Case, series: Series) -> float | None:
    """The largest logged rate ÷ the one that was set. Where it is below 1, it is compared with what was planned for the logged
    steps, a step more or less, or the rate counts that it can have had between them; None where nothing tells that."""
    settings, highest = case.settings, float(series.values.max())
    base, steps, warmup = settings.learning_rate or 1.0, settings.steps, settings.warmup_steps
    if highest >= base:
        return highest / base
    top = _top(series)
    ratios = [] if top is None else [top / base]
    fall = FALLS.get((settings.schedule or "").lower())
    may_rise = warmup is None and series.values[-1] >= (1 - SAME_RATE) * highest
    if fall is not None and steps and steps > (warmup or 0.0) + 1 and not may_rise:
        every = series.steps[:: max(1, len(series) // 500)]
        planned = min(float(_planned(case, every + shift, fall).max()) for shift in (-1, 0, 1))
        ratios += [highest / planned] if planned > 0 else []
    return min(1.0, max(ratios)) if ratios else None
