"""Causes in what is measured: validation on known rows, no evaluation, a noisy one, losses that are added up wrongly."""

import math

import numpy as np

from fledge.diagnosis.case import Case
from fledge.diagnosis.cause import Cause, Sign
from fledge.diagnosis.causes.signs import number, other_setting, sign, span
from fledge.diagnosis.facts import TOKEN_KINDS
from fledge.diagnosis.thresholds import threshold

SEEN, NEVER, NOISY, SUMMED = (
    "validation on training data", "never evaluated", "validation too noisy", "logged loss summed over accumulation",
)  # fmt: skip


def _limit(name: str) -> float:
    return threshold("evaluation", name)


def seen(case: Case) -> Sign | None:
    """A validation loss that follows the training loss down to where rows are known by heart."""
    if case.value("data/validation_overlap") is not None or (case.value("curve/gaps") or 0) < _limit("evaluations"):
        return None
    drop, z = case.value("curve/border_drop_share") or 0.0, case.value("curve/border_z") or 0.0
    below, level, gap = (case.value(f"curve/{name}") for name in ("gaps_below_zero", "last_validation", "last_gap"))
    if below is None or not level or gap is None or (case.settings.dropout or 0.0) > 0:
        return None
    knows = drop >= _limit("drop_share") and z >= _limit("drop_z")
    far_below = gap <= -_limit("far_below") * level and below >= _limit("share_below")
    if not far_below and not (knows and gap <= _limit("no_gap") * level):
        return None
    both = knows and gap <= _limit("no_gap") * level and below >= _limit("share_below")
    why = (
        f"the training loss falls by {drop:.0%} where rows are read again, so they are known by heart, and the validation loss "
        f"is no higher ({gap:+.3f})"
        if knows
        else f"the validation loss is {-gap:.3f} below the training loss, in {below:.0%} of the evaluations, without dropout"
    )
    return sign(
        SEEN,
        "likely" if both else "possible",
        f"{why}: the validation rows may be training rows",
        hint="compare the validation rows with the training rows, and hold out rows that are in no source of the training data",
        proof="count the validation rows whose text stands in the training data",
        evidence={"last_gap": gap, "share_below": below, "border_drop_share": drop, "last_validation": level},
        severity="warning" if both else "info",
        alternatives={"validation rows are easier": "data/validation_overlap"},
        steps=span(case.log.get("eval/loss")),
    )


def never(case: Case) -> Sign | None:
    """A long stage without any evaluation."""
    steps, evaluations = case.value("curve/last_step") or 0, case.value("curve/evaluations")
    if evaluations or steps < _limit("steps_without") or any(name.startswith("eval/") for name in case.log.series):
        return None
    return sign(
        NEVER,
        "certain",
        f"in {steps:,.0f} updates nothing was evaluated: whether the model learns or remembers cannot be told from this log",
        hint="hold out some hundred rows, and measure their loss about ten times in a stage",
        proof="measure the loss of rows that were not trained on with the newest checkpoint",
        evidence={"updates": steps},
        severity="info",
        steps=span(case.log.get("train/loss")),
    )


def noisy(case: Case) -> Sign | None:
    """A validation loss that jumps up and down from one evaluation to the next."""
    jitter, level, turns = (
        case.value(f"curve/{name}") for name in ("validation_jitter", "last_validation", "validation_turns")
    )
    if jitter is None or not level or level <= 0 or turns is None or (case.value("curve/evaluations") or 0) < _limit("points"):
        return None
    share = jitter / level
    if share < _limit("jitter") or turns < _limit("turns"):
        return None
    return sign(
        NOISY,
        "possible",
        f"the validation loss jumps by {share:.1%} from one evaluation to the next: it can hardly choose a checkpoint",
        hint="evaluate the same rows each time, without dropout, and at least some hundred of them",
        proof="evaluate one checkpoint twice: the losses must be equal",
        evidence={"jitter": jitter, "level": level, "turns": turns},
        severity="info",
        alternatives={
            "dropout active in evaluation": "probe/evaluation_dropout",
            "learning rate too high": "the band of rates",
        },
        steps=span(case.log.get("eval/loss")),
    )


def summed(case: Case) -> Sign | None:
    """A training loss that is a multiple of what it can be: a sum over micro-batches instead of their mean, or the inverse."""
    times, found = case.settings.accumulation_steps, None
    if case.kind in TOKEN_KINDS and case.value("curve/loss_is_level"):
        measured = _measured(case)
        found = _against_measured(*measured) if measured else _against_validation(case) or _against_vocabulary(case)
    if found is None:
        return None
    factor, what = found
    is_measured = _measured(case) is not None
    fits = times is not None and times > 1 and abs(math.log(factor / times)) <= _limit("fit")
    inverse = times is not None and times > 1 and abs(math.log(factor * times)) <= _limit("fit")
    if not fits and not inverse and times is not None:
        return None
    if times is None and factor < 1:
        return None
    is_multiple = times is None and abs(factor - round(factor)) <= _limit("near_whole")
    known = f", and an update has {times:.0f} micro-batches" if times else f", as if an update had {factor:.0f} micro-batches"
    return sign(
        SUMMED,
        "likely" if fits or is_multiple or (inverse and is_measured and case.probed_step == 0) else "possible",
        f"the logged training loss is {factor:.2f} times {what}{known}: it is {'divided by' if inverse else 'summed over'} "
        "them",
        hint="divide the logged loss by the number of micro-batches, and look whether the gradient is added up in the same way",
        proof="measure the loss of a checkpoint on a few training rows and compare it with the logged one",
        evidence={"factor": factor, "accumulation_steps": times},
        severity="warning",
        alternatives={"accumulation normalised wrongly": "probe/accumulation_ratio"},
        steps=span(case.log.get("train/loss")),
    )


def _measured(case: Case) -> tuple[float, float] | None:
    """The loss of training rows by the doctor's own code and the logged one of the same weights: of the last ones, or of those
    before the first update. None where both may differ: dropout and smoothed targets are in the logged one alone, and rows that
    are known by heart are worse known when they are logged. A logged loss is that of one batch: of the first ones the median
    counts, where all lie on one side of the measured one."""
    measured, last, at = number(case, "probe/training_loss"), case.value("curve/last_step"), case.probed_step
    is_other = case.settings.dropout or other_setting(case, "label_smoothing", "label_smoothing_factor")
    if measured is None or measured < _limit("least_measured") or is_other or not last:
        return None
    if at == 0:
        losses = case.log.get("train/loss")
        first = np.array([]) if losses is None else losses.values[losses.steps <= _limit("first_batches")]
        is_one_side = len(first) >= _limit("fewest_batches") and abs(np.sign(first - measured).sum()) == len(first)
        return (measured, float(np.median(first))) if is_one_side else None
    is_last = case.value("plan/is_done") if at is None else at >= _limit("same_weights") * last
    logged = case.value("curve/last_loss")
    return (measured, logged) if is_last and logged else None


def _against_measured(measured: float, logged: float) -> tuple[float, str] | None:
    factor = logged / measured
    is_off = factor > 0 and abs(math.log(factor)) >= _limit("ratio")
    return (factor, "the loss of training rows, measured again") if is_off else None


def _against_validation(case: Case) -> tuple[float, str] | None:
    ratio = case.value("curve/validation_ratio")
    if not ratio or ratio <= 0 or (case.value("curve/gaps") or 0) < _limit("evaluations"):
        return None
    factor, bounds = 1 / ratio, case.value("curve/validation_ratios")
    is_steady = bounds is not None and bounds[0] > 0 and math.log(bounds[1] / bounds[0]) <= _limit("steady")
    starts_right = abs(math.log(case.value("plan/first_loss_share") or 2.0)) <= 0.5 * _limit("ratio")
    if starts_right or not is_steady:
        return None  # a gap that grows is one of learning by heart
    return (factor, "the validation loss") if abs(math.log(factor)) >= _limit("ratio") else None


def _against_vocabulary(case: Case) -> tuple[float, str] | None:
    share, step = case.value("plan/first_loss_share"), case.value("curve/first_step")
    if share is None or step is None or step > _limit("first_steps") or share < math.exp(_limit("ratio")):
        return None
    return share, "the loss of a uniform guess, ln(vocabulary)"


CAUSES = (
    Cause(name=SUMMED, category="evaluation", find=summed, rank=10,
          explains=frozenset({"high level", "divergence", "train-validation gap", "validation on training data",
                              "logged loss is wrong", "slow learning", "trained too short"})),
    Cause(name=SEEN, category="evaluation", find=seen, rank=50, needs=("data/validation_overlap", "eval/loss")),
    Cause(name=NOISY, category="evaluation", find=noisy, rank=70, needs=("eval/loss",)),
    Cause(name=NEVER, category="evaluation", find=never, rank=90),
)  # fmt: skip
"""The causes in what is measured."""
