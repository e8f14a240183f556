"""Causes in training on preferences: the objective, its reference and its beta; those of the pairs are in `pairs.py`."""

from typing import Any, Literal

from fledge.diagnosis.case import Case
from fledge.diagnosis.cause import Cause, Sign
from fledge.diagnosis.causes.consequences import BREAKS, BY_HEART, LEARNS_LITTLE, STANDS_STILL
from fledge.diagnosis.causes.objectives import acting_beta, first_point, loss_at_zero, loss_of
from fledge.diagnosis.causes.pairs import PAIRS
from fledge.diagnosis.causes.signs import above, at_most, below, early, late, late_level, number, patch, sign, span
from fledge.diagnosis.thresholds import threshold
from fledge.findings import Confidence

PREFERENCE = frozenset({"preference"})
REFERENCED = frozenset({"preference", "kto"})

CROSS_ENTROPY = "cross-entropy instead of preferences"
WRONG_REFERENCE = "wrong reference"
MOVING_REFERENCE = "reference moves with the policy"
NO_BETA = "beta is zero"
SMALL_BETA = "beta too small"
LARGE_BETA = "beta too large"
OVER_OPTIMISED = "preferences over-optimised"
SAME_AT_START = (
    "before the first update the loss of the pairs must be what it is for margins of 0 (ln 2 for DPO), and no margin may differ"
)


def _limit(name: str) -> float:
    return threshold("preferences", name)


def _off(case: Case) -> float | None:
    """How far the trainer's loss of the policy against itself is from what it has to be."""
    loss, expected = number(case, "probe/reference_loss"), loss_at_zero(case)
    return None if loss is None or expected is None else loss - expected


def _beta_has_no_effect(case: Case) -> bool:
    effect, slope = number(case, "probe/beta_effect"), number(case, "probe/preference_loss_slope")
    return any(one is not None and abs(one) <= _limit("no_effect") for one in (effect, slope))


def _ignores_margins(case: Case) -> bool:
    """Whether the loss is right where margins are 0, and does not change when chosen answers gain on rejected ones."""
    off, slope = _off(case), number(case, "probe/preference_loss_slope")
    is_right = off is not None and abs(off) < _limit("reference_off")
    return is_right and slope is not None and abs(slope) <= _limit("no_effect")


def _objective_evidence(case: Case) -> dict[str, Any]:
    names = ("reference_loss", "reference_loss_expected", "reference_margin", "reference_moved", "beta_effect")
    return {f"probe/{name}": number(case, f"probe/{name}") for name in (*names, "preference_loss_slope")}


def _is_cross_entropy(case: Case) -> Confidence | None:
    """How sure it is that the loss is the cross-entropy of the chosen answers."""
    off, expected = _off(case), loss_at_zero(case)
    if case.kind is not None and case.kind not in PREFERENCE:
        return None
    if off is not None:
        margin = number(case, "probe/reference_margin")
        is_right = margin is not None and abs(margin) < _limit("reference_margin")  # the reference: only the loss is wrong
        is_off = is_right and abs(off) >= _limit("reference_off")
        return "certain" if is_off or (abs(off) >= _limit("far_off") and _beta_has_no_effect(case)) else None
    loss, plain = case.log.get("train/loss"), case.log.get("train/sft_loss")
    first = first_point(case, "train/loss")
    if expected is None or loss is None or first is None or first[1] - expected < _limit("far_off"):
        return None
    if plain is not None and len(plain) == len(loss):
        worst = float(max(abs(loss.values - plain.values) / abs(plain.values).clip(1e-9)))
        if worst <= _limit("same_loss"):
            return "certain"
    chosen, margins = case.log.get("train/logps/chosen"), case.log.get("train/rewards/margins")
    if chosen is None or margins is None or len(chosen) < _limit("few_points"):
        return None
    rises = late(chosen) > early(chosen) and late(loss) < early(loss)
    return "likely" if rises and late(margins) < _limit("flat_margin") else None


def cross_entropy(case: Case) -> Sign | None:
    """The chosen answers are learned, and nothing is preferred."""
    confidence = _is_cross_entropy(case)
    if confidence is None:
        return None
    expected, first, measured = loss_at_zero(case), first_point(case, "train/loss"), number(case, "probe/reference_loss")
    value = measured if measured is not None else first[1] if first is not None else 0.0
    must = f"{expected:.3f}" if expected is not None else "ln 2"
    return sign(
        CROSS_ENTROPY,
        confidence,
        f"the loss is the cross-entropy of the chosen answers, not one of preferences: it starts at {value:.3f} and must start "
        f"at {must}; the rejected answers play no part",
        hint="give the loss the log-probabilities of both answers under policy and reference; look at loss_type and at which "
        "trainer class runs",
        proof=SAME_AT_START,
        evidence={**_objective_evidence(case), "first loss": first and first[1], "expected": expected},
        alternatives={} if confidence == "certain" else {WRONG_REFERENCE: "probe/beta_effect: 0 for cross-entropy"},
        steps=span(case.log.get("train/loss")),
    )


def _wrong_at_start(case: Case) -> tuple[Confidence, str] | None:
    """What shows, in the first logged step, that the policy does not begin as its reference."""
    loss, expected = first_point(case, "train/loss"), loss_at_zero(case)
    margin = first_point(case, "train/rewards/margins")
    if expected is None or margin is None:
        return None
    noise = _limit("dropout_noise") if case.settings.dropout else 1.0
    is_first = margin[0] <= 1
    confidence = above("preferences", "first_margin", abs(margin[1]) / noise)
    said = f"the margin of the first update is {margin[1]:+.3f} and must be 0"
    if confidence is None and loss is not None and is_first:
        confidence = above("preferences", "first_loss_off", abs(loss[1] - expected) / noise)
        confidence = confidence if case.settings.loss_type else at_most("possible", confidence)  # it may be another loss
        said = f"the loss of the first update is {loss[1]:.4f} and must be {expected:.4f}"
    if confidence is None:
        return None
    return (confidence, said) if is_first else ("possible", said)


def wrong_reference(case: Case) -> Sign | None:
    """The reference is not the model that the policy starts from, or there is none."""
    if _beta_has_no_effect(case) or _is_cross_entropy(case) is not None:
        return None
    off, margin, moved = _off(case), number(case, "probe/reference_margin"), number(case, "probe/reference_moved")
    found: tuple[Confidence, str] | None = None
    loss = loss_of(case)
    has_reference = loss is not None and loss.at_zero is not None
    if off is not None and abs(off) >= _limit("reference_off"):
        found = "certain", f"the loss of the policy against itself is {off:+.4f} off what it must be"
    elif has_reference and margin is not None and abs(margin) >= _limit("reference_margin"):
        found = "certain", f"the margin of the policy against itself is {margin:.3g} and must be 0"
    elif has_reference and moved is not None and abs(moved) >= _limit("reference_moved") and not _margins_are_zero(case):
        found = "certain", f"the reference differs from the start model by up to {abs(moved):.3g} nats/token"
    elif has_reference and off is None and margin is None:
        found = _wrong_at_start(case)
    if found is None:
        return None
    return sign(
        WRONG_REFERENCE,
        found[0],
        f"the reference is not the model that the training starts from: {found[1]}",
        hint="the reference must be the start model itself, with the same template, in evaluation mode and with the adapter "
        "switched off",
        proof=SAME_AT_START,
        evidence={**_objective_evidence(case), "first margin": (first_point(case, "train/rewards/margins") or (0, None))[1]},
        alternatives={CROSS_ENTROPY: "probe/beta_effect: 0 for cross-entropy"} if off is None else {},
        steps=span(case.log.get("train/rewards/margins")),
    )


def _margins_are_zero(case: Case) -> bool:
    """Whether no logged margin differs from 0, over enough updates with a learning rate."""
    margins, rates = case.log.get("train/rewards/margins") or case.log.get("train/rewards/chosen"), case.log.get("train/lr")
    if margins is None or len(margins) < _limit("few_points") or margins.steps[-1] < _limit("enough_updates"):
        return False
    if rates is not None and float(rates.values.max()) <= 0:
        return False
    return float(abs(margins.values).max()) <= _limit("zero_margin")


def moving_reference(case: Case) -> Sign | None:
    """Margins stay 0 although the weights change: the reference is the policy."""
    gradients, moved = late_level(case, "train/grad_norm"), number(case, "probe/reference_moved")
    has_moved, is_flat = moved is not None and abs(moved) >= _limit("reference_moved"), _margins_are_zero(case)
    ignored, has_gradient = _ignores_margins(case), gradients is not None and gradients > _limit("no_effect")
    if case.settings.beta == 0 or not (ignored or (is_flat and (has_moved or has_gradient))):
        return None
    told = ["the loss stays the same when chosen answers gain on rejected ones" if ignored else ""]
    told.append("all margins are 0 to the last update" if is_flat else "")
    told.append(f"the reference differs from the start model by up to {moved:.3g} nats/token" if has_moved and is_flat else "")
    told.append("gradients are not 0" if is_flat and has_gradient else "")
    said = ", and ".join(one for one in told if one)
    return sign(
        MOVING_REFERENCE,
        "certain" if is_flat and (has_moved or (ignored and has_gradient)) else "likely",
        f"the reference moves with the policy: {said}",
        hint="keep a copy of the start model as reference, or switch the adapter off for it; a second name for the same module "
        "is "
        "no copy",
        proof="after twenty updates the margins must differ from 0 and the loss from ln 2",
        evidence={**_objective_evidence(case), "train/grad_norm": gradients},
        alternatives={} if has_moved else {NO_BETA: "the gradient norm, which is 0 where beta is"},
        steps=span(case.log.get("train/rewards/margins")),
    )


def no_beta(case: Case) -> Sign | None:
    """Beta is 0, so that no margin counts."""
    beta, gradients = case.settings.beta, late_level(case, "train/grad_norm")
    still = gradients is not None and gradients == 0
    confidence: Confidence | None = None
    if loss_of(case) is not None and beta == 0:
        confidence = "certain"
    elif still and (_ignores_margins(case) or _margins_are_zero(case)):
        confidence = "likely"
    if confidence is None:
        return None
    return sign(
        NO_BETA,
        confidence,
        "beta is 0: margins have no effect on the loss, which stays where it starts",
        hint="set beta to about 0.1 for sums of log-probabilities (DPO), 2 for means of them (SimPO)",
        proof="after twenty updates the margins must differ from 0 and the loss from ln 2",
        evidence={**_objective_evidence(case), "beta": beta, "train/grad_norm": gradients},
        patch=patch(case, beta=_usual_beta(case)),
        alternatives={} if confidence == "certain" else {MOVING_REFERENCE: "probe/reference_moved"},
        steps=span(case.log.get("train/rewards/margins")),
    )


def _usual_beta(case: Case) -> float | None:
    loss = loss_of(case)
    return _limit(f"beta_usual_{loss.beta_of}") if loss is not None and loss.beta_of else None


def _beta_outside(case: Case, side: Literal["small", "large"]) -> tuple[Confidence, float, str] | None:
    """How sure it is that the beta that acts is too small or too large for its loss, its value, and where it was read."""
    loss, read = loss_of(case), acting_beta(case)
    if loss is None or not loss.beta_of or read is None or read[0] <= _limit("no_effect"):
        return None
    judge = below if side == "small" else above
    confidence = judge("preferences", f"beta_{side}_{loss.beta_of}", read[0])
    return None if confidence is None else (confidence, *read)


def small_beta(case: Case) -> Sign | None:
    """A beta so small that nothing holds the policy near its reference."""
    found = _beta_outside(case, "small")
    if found is None:
        return None
    drift = late_level(case, "train/drift/chosen")
    confidence, beta, where = found
    return sign(
        SMALL_BETA,
        confidence,
        f"beta is {beta:.3g} (by {where}): margins hardly count, so the loss falls little and nothing holds the model near its "
        "start",
        hint=f"set beta to about {_usual_beta(case):g}",
        proof="train some updates with the usual beta and compare the accuracy on validation pairs and the drift",
        evidence={"beta": case.settings.beta, "acting beta": beta, "train/drift/chosen": drift},
        patch=patch(case, beta=_usual_beta(case)),
        severity="warning",
    )


def large_beta(case: Case) -> Sign | None:
    """A beta so large that the loss is done before the policy has moved."""
    found = _beta_outside(case, "large")
    if found is None:
        return None
    confidence, beta, where = found
    margins = late_level(case, "train/rewards/margins")
    return sign(
        LARGE_BETA,
        confidence,
        f"beta is {beta:.3g} (by {where}): a difference of a fraction of a nat satisfies the loss, so the model hardly moves "
        "from "
        "its start, or jumps",
        hint=f"set beta to about {_usual_beta(case):g}",
        proof="train some updates with the usual beta and compare the accuracy on validation pairs and the drift",
        evidence={"beta": case.settings.beta, "acting beta": beta, "train/rewards/margins": margins},
        patch=patch(case, beta=_usual_beta(case)),
        severity="warning",
    )


def over_optimised(case: Case) -> Sign | None:
    """Margins far beyond what satisfies the loss, while validation gets worse."""
    margin, validation = late_level(case, "train/rewards/margins"), case.log.get("eval/loss")
    confidence = above("preferences", "margin", margin)
    if margin is None or confidence is None:
        return None
    rise = None
    if validation is not None and len(validation) > 1:
        rise = float(validation.values[-1] / max(float(validation.values.min()), 1e-9) - 1)
    drift = late_level(case, "train/drift/chosen")
    worse = (rise is not None and rise >= _limit("validation_rise")) or (drift is not None and drift <= -_limit("far_drift"))
    if not worse:
        confidence = at_most("possible", confidence) or "possible"
    told = "" if rise is None else f", and the validation loss is {rise:.1%} above its lowest value"
    return sign(
        OVER_OPTIMISED,
        confidence,
        f"the margins have grown to {margin:.1f}: the preferences are learned long since and the model goes on away from its "
        f"start{told}",
        hint="train fewer updates or with a lower rate, keep the best checkpoint, or raise beta",
        proof="compare the accuracy on validation pairs and the answers of this checkpoint with those of an earlier one",
        evidence={"train/rewards/margins": margin, "validation rise": rise, "train/drift/chosen": drift},
        patch=patch(case, select_checkpoint="best"),
        severity="warning",
        alternatives={"learning rate too high": "the drift of the first updates", LARGE_BETA: "the beta of the settings"},
        steps=span(case.log.get("train/rewards/margins")),
    )


CAUSES = (
    Cause(
        name=CROSS_ENTROPY,
        category="preferences",
        find=cross_entropy,
        kinds=PREFERENCE,
        explains=frozenset({NO_BETA, "accuracy below a half", "high level", "logged loss is wrong", "margins flat"}),
        rank=5,
    ),
    Cause(
        name=WRONG_REFERENCE,
        category="preferences",
        find=wrong_reference,
        kinds=REFERENCED,
        explains=BREAKS
        | {"accuracy below a half", "chosen and rejected swapped", "high level", "likelihood displacement", "margins flat"},
        rank=6,
    ),
    Cause(
        name=MOVING_REFERENCE,
        category="preferences",
        find=moving_reference,
        kinds=REFERENCED,
        explains=STANDS_STILL | {"accuracy below a half", "likelihood displacement"},
        rank=6,
    ),
    Cause(
        name=NO_BETA,
        category="preferences",
        find=no_beta,
        kinds=REFERENCED,
        explains=STANDS_STILL
        | {MOVING_REFERENCE, "accuracy below a half", "adapter never updates", "tensors that do not learn"},
        setting=True,
        rank=4,
    ),
    Cause(
        name=SMALL_BETA,
        category="preferences",
        find=small_beta,
        kinds=REFERENCED,
        explains=LEARNS_LITTLE | {"forgetting", "likelihood displacement", "loss at ln 2", "margins flat"},
        setting=True,
        rank=30,
    ),
    Cause(
        name=LARGE_BETA,
        category="preferences",
        find=large_beta,
        kinds=REFERENCED,
        explains=BREAKS | {OVER_OPTIMISED, "high level", "loss near zero", "train-validation gap", "validation rises"},
        setting=True,
        rank=30,
    ),
    *PAIRS,
    Cause(
        name=OVER_OPTIMISED,
        category="preferences",
        find=over_optimised,
        kinds=PREFERENCE,
        explains=BY_HEART | {"forgetting", "likelihood displacement"},
        setting=True,
        rank=45,
    ),
)
"""The causes in training on preferences."""
