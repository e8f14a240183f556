"""What is wrong with the answers of a model: told as causes where nothing nearer the root explains them."""

import math

from fledge.diagnosis.case import Case
from fledge.diagnosis.cause import Cause, Sign
from fledge.diagnosis.causes.matching import matching
from fledge.diagnosis.causes.signs import above, at_most, below, beyond_chance, number, probed_updates, sign
from fledge.diagnosis.thresholds import threshold
from fledge.findings import Confidence

ANSWERED = frozenset({"sft", "preference", "kto", "grpo"})
TUNED = ANSWERED

NEVER_END = "answers never end"
CUT = "answers cut by the token limit"
PARROT = "answers repeat the prompt"
LOOPS = "answers repeat themselves"
GREEDY = "greedy decoding loops"
ONE_ANSWER = "same answer to everything"
FORGETTING = "forgetting"
IDENTITY = "identity in unrelated answers"

ASK_AGAIN = "answer the same prompts with the changed model and count again"


def _limit(name: str) -> float:
    return threshold("answers", name)


def _of_a_trained_model(case: Case, confidence: Confidence | None) -> Confidence | None:
    """A confidence, weakened where the log covers too few updates for answers to be good."""
    done = probed_updates(case)
    is_short = done is not None and done < _limit("enough_updates")
    return at_most("possible", confidence) if is_short else confidence


def _ends_are_learned_too(case: Case) -> bool:
    """Whether ends are taught, and about as likely as the other tokens of answers: the model has learned little of either."""
    probability, loss = number(case, "probe/end_probability"), number(case, "probe/answer_loss")
    taught = [number(case, f"data/ends_{name}") for name in ("present", "supervised")]
    if probability is None or loss is None or any(one is None or one < _limit("ends_taught") for one in taught):
        return False
    return probability >= _limit("ends_beside_others") * math.exp(-loss)


def never_end(case: Case) -> Sign | None:
    """Few sampled answers end themselves, and the end token is unlikely where answers end."""
    ended, probability = number(case, "probe/ended"), number(case, "probe/end_probability")
    confidence = _of_a_trained_model(case, below("answers", "ended", ended))
    if ended is None or confidence is None or (probability is not None and probability >= _limit("end_probability")):
        return None
    if _ends_are_learned_too(case):
        confidence = "possible"
    known = "" if probability is None else f"; where answers end, the end token has a probability of {probability:.3f}"
    return sign(
        NEVER_END,
        confidence,
        f"only {ended:.1%} of sampled answers end themselves{known}",
        hint="look at the end tokens of the training data first: present, supervised, not cut; then train longer",
        proof=ASK_AGAIN,
        evidence={
            "probe/ended": ended,
            "probe/base_ended": number(case, "probe/base_ended"),
            "probe/end_probability": probability,
            "data/ends_present": number(case, "data/ends_present"),
            "data/ends_supervised": number(case, "data/ends_supervised"),
        },
        alternatives={
            "end token never supervised": "data/ends_supervised",
            "end token missing": "data/ends_present",
            "trained too short": "the slope of the loss",
            CUT: "probe/end_probability",
        },
    )


def cut(case: Case) -> Sign | None:
    """Few sampled answers end themselves, though the model knows where answers end."""
    ended, probability = number(case, "probe/ended"), number(case, "probe/end_probability")
    confidence = at_most("likely", below("answers", "ended", ended))
    if (number(case, "data/answer_tokens") or 0.0) > _limit("long_answers"):
        confidence = at_most("possible", confidence)  # the doctor itself samples no more tokens
    if ended is None or confidence is None or probability is None or probability < _limit("end_probability"):
        return None
    return sign(
        CUT,
        _of_a_trained_model(case, confidence) or "possible",
        f"only {ended:.1%} of sampled answers end themselves, though the end token has a probability of {probability:.3f} "
        "where "
        "answers end: they are cut before, or decoding does not know the end token",
        hint="let answers be longer, and give the decoder the end token of the template (eos_token_id of "
        "generation_config.json)",
        proof="answer the same prompts with four times the tokens: most answers must end",
        evidence={"probe/ended": ended, "probe/end_probability": probability},
        severity="warning",
        alternatives={"template differs in serving": "data/template_differs", LOOPS: "probe/repetition"},
    )


def parrot(case: Case) -> Sign | None:
    """Answers repeat the prompt, more than those of the start model."""
    share, before = number(case, "probe/prompt_copy"), number(case, "probe/base_prompt_copy")
    rise = None if share is None else share - (before or 0.0)
    confidence = _of_a_trained_model(case, above("answers", "prompt_copy", rise))
    if share is None or confidence is None:
        return None
    if before is None:
        confidence = at_most("possible", confidence) or "possible"
    told = "" if before is None else f", and {before:.1%} of those of the start model"
    return sign(
        PARROT,
        confidence,
        f"{share:.1%} of sampled answers repeat the prompt{told}",
        hint="look at the mask of prompts and at the template of serving; then at the number of tokens that were trained",
        proof=ASK_AGAIN,
        evidence={"probe/prompt_copy": share, "probe/base_prompt_copy": before},
        alternatives={
            "prompt not masked": "data/prompt_supervised_share",
            "trained too short": "tokens for each parameter, and the slope of the loss",
            "template differs in serving": "data/template_differs",
        },
    )


def loops(case: Case) -> Sign | None:
    """Sampled answers repeat themselves, more than those of the start model."""
    share, before = number(case, "probe/repetition"), number(case, "probe/base_repetition")
    rise = None if share is None else share - (before or 0.0)
    confidence = _of_a_trained_model(case, above("answers", "repetition", rise))
    if share is None or confidence is None:
        return None
    if before is None:
        confidence = at_most("possible", confidence) or "possible"
    told = "" if before is None else f"; {before:.1%} in those of the start model"
    return sign(
        LOOPS,
        confidence,
        f"{share:.1%} of the stretches of four tokens in sampled answers are repetitions{told}",
        hint="look whether answers end at all, and whether rows are repeated in the data; then at the number of epochs",
        proof=ASK_AGAIN,
        evidence={"probe/repetition": share, "probe/base_repetition": before, "probe/ended": number(case, "probe/ended")},
        alternatives={
            NEVER_END: "probe/end_probability",
            "duplicated data": "data/duplicate_share",
            "too many epochs": "the validation loss at the end of each epoch",
        },
    )


def greedy(case: Case) -> Sign | None:
    """Greedy answers loop, and sampled ones do not: decoding is the cause, and nothing is said against the training."""
    share, sampled = number(case, "probe/greedy_repetition"), number(case, "probe/repetition")
    if share is None or sampled is None or sampled > _limit("sampled_repetition"):
        return None
    confidence = _of_a_trained_model(case, above("answers", "greedy_repetition", share))
    if confidence is None:
        return None
    if below("answers", "ended", number(case, "probe/ended")) is not None:
        confidence = "possible"  # what has not learned to end loops in any way of decoding
    return sign(
        GREEDY,
        confidence,
        f"{share:.1%} of the stretches of four tokens in greedy answers are repetitions, and {sampled:.1%} in sampled ones: "
        "the "
        "decoding is the cause, not the training",
        hint="sample with a temperature of about 0.7 and a repetition penalty of about 1.1",
        proof="answer the same prompts both ways and compare the repetitions",
        evidence={"probe/greedy_repetition": share, "probe/repetition": sampled},
        severity="info",
    )


def one_answer(case: Case) -> Sign | None:
    """Different prompts get one and the same answer, more of them than the data's own share of one answer lets expect."""
    share = number(case, "probe/equal_answers")
    confidence = _of_a_trained_model(case, above("answers", "equal_answers", share))
    if share is None or confidence is None:
        return None
    own = number(case, "data/largest_answer_share")
    if own is not None and not beyond_chance(share, own):
        return None
    return sign(
        ONE_ANSWER,
        confidence,
        f"{share:.1%} of sampled answers to different prompts are one and the same",
        hint="look for the commonest answer of the data and for rows on the identity; then train longer, on more varied rows",
        proof=ASK_AGAIN,
        evidence={"probe/equal_answers": share, "data/largest_answer_share": own},
        alternatives={
            "answers all equal": "data/largest_answer_share",
            "answers paired with wrong prompts": "probe/answer_gain",
            "trained too short": "the slope of the loss",
        },
    )


def forgetting(case: Case) -> Sign | None:
    """The text of an earlier stage became less likely: information where the stage itself goes well, since a small model that
    learns to answer unlearns to continue texts."""
    now, before = number(case, "probe/base_text_loss"), number(case, "probe/base_text_loss_before")
    if now is None or before is None or before <= 0 or now - before < _limit("forgotten_nats"):
        return None
    confidence = above("answers", "forgotten", now / before - 1)
    if confidence is None:
        return None
    return sign(
        FORGETTING,
        confidence,
        f"the loss on the text of an earlier stage rose from {before:.2f} to {now:.2f} nats/token",
        hint="mix some rows of the earlier stage into the data, lower the rate, train fewer epochs, or train an adapter",
        proof="train with a tenth of the earlier stage's rows and measure its text again",
        evidence={"probe/base_text_loss": now, "probe/base_text_loss_before": before},
        severity="warning" if matching(case, ("validation rises",)) else "info",
        alternatives={
            "learning rate too high": "the learning rate against the plan",
            "too many epochs": "epochs over the data",
        },
    )


def identity(case: Case) -> Sign | None:
    """Unrelated prompts are answered with who the model is."""
    share = number(case, "probe/identity_answers")
    confidence = _of_a_trained_model(case, above("answers", "identity", share))
    if share is None or confidence is None:
        return None
    return sign(
        IDENTITY,
        confidence,
        f"{share:.1%} of the answers to unrelated prompts say who the model is",
        hint="take fewer rows on the identity, and mix them with others; look at a system prompt that names it",
        proof=ASK_AGAIN,
        evidence={"probe/identity_answers": share, "data/identity_share": number(case, "data/identity_share")},
        alternatives={"identity rows dominate": "data/identity_share"},
    )


CAUSES = (
    Cause(
        name=NEVER_END,
        category="answers",
        find=never_end,
        kinds=ANSWERED,
        explains=frozenset({LOOPS, "answers cut", "completions truncated"}),
        needs=("probe/ended",),
        rank=75,
        is_effect=True,
    ),
    Cause(
        name=CUT,
        category="answers",
        find=cut,
        kinds=ANSWERED,
        needs=("probe/ended", "probe/end_probability"),
        rank=78,
        is_effect=True,
    ),
    Cause(
        name=PARROT,
        category="answers",
        find=parrot,
        kinds=ANSWERED,
        needs=("probe/prompt_copy",),
        rank=76,
        is_effect=True,
    ),
    Cause(
        name=LOOPS,
        category="answers",
        find=loops,
        kinds=ANSWERED,
        explains=frozenset({GREEDY}),
        needs=("probe/repetition",),
        rank=77,
        is_effect=True,
    ),
    Cause(
        name=GREEDY,
        category="answers",
        find=greedy,
        kinds=ANSWERED,
        setting=True,
        needs=("probe/greedy_repetition", "probe/repetition"),
        rank=80,
    ),
    Cause(
        name=ONE_ANSWER,
        category="answers",
        find=one_answer,
        kinds=ANSWERED,
        needs=("probe/equal_answers",),
        rank=76,
        is_effect=True,
    ),
    Cause(
        name=FORGETTING,
        category="answers",
        find=forgetting,
        kinds=TUNED,
        explains=frozenset({"too many epochs", "train-validation gap", "validation rises"}),
        needs=("probe/base_text_loss", "probe/base_text_loss_before"),
        setting=True,
        rank=36,
    ),
    Cause(
        name=IDENTITY,
        category="answers",
        find=identity,
        kinds=ANSWERED,
        explains=frozenset({ONE_ANSWER}),
        needs=("probe/identity_answers",),
        rank=73,
        is_effect=True,
    ),
)
"""The causes in answers."""
