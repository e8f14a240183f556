"""Causes in the size of the learning rate, in weight decay and in clipping."""

import math
from typing import Any

from fledge.diagnosis.case import Case
from fledge.diagnosis.cause import Cause, Sign
from fledge.diagnosis.causes.matching import beyond, inner_update, matching, times
from fledge.diagnosis.causes.schedules import SCHEDULES
from fledge.diagnosis.causes.signs import patch, sign, span
from fledge.diagnosis.evidence import rounded
from fledge.diagnosis.facts import end_of_loss
from fledge.diagnosis.rate_bands import GENERIC
from fledge.diagnosis.thresholds import threshold

ZERO, HIGH, LOW = "learning rate zero", "learning rate too high", "learning rate too low"
NOT_PLANNED, DECAY, CLIPPING = "learning rate not as planned", "weight decay too strong", "clipping threshold too small"
BROKEN = ("not a number", "divergence")
TOO_FAST = (*BROKEN, "loss spikes", "oscillation", "exploding gradient", "high level")
AT_CHANCE = ("loss at ln 2", "margins flat")
RANKED = frozenset({"reward"})  # kinds whose loss is ln 2 where the two answers of a pair are told apart by chance alone
HELD_UP = ("divergence", "not learning", "slow learning", "high level")
TOO_SLOW = ("not learning", "slow learning", "high level", "loss at ln 2", "margins flat")
STILL = (
    "not learning",
    "loss constant",
    "slow learning",
    "high level",
    "plateau",
    "loss at ln 2",
    "margins flat",
    "reward flat",
)


def _limit(name: str) -> float:
    return threshold("rates", name)


def _rates(case: Case) -> tuple[float, float] | None:
    return span(case.log.get("train/lr"))


def zero(case: Case) -> Sign | None:
    """A rate that is 0 at every step, or was set to 0."""
    peak, points = case.value("curve/peak_lr"), case.value("curve/lr_points") or 0
    is_zero = (peak == 0 and points >= _limit("zero_points")) or (peak is None and case.settings.learning_rate == 0)
    if not is_zero:
        return None
    middle = case.value("plan/rate_middle")
    last = case.value("curve/last_step")
    return sign(
        ZERO,
        "certain",
        "the learning rate is 0 at every step: nothing is learned"
        if peak is not None
        else "the learning rate is set to 0: nothing is learned",
        hint="set the learning rate, and look at what the schedule gets as its number of steps: 0 or too few of them give 0",
        proof="train a few steps with a rate above 0: the weights change",
        evidence={"peak_learning_rate": peak, "points": points, "last_step": last},
        patch=patch(case, optimizer__learning_rate=rounded(middle)) if middle else None,
        steps=_rates(case),
    )


def _band(case: Case) -> dict[str, Any]:
    names = ("peak_lr", "rate_low", "rate_high", "rate_middle", "rate_source", "rate_factor", "width", "batch_tokens")
    return {name: case.value(f"plan/{name}") for name in names}


def too_high(case: Case) -> Sign | None:
    """A rate above its band, or inside of it with a run that breaks down."""
    band = _band(case)
    factor, peak = band["rate_factor"], band["peak_lr"]
    if factor is None or peak is None:
        return None
    symptoms, size = matching(case, TOO_FAST), inner_update(case, "update_at_peak")
    large = size if size is not None and size >= _limit("large_update") else None
    is_hurt = bool(symptoms) or large is not None or _was_lowered(case)
    far = _limit("far") if _is_comparable(band) else math.inf
    sure = beyond(factor, is_hurt, far=far, some=_limit("some"), near=_limit("near"))
    is_broken = factor >= 1 and _breaks_down(case)
    if sure is None and not is_broken:
        return None
    wanted = band["rate_middle"] if factor > 1 else peak / 5
    where = f"{times(factor)} what would be chosen, {band['rate_high']:.2g}" if factor > 1 else "not above the usual ones"
    adapter = _adapter_words(case, peak) if factor > 1 else ""
    seen = f"; seen: {', '.join(symptoms)}" if symptoms else ""
    seen += f"; at this rate the first update would change matrices by {large:.0%} of their size" if large is not None else ""
    return sign(
        HIGH,
        sure or "possible",
        f"the learning rate of {peak:.3g} is {where} ({band['rate_source']}){adapter}{seen}",
        hint=f"set the learning rate to about {wanted:.1g}, with a warm-up of 5 % of the steps",
        proof="train a few hundred steps from the same start with the smaller rate, on the same rows: the loss falls lower",
        evidence={**band, "symptoms": symptoms, "update_ratio": large},
        severity="error" if symptoms else "warning",
        patch=patch(case, optimizer__learning_rate=rounded(wanted)),
        alternatives=_alternatives_of_high(case),
        steps=_rates(case),
    )


def _is_comparable(band: dict[str, Any]) -> bool:
    """Whether a rate alone, without a symptom, can be told to be too high: the width of the model is known, on which the
    highest rate depends that it bears, or the rate is beyond those of all widths."""
    return band["width"] is not None or band["peak_lr"] > GENERIC[1]


def _breaks_down(case: Case) -> bool:
    """Whether training ended far above its lowest loss, or without numbers."""
    return bool(matching(case, ("divergence",))) or bool(case.value("curve/loss_not_finite_at_end"))


def _was_lowered(case: Case) -> bool:
    """Whether a guard of fledge went back and lowered the rate."""
    return any((event.get("evidence") or {}).get("lr_factor") for event in case.log.events)


def _lowered_to(case: Case) -> float:
    """The smallest share of the planned rate to which a guard lowered it; 1: it was not."""
    factors = [(event.get("evidence") or {}).get("lr_factor") for event in case.log.events]
    return min((float(one) for one in factors if one), default=1.0)


def _adapter_words(case: Case, peak: float) -> str:
    is_full = case.value("plan/is_fresh") is False and not case.value("plan/has_adapter")
    return "; it has the size of an adapter's rate" if is_full and peak <= 12 * case.value("plan/rate_high") else ""


def _alternatives_of_high(case: Case) -> dict[str, str]:
    found = {"no warm-up": "gradient norm and loss of the first hundred steps"}
    if _breaks_down(case):
        found["bad numbers in single rows"] = "the rows of the steps before, measured again"
    return found


def too_low(case: Case) -> Sign | None:
    """A rate below its band, or updates that add up to hardly any change of the weights."""
    band = _band(case)
    factor, peak = band["rate_factor"], band["peak_lr"]
    if peak is None or peak <= 0:
        return None
    below = 1 / factor if factor and factor < 1 else 1.0
    symptoms, moved = matching(case, TOO_SLOW), _moved(case)
    sure = beyond(below, bool(symptoms) or moved is not None, far=_limit("far"), some=_limit("some"), near=_limit("near"))
    if below >= _limit("adapter") and case.value("plan/has_adapter"):
        sure = "likely"  # an adapter at the rate of all weights learns ten times more slowly (decision 048)
    if moved is not None and (factor is None or factor <= 1):
        sure = "likely" if symptoms or below > 1 or _is_at_chance(case) else sure or "possible"
    if sure is None:
        return None
    wanted = band["rate_middle"] or 10 * peak
    where = (
        f"{times(below)} below what would be chosen, {band['rate_low']:.2g} ({band['rate_source']})" if below > 1 else "small"
    )
    where += _weights_words(case, peak)
    seen = f"; seen: {', '.join(symptoms)}" if symptoms else ""
    seen += f"; all updates together could have moved the weights by {moved:.1%} of their size" if moved is not None else ""
    return sign(
        LOW,
        sure,
        f"the learning rate of {peak:.3g} is {where}{seen}",
        hint=f"set the learning rate to about {wanted:.1g}",
        proof="train a few hundred steps from the same start with the larger rate, on the same rows: the loss falls lower",
        evidence={**band, "symptoms": symptoms, "moved": moved},
        severity="warning",
        patch=patch(case, optimizer__learning_rate=rounded(wanted)),
        alternatives={"tensors that do not learn": "probe/unchanged_tensors", "too few updates": "the number of updates"},
        steps=_rates(case),
    )


def _weights_words(case: Case, peak: float) -> str:
    low = case.value("plan/rate_low")
    is_adapter = bool(case.value("plan/has_adapter")) and low is not None and peak < low
    return "; it has the size of a rate for all weights, and an adapter needs about ten times as much" if is_adapter else ""


def _is_at_chance(case: Case) -> bool:
    """Whether a loss of pairs ends about where it starts."""
    level = case.value("curve/last_loss")
    is_high = case.kind in RANKED and level is not None and level >= _limit("chance_share") * math.log(2)
    return is_high or bool(matching(case, AT_CHANCE))


def _moved(case: Case) -> float | None:
    """How far all updates together could have moved the matrices, as a share of their size; None where it is not told or is
    enough. Of a run that is over or long, since at its beginning it is small."""
    total, steps = inner_update(case, "update_total"), case.value("curve/last_step") or 0
    most = _limit("moved_at_chance") if _is_at_chance(case) else _limit("moved")
    is_long = bool(case.value("plan/is_done")) or steps >= _limit("moved_steps")
    return total if total is not None and is_long and total <= most else None


def not_planned(case: Case) -> Sign | None:
    """A column of rates that is not what the settings say."""
    ratio, off = case.value("plan/peak_ratio"), case.value("plan/lr_off_share")
    lowered = _lowered_to(case)
    is_other_peak = ratio is not None and not lowered / _limit("peak_ratio") <= ratio <= _limit("peak_ratio")
    is_other_shape = off is not None and off >= _limit("off_share") and not _was_lowered(case)
    if not (is_other_peak or is_other_shape):
        return None
    set_rate, peak = case.settings.learning_rate, case.value("curve/peak_lr")
    what = (
        f"the largest learning rate in the log is {peak:.3g}, and {set_rate:.3g} was set"
        if is_other_peak
        else f"in {off:.0%} of the steps the learning rate is not that of the schedule that was set"
    )
    return sign(
        NOT_PLANNED,
        "certain",
        what,
        hint="look at what scales the rate in the trainer (processes, accumulation, a schedule that is stepped more than once "
        "an update), and at whether these settings belong to this log",
        proof="print the rate of the first, the middle and the last step, and compare it with the schedule",
        evidence={"set": set_rate, "peak": peak, "ratio": ratio, "share_off": off},
        severity="warning",
        steps=_rates(case),
    )


def weight_decay(case: Case) -> Sign | None:
    """A decay that shrinks the weights faster than gradients restore them: Σ rate × decay, of which Wang & Aitchison (2024)
    find the order of 1 best for a whole run. Long pretraining with a usual decay is far above that and sound: there it counts
    only with a loss that the decay may hold up."""
    decay, summed = case.settings.weight_decay, case.value("plan/summed_rates")
    if not decay or not summed or case.value("plan/has_adapter"):
        return None
    decayed, is_fresh = decay * summed, case.value("plan/is_fresh") is not False
    limit = _limit("decayed_fresh") if is_fresh else _limit("decayed_trained")
    unusual = _limit("decayed_unusual") if is_fresh else _limit("decayed_unusual_trained")
    is_unusual = decay > _limit("unusual_decay") and decayed > unusual
    if decayed <= limit and not is_unusual:
        return None
    symptoms = matching(case, HELD_UP)
    is_usual = decay <= _limit("usual_decay") and not symptoms and end_of_loss(case) != "rises"
    if is_usual and is_fresh:
        return None
    wanted = rounded(min(0.1, (1.0 if is_fresh else 0.05) / summed))
    return sign(
        DECAY,
        "possible" if is_usual else "likely",
        f"weight decay {decay:.3g} with rates that add up to {summed:.3g} shrinks the weights to {math.exp(-decayed):.1%} of "
        "their size, but for what gradients restore",
        hint=f"set the weight decay to {wanted:.1g} or below",
        proof="train from the same start with the smaller decay, on the same rows: the loss falls lower",
        evidence={"weight_decay": decay, "summed_rates": summed, "decayed": decayed, "limit": limit, "symptoms": symptoms},
        severity="warning",
        patch=patch(case, optimizer__weight_decay=wanted),
        steps=_rates(case),
    )


def clipping(case: Case) -> Sign | None:
    """A threshold far below the usual norm: all updates are clipped, and only their direction is left."""
    factor, share, norm = case.value("curve/clip_factor"), case.value("curve/clipped_share"), case.value("curve/grad_norm")
    if factor is None or share is None or share < _limit("clipped_share") or factor < _limit("clip_factor_some"):
        return None
    symptoms = matching(case, TOO_SLOW)
    sure = "likely" if factor >= _limit("clip_factor_far") or symptoms else "possible"
    return sign(
        CLIPPING,
        sure,
        f"{share:.0%} of the updates are clipped: the usual gradient norm is {norm:.3g}, {times(factor)} the threshold "
        f"{case.settings.max_grad_norm:.3g}",
        hint="set the threshold to 1, or to about the usual norm",
        proof="train from the same start with the larger threshold, on the same rows",
        evidence={"clipped_share": share, "factor": factor, "grad_norm": norm, "symptoms": symptoms},
        severity="warning",
        patch=patch(case, optimizer__max_grad_norm=1.0),
        steps=span(case.log.get("train/grad_norm")),
    )


def _cause(
    name: str, find: Any, rank: int, explains: tuple[str, ...], needs: tuple[str, ...] = ("train/lr", "update_ratio/attention")
) -> Cause:
    return Cause(
        name=name, category="learning rate", find=find, rank=rank, explains=frozenset(explains), needs=needs, setting=True
    )


CAUSES = (
    _cause(ZERO, zero, 5,
           (*STILL, NOT_PLANNED, LOW, "trained too short", "tensors that do not learn", "adapter never updates")),
    _cause(NOT_PLANNED, not_planned, 30, ()),
    _cause(
        HIGH, too_high, 35,
        (*TOO_FAST, "not learning", "plateau", "no warm-up", "bad numbers in single rows", "no finite numbers", "fp16 overflow",
         "validation rises", "train-validation gap", CLIPPING, "slow learning", "batch too small", "trained too short",
         "too few updates", "likelihood displacement", "preferences over-optimised", "KL blow-up", "entropy collapse",
         "validation too noisy", "forgetting"),
    ),
    _cause(LOW, too_low, 40, (*STILL, "trained too short")),
    _cause(DECAY, weight_decay, 36, (*TOO_FAST, *STILL, "vanishing gradient")),
    _cause(CLIPPING, clipping, 55, (*STILL, "trained too short"), needs=("train/grad_norm",)),
    *SCHEDULES,
)  # fmt: skip
"""The causes in the learning rate."""
