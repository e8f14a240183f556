"""Causes in the targets of the loss: what is predicted, how losses are added up, whether answers belong to their prompts."""

from typing import Any

from fledge.diagnosis.case import Case
from fledge.diagnosis.cause import Cause, Sign
from fledge.diagnosis.causes.consequences import BREAKS, BY_HEART, FAULTY_ANSWERS, LEARNS_LITTLE
from fledge.diagnosis.causes.signs import (
    above,
    as_number,
    at_most,
    below,
    is_flat,
    number,
    other_setting,
    patch,
    probed_updates,
    sign,
    span,
    strongest,
)
from fledge.diagnosis.causes.supervision import SUPERVISION
from fledge.diagnosis.thresholds import threshold
from fledge.findings import Confidence

PREDICTING = frozenset({"pretrain", "sft"})
NEXT = 1
"""The place of the token that is to be predicted, counted from the newest token that the model reads."""

NOT_SHIFTED = "targets not shifted"
SHIFTED_TWICE = "targets shifted twice"
ACCUMULATION = "accumulation normalised wrongly"
WRONG_PROMPTS = "answers paired with wrong prompts"
NOISY = "noisy answers"
LOGGED_LOSS = "logged loss is wrong"
SMOOTHED = "label smoothing too strong"

FEW_ANSWERS = ("largest_answer_share", "identity_share", "duplicate_share")
"""Shares of examples whose answers say little of their prompts."""


def _limit(name: str) -> float:
    return threshold("targets", name)


def offsets(value: Any) -> tuple[float, float, float] | None:
    """The losses at offsets 0, 1 and 2 from a list or a mapping; None if they are not three numbers."""
    if isinstance(value, dict):
        value = [value.get(place, value.get(str(place))) for place in range(3)]
    if not isinstance(value, (list, tuple)) or len(value) < 3:
        return None
    first, second, third = (as_number(one) for one in value[:3])
    return None if first is None or second is None or third is None else (first, second, third)


def _learned_offset(case: Case) -> tuple[int, Confidence] | None:
    """The offset whose token the model predicts best, if it is not the next one, and how sure that is."""
    losses, base = offsets(case.value("probe/loss_at_offsets")), offsets(case.value("probe/base_loss_at_offsets"))
    if losses is None:
        return None
    best = losses.index(min(losses))
    lead = losses[NEXT] - losses[best]
    if best == NEXT or lead < _limit("offset_lead"):
        return None
    if base is not None and base[best] - losses[best] < _limit("offset_learned"):
        return None  # the start model was like that: fresh weights with a tied head repeat the token that they read
    return best, "certain" if lead >= _limit("offset_lead_certain") and base is not None else "likely"


def _wrong_offset(case: Case, wrong: int) -> tuple[Confidence, str] | None:
    """How sure it is that the trainer's targets stand at the offset `wrong`, and what shows it."""
    for name, place in (("data/batch_shift", "the batches of the loader"), ("probe/shift_gradient", "the trainer's own loss")):
        shift = number(case, name)
        if shift is not None and round(shift) == wrong:
            return "certain", f"the targets of {place} are {wrong} places behind the token that is read, and 1 would be right"
        if shift == NEXT and name == "probe/shift_gradient":
            return None  # the trainer's own code is right, whatever the model has learned before
    learned = _learned_offset(case)
    if learned is None or learned[0] != wrong:
        return None
    losses = offsets(case.value("probe/loss_at_offsets")) or (0.0, 0.0, 0.0)
    said = " / ".join(f"{loss:.2f}" for loss in losses)
    return learned[1], f"the loss of the tokens 0 / 1 / 2 places on is {said} nats/token, and the minimum must be at 1"


def _offset_evidence(case: Case) -> dict[str, Any]:
    names = ("data/batch_shift", "probe/shift_gradient", "probe/loss_at_offsets", "probe/base_loss_at_offsets")
    return {name: case.value(name) for name in names}


def not_shifted(case: Case) -> Sign | None:
    """The token that is read is the token that is to be predicted."""
    found = _wrong_offset(case, 0)
    if found is None:
        return None
    return sign(
        NOT_SHIFTED,
        found[0],
        f"the targets are not shifted: {found[1]}; the model learns to repeat what it reads, and its loss falls to nothing",
        hint="shift the labels by one token, in the collator or in the loss, once",
        proof="measure the loss at the offsets 0, 1 and 2 after some updates: the minimum must be at 1",
        evidence=_offset_evidence(case),
    )


def shifted_twice(case: Case) -> Sign | None:
    """The targets are those of the token after the next one."""
    found = _wrong_offset(case, 2)
    if found is None:
        return None
    return sign(
        SHIFTED_TWICE,
        found[0],
        f"the targets are shifted twice: {found[1]}; the model learns to leave a token out",
        hint="shift the labels once: where the model's loss shifts them, the collator must not (labels = input_ids)",
        proof="measure the loss at the offsets 0, 1 and 2 after some updates: the minimum must be at 1",
        evidence=_offset_evidence(case),
    )


def accumulation(case: Case) -> Sign | None:
    """Micro-batches give another gradient than the whole batch."""
    ratio, cosine = number(case, "probe/accumulation_ratio"), number(case, "probe/accumulation_cosine")
    off = None if ratio is None else abs(ratio - 1)
    turned = None if cosine is None else 1 - cosine
    confidence = strongest(above("targets", "accumulation_off", off), above("targets", "accumulation_turned", turned))
    if "router/max_load" in case.log.series and confidence != "certain":
        return None  # the router's losses are means of each micro-batch, so that small differences are as they should be
    if confidence is None:
        return None
    told = [f"its norm is {ratio:.3f} times that of the whole batch" if ratio is not None else ""]
    told.append(f"the cosine of both is {cosine:.4f}" if cosine is not None else "")
    return sign(
        ACCUMULATION,
        confidence,
        f"the gradient of micro-batches is not that of the whole batch: {' and '.join(one for one in told if one)}",
        hint="divide the sum of the losses of all tokens of an update by their number; not each micro-batch by its own number "
        "(num_items_in_batch in Hugging Face's Trainer from 4.46 on)",
        proof="compare the gradient of B micro-batches of one row with that of one of B rows: norm ratio and cosine must be 1",
        evidence={
            "probe/accumulation_ratio": ratio,
            "probe/accumulation_cosine": cosine,
            "accumulation_steps": case.settings.accumulation_steps,
        },
        severity="info" if _never_accumulates(case) else "error",
    )


def _never_accumulates(case: Case) -> bool:
    return case.settings.accumulation_steps == 1 and case.settings.processes == 1


def _has_few_answers(case: Case) -> bool:
    """Whether so many answers are alike that they need no prompt."""
    return max(number(case, f"data/{name}") or 0.0 for name in FEW_ANSWERS) >= _limit("equal_answers")


def _unhelpful_prompts(case: Case) -> tuple[Confidence, str] | None:
    """What a model shows of answers whose own prompts are of no help, for all of them or for many."""
    gain, helped, answer = (number(case, f"probe/{name}") for name in ("answer_gain", "answers_helped", "answer_loss"))
    base, losses = number(case, "probe/base_answer_loss"), case.log.get("train/loss")
    if gain is None:
        return None
    some = below("targets", "helped", helped) if gain >= _limit("noise_gain") else None
    if some is not None:
        return some, f"own prompts make only {helped:.1%} of the answers likelier than other prompts do, and those by much"
    small = answer is not None and gain <= max(_limit("answer_gain"), _limit("answer_gain_share") * answer)
    learned = base is not None and answer is not None and base - answer >= _limit("answers_learned")
    if not small or not learned or (helped is not None and helped > _limit("helped_none")):
        return None
    done = (probed_updates(case) or 0) >= _limit("pairing_updates") and losses is not None and is_flat(losses)
    told = f"answers were learned (from {base:.2f} to {answer:.2f} nats/token), but another prompt serves as well ({gain:+.3f})"
    return ("likely" if done else "possible"), told


def wrong_prompts(case: Case) -> Sign | None:
    """Answers that share nothing with their own prompts, or were learned without any help of them."""
    if _has_few_answers(case):
        return None
    fit, found = number(case, "data/answer_fit_z"), _unhelpful_prompts(case)
    confidence = below("targets", "answer_fit", fit)
    helped = number(case, "probe/answers_helped")
    is_refuted = helped is not None and helped > _limit("helped_possible")  # they share no tokens, as in a translation
    if confidence is not None and (is_refuted or (number(case, "data/examples") or 0) < _limit("fit_examples")):
        confidence = "possible"
    if confidence is not None:
        told = f"answers share no more tokens with their own prompts than with others ({fit:+.1f} standard errors)"
        confidence = strongest(confidence, found[0] if found is not None else None)
        found = (confidence or "possible"), told if found is None else f"{told}, and {found[1]}"
    elif found is not None and fit is not None:
        found = (at_most("possible", found[0]) or "possible"), found[1]
    misplaced = number(case, "data/answers_misplaced")
    elsewhere = above("targets", "misplaced", misplaced)
    if misplaced is not None and elsewhere is not None and (found is None or found[0] == "possible"):
        told = f"{misplaced:.0%} of the answers that plainly belong to one question of the data stand with another one"
        found = elsewhere, told
    if found is None:
        return None
    names = ("answer_gain", "answers_helped", "answer_loss", "base_answer_loss", "base_answer_gain")
    return sign(
        WRONG_PROMPTS,
        found[0],
        f"answers may stand with wrong prompts: {found[1]}",
        hint="read ten pairs of prompt and answer as they stand in the training data; look for columns that were sorted, "
        "shuffled or joined separately",
        proof="train some updates on fifty pairs that were checked by hand: own prompts must lower the loss of answers",
        evidence={
            "data/answer_fit_z": fit,
            "data/answers_misplaced": misplaced,
            **{f"probe/{name}": number(case, f"probe/{name}") for name in names},
        },
        alternatives={"trained too short": "the slope of the loss: it still falls where training is only short"},
        steps=span(case.log.get("train/loss")),
    )


def noisy_answers(case: Case) -> Sign | None:
    """Tokens of answers that are others than the files hold, while prompts are as they should be."""
    answers, prompts = number(case, "data/answer_tokens_differ"), number(case, "data/prompt_tokens_differ")
    confidence = above("targets", "tokens_differ", answers)
    if answers is None or confidence is None or (prompts is not None and prompts >= _limit("tokens_differ_likely")):
        return None
    return sign(
        NOISY,
        confidence,
        f"{answers:.1%} of the tokens of answers are others than the training files hold: the model is taught noise",
        hint="decode some answers of the built data beside the rows of the files; look for augmentation, and for rows that "
        "were "
        "changed in place",
        proof="build the data again and train some updates both ways: the loss must fall further",
        evidence={"data/answer_tokens_differ": answers, "data/prompt_tokens_differ": prompts},
    )


def logged_loss(case: Case) -> Sign | None:
    """The logged validation loss is not what the same rows give by other code."""
    difference = number(case, "probe/logged_loss")
    losses = case.log.get("eval/loss")
    level = abs(float(losses.values[-1])) if losses is not None else None
    if difference is None:
        return None
    share = abs(difference) / max(level if level is not None else 1.0, _limit("least_level"))
    confidence = above("targets", "logged_loss", share)
    if confidence is None or other_setting(case, "label_smoothing", "label_smoothing_factor"):
        return None
    return sign(
        LOGGED_LOSS,
        confidence,
        f"the validation loss measured again differs from the logged one by {difference:+.3f} nats/token ({share:.1%})",
        hint="look at what the logged loss is divided by, which tokens it counts, and whether dropout is off while it is "
        "measured",
        proof="measure the loss of one validation row by hand and compare it with the trainer's",
        evidence={"probe/logged_loss": difference, "eval/loss": level},
        severity="warning",
        steps=span(losses),
    )


def smoothed(case: Case) -> Sign | None:
    """A label smoothing that keeps the model from being sure."""
    share = as_number(other_setting(case, "label_smoothing", "label_smoothing_factor"))
    confidence = above("targets", "smoothing", share)
    if share is None or confidence is None:
        return None
    return sign(
        SMOOTHED,
        confidence,
        f"label smoothing gives {share:.0%} of each target to other tokens: the model learns to be unsure of every token",
        hint="set label smoothing to 0; 0.1 is what is usual for translation",
        proof="train some updates with and without it and compare the validation loss, which is never smoothed",
        evidence={"label_smoothing": share},
        patch=patch(case, label_smoothing=0.0),
        severity="warning",
    )


OTHER_PLACES = frozenset({"end token never supervised", "mask off by one", "answers partly supervised"})
"""What masks look like where targets stand elsewhere."""

CAUSES = (
    *SUPERVISION,
    Cause(
        name=NOT_SHIFTED,
        category="targets",
        find=not_shifted,
        kinds=PREDICTING,
        explains=FAULTY_ANSWERS
        | OTHER_PLACES
        | {LOGGED_LOSS, "high level", "loss near zero", "model sees the future", "train-validation gap"},
        rank=1,
    ),
    Cause(
        name=SHIFTED_TWICE,
        category="targets",
        find=shifted_twice,
        kinds=PREDICTING,
        explains=FAULTY_ANSWERS | OTHER_PLACES | LEARNS_LITTLE | {LOGGED_LOSS, WRONG_PROMPTS},
        rank=1,
    ),
    Cause(
        name=ACCUMULATION,
        category="targets",
        find=accumulation,
        explains=BREAKS
        | {"clipping threshold too small", "learning rate too high", "logged loss summed over accumulation", "slow learning"},
        rank=20,
    ),
    Cause(
        name=WRONG_PROMPTS,
        category="targets",
        find=wrong_prompts,
        kinds=frozenset({"sft"}),
        explains=LEARNS_LITTLE | BY_HEART | {"answers repeat the prompt", "same answer to everything"},
        rank=25,
    ),
    Cause(
        name=NOISY,
        category="targets",
        find=noisy_answers,
        kinds=frozenset({"sft", "preference", "reward"}),
        explains=frozenset(
            {"template differs in serving", "high level", "plateau", "train-validation gap", "validation rises"}
        ),
        needs=("data/answer_tokens_differ",),
        rank=45,
    ),
    Cause(
        name=SMOOTHED,
        category="targets",
        find=smoothed,
        kinds=PREDICTING,
        explains=LEARNS_LITTLE | {LOGGED_LOSS, "logged loss summed over accumulation"},
        setting=True,
        rank=36,
    ),
    Cause(
        name=LOGGED_LOSS,
        category="evaluation",
        find=logged_loss,
        kinds=PREDICTING,
        needs=("probe/logged_loss",),
        rank=70,
    ),
)
"""The causes in the targets, those of supervision first."""
