"""Causes in what is supervised: which tokens of prompts, answers and ends carry loss weight."""

from fledge.diagnosis.case import Case
from fledge.diagnosis.cause import Cause, Sign
from fledge.diagnosis.causes.consequences import NO_ENDS, STANDS_STILL
from fledge.diagnosis.causes.signs import above, as_number, at_most, below, number, other_setting, sign, span, strongest
from fledge.diagnosis.thresholds import threshold

SUPERVISED = frozenset({"pretrain", "sft"})
PROMPTED = frozenset({"sft", "preference", "kto", "reward"})
ANSWERED = frozenset({"sft", "preference", "kto"})

PROMPT_NOT_MASKED = "prompt not masked"
MASK_OFF_BY_ONE = "mask off by one"
EVERYTHING_MASKED = "everything masked"
ANSWERS_PARTLY_SUPERVISED = "answers partly supervised"
END_NEVER_SUPERVISED = "end token never supervised"
END_MISSING = "end token missing"
PAD_HIDES_END = "pad token hides the end token"

COUNT_AGAIN = "decode the supervised tokens of a few examples: after the change they must be the answers and their end, no more"
TRAIN_AND_ASK = "train some updates with and without the change and count the sampled answers that end themselves"


def _limit(name: str) -> float:
    return threshold("targets", name)


def _mask_is_early(case: Case) -> bool:
    """Whether the last token of the prompt is supervised, and hardly another one of the prompt."""
    last, share = number(case, "data/last_prompt_token_supervised"), number(case, "data/prompt_supervised_share")
    return last is not None and last >= _limit("off_by_one") and (share is None or last >= _limit("edge_of_prompt") * share)


def _mask_is_late(case: Case) -> bool:
    """Whether the first token of answers is not supervised, though most others are."""
    first, share = number(case, "data/first_answer_token_supervised"), number(case, "data/answer_supervised_share")
    if first is None or share is None or share < _limit("off_by_one_answer"):
        return False
    return first <= (1 - _limit("off_by_one")) * share


def prompt_not_masked(case: Case) -> Sign | None:
    """Tokens of prompts carry loss weight; or, without the data, the loss of prompts fell as that of answers did."""
    share = number(case, "data/prompt_supervised_share")
    confidence = above("targets", "prompt_supervised", share)
    if share is None:
        return _prompts_were_learned(case)
    if confidence is None or _mask_is_early(case):
        return None
    return sign(
        PROMPT_NOT_MASKED,
        confidence,
        f"{share:.1%} of the tokens of prompts carry loss weight: the model learns to write prompts as well as answers",
        hint="give the tokens of prompts the label -100 or the weight 0 (completion_only_loss, train_on_inputs: false); in "
        "fledge an sft stage with prompt and answer in columns of their own does it",
        proof=COUNT_AGAIN,
        evidence={"data/prompt_supervised_share": share, "data/target_share": number(case, "data/target_share")},
    )


def _prompts_were_learned(case: Case) -> Sign | None:
    figures = ("probe/base_prompt_loss", "probe/prompt_loss", "probe/base_answer_loss", "probe/answer_loss")
    values = [number(case, name) for name in figures]
    base_prompt, prompt, base_answer, answer = values
    if base_prompt is None or prompt is None or base_answer is None or answer is None:
        return None
    prompts, answers = base_prompt - prompt, base_answer - answer
    if prompts < _limit("prompt_gain") or prompts < _limit("prompt_gain_share") * answers:
        return None
    return sign(
        PROMPT_NOT_MASKED,
        "possible",
        f"the loss of prompts fell by {prompts:.2f} nats/token and that of answers by {answers:.2f}: prompts may be trained "
        "too",
        hint="decode the supervised tokens of a few examples",
        proof=COUNT_AGAIN,
        evidence=dict(zip(figures, values, strict=True)),
        alternatives={"nothing is wrong, prompts are like answers": "data/prompt_supervised_share"},
    )


def mask_off_by_one(case: Case) -> Sign | None:
    """The last token of prompts is supervised, or the first of answers is not."""
    early, late = _mask_is_early(case), _mask_is_late(case)
    if not early and not late:
        return None
    last, first = number(case, "data/last_prompt_token_supervised"), number(case, "data/first_answer_token_supervised")
    told = [f"the last token of the prompt carries loss weight in {last:.1%} of answers" if early else ""]
    told.append(f"the first token carries loss weight in only {first:.1%} of answers" if late else "")
    what = " and ".join(one for one in told if one)
    return sign(
        MASK_OFF_BY_ONE,
        "certain",
        f"the mask of the loss is shifted by one token: {what}",
        hint="labels must be shifted once, inside the model's loss or in the collator, and the mask with them: weight[t] "
        "belongs to the token that is predicted",
        proof=COUNT_AGAIN,
        evidence={
            "data/last_prompt_token_supervised": last,
            "data/first_answer_token_supervised": first,
            "data/answer_supervised_share": number(case, "data/answer_supervised_share"),
            "data/ends_supervised": number(case, "data/ends_supervised"),
        },
    )


def everything_masked(case: Case) -> Sign | None:
    """No target carries weight, by the data or by the counts of the log."""
    share, answers = number(case, "data/target_share"), number(case, "data/answer_supervised_share")
    targets, lines = case.log.get("train/target_tokens"), case.log.get("train/tokens")
    none_logged = targets is not None and lines is not None and float(targets.values.max()) <= 0 < float(lines.values.max())
    least = min((one for one in (share, answers) if one is not None), default=None)
    confidence = strongest(below("targets", "supervised", least), below("targets", "answers_masked", answers))
    if none_logged:
        confidence = "certain"
    if confidence is None:
        return None
    seen = "the log counts no target token at all" if least is None or none_logged else f"only {least:.2%} of them do"
    return sign(
        EVERYTHING_MASKED,
        confidence,
        f"hardly any token carries loss weight: {seen}; there is nothing to learn from",
        hint="look for the text that marks the beginning of an answer: where a collator does not find it, all labels are -100; "
        "and whether a cut takes the answers away",
        proof=COUNT_AGAIN,
        evidence={"data/target_share": share, "data/answer_supervised_share": answers},
        steps=span(targets) if none_logged else None,
    )


def _lacking(case: Case) -> float | None:
    """The share of the tokens of answers that carry no weight, those beside that are the first of an answer or its end."""
    share, size = number(case, "data/answer_supervised_share"), number(case, "data/answer_tokens")
    if share is None:
        return None
    first, ends = number(case, "data/first_answer_token_supervised"), _hidden_ends(case)
    edges = (0.0 if first is None else max(0.0, 1 - first)) + (0.0 if ends is None else ends)
    return max(0.0, 1 - share - edges / max(1.0, size or _limit("answer_tokens")))


def answers_partly_supervised(case: Case) -> Sign | None:
    """A part of the tokens of answers carries no weight, more than their first tokens and ends."""
    share, lacking = number(case, "data/answer_supervised_share"), _lacking(case)
    confidence = above("targets", "answers_lacking", lacking)
    if share is None or confidence is None or other_setting(case, "train_on_turns") == "last":
        return None
    if below("targets", "supervised", share) is not None:
        return None
    return sign(
        ANSWERS_PARTLY_SUPERVISED,
        confidence,
        f"only {share:.1%} of the tokens of answers carry loss weight",
        hint="if only the last answers of conversations are to be trained, this is as it should be; else look at the mask of "
        "turns and at the length at which answers are cut",
        proof=COUNT_AGAIN,
        evidence={
            "data/answer_supervised_share": share,
            "data/answer_tokens": number(case, "data/answer_tokens"),
            "data/ends_supervised": number(case, "data/ends_supervised"),
            "data/truncated_share": number(case, "data/truncated_share"),
        },
        alternatives={"only the last answers are trained, as set": "the setting train_on_turns, or weights in the data"},
    )


def _hidden_ends(case: Case) -> float | None:
    """The share of the end tokens of answers that carry no weight; None where hardly any answer has one."""
    present, supervised = number(case, "data/ends_present"), number(case, "data/ends_supervised")
    if present is None or supervised is None or present < _limit("ends_present"):
        return None
    return min(1.0, max(0.0, 1 - supervised))


def _hidden_alone(case: Case) -> float | None:
    """The same, if ends carry weight more rarely than the other tokens of answers do."""
    hidden, share = _hidden_ends(case), number(case, "data/answer_supervised_share")
    if hidden is None or share is None or share <= 0:
        return hidden
    return min(hidden, max(0.0, 1 - (1 - hidden) / share))


def end_never_supervised(case: Case) -> Sign | None:
    """Answers have an end token, which carries no weight."""
    hidden = _hidden_alone(case)
    confidence = above("targets", "ends_hidden", hidden)
    if hidden is None or confidence is None:
        return None
    return sign(
        END_NEVER_SUPERVISED,
        confidence,
        f"{_hidden_ends(case):.1%} of the end tokens of answers carry no loss weight: the model is not taught to stop",
        hint="give the end token behind each answer loss weight: its label must be the token itself, not -100",
        proof=TRAIN_AND_ASK,
        evidence=_end_evidence(case),
        alternatives={PAD_HIDES_END: "the ids of pad and end token", MASK_OFF_BY_ONE: "data/last_prompt_token_supervised"},
    )


def pad_hides_end(case: Case) -> Sign | None:
    """The pad token is the end token, and ends carry no weight, or answers do not end where the data was not seen."""
    pad, end = as_number(other_setting(case, "pad_token_id")), as_number(other_setting(case, "eos_token_id"))
    if pad is None or pad != end:
        return None
    hidden, ended = _hidden_alone(case), number(case, "probe/ended")
    confidence = above("targets", "ends_hidden", hidden)
    if hidden is None and number(case, "data/ends_supervised") is None:
        confidence = at_most("possible", below("answers", "ended", ended))
    if confidence is None:
        return None
    seen = f"only {ended:.1%} of sampled answers end" if hidden is None else f"{hidden:.1%} of the ends carry no loss weight"
    return sign(
        PAD_HIDES_END,
        confidence,
        f"pad and end are the same token ({pad:.0f}), so that masking the padding masks the ends of answers: {seen}",
        hint="take another pad token than the end token, or mask the padding by the attention mask and not by the token's id",
        proof=TRAIN_AND_ASK,
        evidence={"pad_token_id": pad, "eos_token_id": end, "probe/ended": ended, **_end_evidence(case)},
        alternatives={END_NEVER_SUPERVISED: "data/ends_supervised with another pad token"} if confidence != "certain" else {},
    )


def end_missing(case: Case) -> Sign | None:
    """Answers without an end token; only possible where as many were cut."""
    present, cut = number(case, "data/ends_present"), number(case, "data/truncated_share") or 0.0
    missing = None if present is None else 1 - present
    confidence = above("targets", "ends_missing", missing)
    if missing is None or confidence is None:
        return None
    if cut >= missing:
        confidence = at_most("possible", confidence) or "possible"
    return sign(
        END_MISSING,
        confidence,
        f"{missing:.1%} of the answers are not followed by an end token: the model does not see where they end",
        hint="append the end token of the template to each answer (add_eos_token, or an end of turn in the chat template)",
        proof=TRAIN_AND_ASK,
        evidence={"data/truncated_share": cut, **_end_evidence(case)},
        alternatives={"context cuts answers": "data/truncated_share"} if cut else {},
    )


def _end_evidence(case: Case) -> dict[str, float | None]:
    return {
        name: number(case, name)
        for name in ("data/ends_present", "data/ends_supervised", "probe/end_probability", "probe/ended")
    }


SUPERVISION = (
    Cause(
        name=PROMPT_NOT_MASKED,
        category="targets",
        find=prompt_not_masked,
        kinds=PROMPTED,
        explains=frozenset({"answers repeat the prompt", "high level", "logged loss is wrong", "slow learning"}),
        rank=12,
    ),
    Cause(
        name=MASK_OFF_BY_ONE,
        category="targets",
        find=mask_off_by_one,
        kinds=PROMPTED,
        explains=frozenset({ANSWERS_PARTLY_SUPERVISED, END_NEVER_SUPERVISED, "high level", "logged loss is wrong"}) | NO_ENDS,
        rank=8,
    ),
    Cause(
        name=EVERYTHING_MASKED,
        category="targets",
        find=everything_masked,
        kinds=SUPERVISED | PROMPTED,
        explains=STANDS_STILL
        | NO_ENDS
        | {
            ANSWERS_PARTLY_SUPERVISED,
            END_NEVER_SUPERVISED,
            "adapter never updates",
            "logged loss is wrong",
            "loss near zero",
            "no finite numbers",
            "not a number",
            "bad numbers in single rows",
            "stopped by an error",
            "tensors that do not learn",
        },
        rank=2,
    ),
    Cause(
        name=ANSWERS_PARTLY_SUPERVISED,
        category="targets",
        find=answers_partly_supervised,
        kinds=PROMPTED,
        explains=NO_ENDS | {END_NEVER_SUPERVISED, "high level", "logged loss is wrong"},
        needs=("data/answer_supervised_share",),
        rank=30,
    ),
    Cause(
        name=PAD_HIDES_END,
        category="targets",
        find=pad_hides_end,
        kinds=ANSWERED,
        explains=NO_ENDS | {END_NEVER_SUPERVISED},
        rank=9,
    ),
    Cause(
        name=END_NEVER_SUPERVISED,
        category="targets",
        find=end_never_supervised,
        kinds=ANSWERED,
        explains=NO_ENDS,
        needs=("data/ends_present", "data/ends_supervised"),
        rank=10,
    ),
    Cause(
        name=END_MISSING,
        category="targets",
        find=end_missing,
        kinds=ANSWERED,
        explains=NO_ENDS | {"template differs in serving"},
        needs=("data/ends_present",),
        rank=10,
    ),
)
"""The causes in what is supervised."""
