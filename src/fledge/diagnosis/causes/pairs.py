"""Causes in the pairs of preferences, and in what the model gives up for them."""

from dataclasses import replace

from fledge.diagnosis.case import Case
from fledge.diagnosis.cause import Cause, Sign
from fledge.diagnosis.causes.consequences import LEARNS_LITTLE
from fledge.diagnosis.causes.signs import above, at_most, early, late, late_level, number, patch, sign, span, strongest
from fledge.diagnosis.thresholds import threshold
from fledge.findings import Confidence

COMPARED = frozenset({"preference", "reward"})
RELATIVE = frozenset({"preference", "kto"})

SWAPPED = "chosen and rejected swapped"
DISPLACED = "likelihood displacement"
LENGTH = "length bias in preferences"
BAD_PAIRS = "pairs equal or contradicting"


def _limit(name: str) -> float:
    return threshold("preferences", name)


def _start_prefers_rejected(case: Case) -> float | None:
    """By how many nats a token the rejected answers are likelier in the first updates; None where lengths are not logged."""
    names = ("train/logps/chosen", "train/lengths/chosen", "train/logps/rejected", "train/lengths/rejected")
    series = [case.log.get(name) for name in names]
    if any(one is None or one.steps[0] > _limit("first_steps") for one in series):
        return None
    few = int(_limit("first_points"))
    chosen, chosen_length, rejected, rejected_length = (float(one.values[:few].mean()) for one in series if one is not None)
    if chosen_length <= 0 or rejected_length <= 0:
        return None
    return rejected / rejected_length - chosen / chosen_length


def _is_below_half(case: Case, right: float) -> bool:
    """Whether the share of right pairs is below a half beyond what so few pairs may give by chance."""
    error = case.value("curve/accuracies_error")
    return error is None or right + _limit("reversed_errors") * error < 0.5


def swapped(case: Case) -> Sign | None:
    """The rejected answers are the better ones, or the loss prefers them."""
    wrong, slope = number(case, "data/wrong_side"), number(case, "probe/preference_loss_slope")
    accuracy, margins = case.log.get("train/rewards/accuracies"), late_level(case, "train/rewards/margins")
    right = late(accuracy) if accuracy is not None and len(accuracy) >= _limit("few_points") else None
    start = _start_prefers_rejected(case)
    found: tuple[Confidence, str] | None = None
    side = above("preferences", "wrong_side", wrong)
    if slope is not None and slope > _limit("no_effect"):
        found = "certain", f"the loss rises by {slope:.3g} for each nat that a chosen answer gains on the rejected one"
    elif wrong is not None and side is not None:
        found = side, f"{wrong:.1%} of the rejected answers are those that the fine-tuning data gives to the prompt"
    elif (
        right is not None
        and margins is not None
        and right <= _limit("accuracy_reversed")
        and margins < -_limit("flat_margin")
        and _is_below_half(case, right)
    ):
        found = "likely", f"only {right:.1%} of the pairs are right at the end of the log, and the margin is {margins:+.3f}"
    elif wrong is None and (sure := above("preferences", "start_prefers", start)) is not None:
        sure = "likely" if sure == "possible" and _follows_length_without_rule(case) else sure
        found = sure, f"the start model finds the rejected answers likelier by {start:.2f} nats/token"
    if found is None:
        return None
    return sign(
        SWAPPED,
        found[0],
        f"chosen and rejected answers seem to be swapped: {found[1]}",
        hint="read ten pairs as they stand in the training data; look at the names of the columns and at the sign of the loss",
        proof="score twenty pairs that were checked by hand: the chosen answer must become likelier than the rejected one",
        evidence={
            "data/wrong_side": wrong,
            "probe/preference_loss_slope": slope,
            "train/rewards/accuracies": right,
            "train/rewards/margins": margins,
            "rejected likelier at the start": start,
        },
        alternatives={"rejected answers are the model's own": "where the pairs come from"} if found[0] != "certain" else {},
        steps=span(accuracy),
    )


def _follows_length_without_rule(case: Case) -> bool:
    """Whether rewards follow the length of answers, though pairs were not chosen by it: what swapped pairs do whose better
    answers are the shorter ones."""
    longer = number(case, "data/chosen_longer_text")
    longer = number(case, "data/chosen_longer") if longer is None else longer
    is_rule = longer is None or above("preferences", "chosen_longer", longer) is not None
    bias = None if is_rule else length_bias(case)
    return bias is not None and bias.finding.confidence != "possible"


def displaced(case: Case) -> Sign | None:
    """Chosen answers become less likely together with the rejected ones (Razin et al. 2024, arXiv 2410.08847)."""
    chosen, rejected = late_level(case, "train/drift/chosen"), late_level(case, "train/drift/rejected")
    confidence: Confidence | None = None
    if chosen is not None and rejected is not None:
        confidence = above("preferences", "displaced", -chosen) if rejected < 0 else None
        what = f"the chosen answers by {-chosen:.2f} nats/token and the rejected ones by {-rejected:.2f}"
    else:
        confidence, what = _fallen(case)
    if confidence is None:
        return None
    return sign(
        DISPLACED,
        confidence,
        f"both answers become less likely: {what}; other answers than those of the pairs gain",
        hint="add the loss of the chosen answers (sft_loss_weight, rpo_alpha), lower the rate, raise beta, or train fewer "
        "updates",
        proof="train some updates both ways: chosen answers must not become less likely, at an equal accuracy of pairs",
        evidence={"train/drift/chosen": chosen, "train/drift/rejected": rejected},
        patch=patch(case, sft_loss_weight=_limit("sft_loss_weight")),
        severity="warning",
        alternatives={"learning rate too high": "the drift of the first updates", "beta too small": "the beta of the settings"},
        steps=span(case.log.get("train/drift/chosen"), case.log.get("train/logps/chosen")),
    )


def _fallen(case: Case) -> tuple[Confidence | None, str]:
    """How sure it is, by sums of log-probabilities alone, that both answers became less likely."""
    chosen, rejected = case.log.get("train/logps/chosen"), case.log.get("train/logps/rejected")
    if chosen is None or rejected is None or min(len(chosen), len(rejected)) < _limit("few_points"):
        return None, ""
    falls = [early(one) - late(one) for one in (chosen, rejected)]
    share = falls[0] / max(abs(early(chosen)), 1e-9)
    what = (
        f"the log-probability of chosen answers fell by {falls[0]:.1f} ({share:.0%}), that of rejected ones by {falls[1]:.1f}"
    )
    return (above("preferences", "fallen", share) if falls[1] > 0 else None), what


def length_bias(case: Case) -> Sign | None:
    """Rewards follow the length of answers."""
    longer, texts = number(case, "data/chosen_longer"), number(case, "data/chosen_longer_text")
    correlation = late_level(case, "train/length_correlation")
    shorter = late_level(case, "train/rewards/accuracies_shorter")
    confidence: Confidence | None = None
    told = []
    if correlation is not None and shorter is not None and shorter < _limit("accuracy_shorter"):
        confidence = above("preferences", "length_correlation", correlation)
        told = [
            f"margin and difference in length are correlated by {correlation:.2f}, and of the pairs whose chosen answer is the "
            f"shorter one only {shorter:.1%} are right"
        ]
    if longer is not None:
        confidence = strongest(confidence, at_most("possible", above("preferences", "chosen_longer", longer)))
        told.append(f"in {longer:.1%} of the pairs the chosen answer is the longer one")
    if texts is not None and (by_rule := above("preferences", "chosen_longer_text", texts)) is not None:
        confidence = strongest(confidence, by_rule)
        told.append(f"by its characters in {texts:.1%} of those read again, as if chosen by length")
    if confidence is None:
        return None
    found = sign(
        LENGTH,
        confidence,
        f"length may be learned in place of quality: {', and '.join(told)}",
        hint="add pairs whose chosen answer is the shorter one, or take a loss of means (sigmoid_norm, simpo)",
        proof="compare the accuracy on validation pairs whose chosen answer is the shorter one",
        evidence={
            "data/chosen_longer": longer,
            "data/chosen_longer_text": texts,
            "train/length_correlation": correlation,
            "train/rewards/accuracies_shorter": shorter,
        },
        severity="warning",
        steps=span(case.log.get("train/length_correlation")),
    )
    if above("preferences", "chosen_longer_text", texts) is not None:
        return found
    return replace(found, strength=_limit("weaker") * found.strength)  # swapped pairs have longer chosen answers too


def bad_pairs(case: Case) -> Sign | None:
    """Pairs that teach nothing, or the opposite of each other."""
    equal, against = number(case, "data/equal_pairs"), number(case, "data/pairs_contradicting")
    confidence = strongest(above("preferences", "equal_pairs", equal), above("preferences", "contradicting", against))
    if equal is None and _are_equally_likely(case):
        equal, confidence = 1.0, "likely"
    if confidence is None:
        return None
    told = [f"in {equal:.1%} of the pairs both answers are equal" if equal else ""]
    told.append(f"{against:.1%} of the prompts have pairs that contradict each other" if against else "")
    return sign(
        BAD_PAIRS,
        confidence,
        f"a part of the pairs cannot teach a preference: {', and '.join(one for one in told if one)}",
        hint="leave out pairs of equal answers and prompts whose pairs contradict each other, or keep the vote of the majority",
        proof="train both ways and compare the accuracy on validation pairs that were checked",
        evidence={"data/equal_pairs": equal, "data/pairs_contradicting": against},
    )


def _are_equally_likely(case: Case) -> bool:
    """Whether chosen and rejected answers have one and the same log-probability in the whole log."""
    chosen, rejected = case.log.get("train/logps/chosen"), case.log.get("train/logps/rejected")
    if chosen is None or rejected is None or len(chosen) != len(rejected) or len(chosen) < _limit("few_points"):
        return False
    return bool((abs(chosen.values - rejected.values) <= _limit("no_effect") * abs(chosen.values)).all())


PAIRS = (
    Cause(
        name=SWAPPED,
        category="preferences",
        find=swapped,
        kinds=COMPARED | RELATIVE,
        explains=frozenset({DISPLACED, LENGTH, "accuracy below a half", "margins flat"}),
        rank=7,
    ),
    Cause(
        name=BAD_PAIRS,
        category="preferences",
        find=bad_pairs,
        kinds=COMPARED,
        explains=LEARNS_LITTLE
        | {
            "accuracy below a half",
            "beta is zero",
            "duplicated data",
            "loss at ln 2",
            "loss constant",
            "margins flat",
            "reference moves with the policy",
            "vanishing gradient",
        },
        rank=25,
    ),
    Cause(
        name=LENGTH,
        category="preferences",
        find=length_bias,
        kinds=COMPARED,
        explains=frozenset({SWAPPED}),
        rank=6,
    ),
    Cause(
        name=DISPLACED,
        category="preferences",
        find=displaced,
        kinds=RELATIVE,
        explains=frozenset({"forgetting"}),
        setting=True,
        rank=50,
    ),
)
"""The causes in the pairs."""
