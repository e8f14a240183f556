"""Causes in the data itself: copies, sources, order, cuts, and how much there is."""

from typing import Any

from fledge.diagnosis.case import Case
from fledge.diagnosis.cause import Cause, Sign
from fledge.diagnosis.causes.batch import of_longer_rows
from fledge.diagnosis.causes.consequences import BREAKS, BY_HEART, NO_ENDS
from fledge.diagnosis.causes.signs import (
    above,
    as_number,
    at_most,
    below,
    beyond_chance,
    number,
    other_setting,
    patch,
    sign,
    strongest,
)
from fledge.diagnosis.facts import TOKEN_KINDS
from fledge.diagnosis.thresholds import threshold
from fledge.findings import Confidence

ANSWERED = frozenset({"sft", "preference", "kto"})
CUT = frozenset({"sft", "preference", "kto", "reward"})
FROM_WEIGHTS = frozenset({"pretrain", "sft"})

DUPLICATED = "duplicated data"
SWAMPED = "one source swamps the rest"
IDENTITY = "identity rows dominate"
NOT_SHUFFLED = "data not shuffled"
EQUAL_ANSWERS = "answers all equal"
OVERLAP = "validation rows in training data"
CUT_ANSWERS = "context cuts answers"
REFUSED = "longer than the context"  # in the error of a run whose rows cannot be used
OUTSIDE = "tokens outside of the vocabulary"
TOO_LITTLE = "too little data for the model"


def _limit(name: str) -> float:
    return threshold("data", name)


def _gap(case: Case) -> float | None:
    """How much higher the loss is on validation rows than on training rows, as a share; None if it was not measured."""
    train, validation = number(case, "probe/training_loss"), number(case, "probe/validation_loss")
    if train is None or validation is None or train <= 0:
        return None
    return validation / train - 1


def duplicated(case: Case) -> Sign | None:
    """Examples that are copies of earlier ones; or repeated text, more sure in plain text, and where the
    model knows its training rows better than others."""
    copies, repeats, gap = number(case, "data/duplicate_share"), number(case, "data/repeated_ngrams"), _gap(case)
    confidence = above("data", "duplicates", copies)
    by_heart = above("data", "gap", gap) if case.kind in TOKEN_KINDS else None  # elsewhere a loss says little of texts
    known = strongest(by_heart, above("data", "plain_text", number(case, "data/target_share")))
    confidence = strongest(confidence, at_most(known or "possible", above("data", "repeated_text", repeats)))
    if confidence is None:
        return None
    seen = [f"{copies:.1%} of the examples are copies of earlier ones" if copies else ""]
    if above("data", "repeated_text", repeats) is not None:
        seen.append(f"{repeats:.1%} of the stretches of 13 tokens stood in another example before")
    return sign(
        DUPLICATED,
        confidence,
        f"the data repeats itself: {', and '.join(one for one in seen if one)}; an epoch teaches the same rows again and again",
        hint="drop copies before training (exact_duplicates, near_duplicates), and count epochs over what is left",
        evidence={"data/duplicate_share": copies, "data/repeated_ngrams": repeats, "validation above training": gap},
        patch=patch(case, data__clean__exact_duplicates=True, data__clean__near_duplicates=_limit("near_duplicates")),
        alternatives={"too many epochs": "data/duplicate_share: 0 where only epochs repeat the rows"},
        proof="train both ways for equally many updates, and compare the loss on validation rows that are in neither",
    )


def swamped(case: Case) -> Sign | None:
    """Nearly all examples come from one of several sources: information where it is drawn no more often than its rows, as
    beside a source that is small on purpose."""
    share, rows = number(case, "data/largest_source_share"), number(case, "data/largest_source_rows")
    drawn = share / rows if share is not None and rows else None
    is_drawn_more = drawn is not None and drawn >= _limit("drawn_more")
    confidence = above("data", "largest_source", share)
    if not is_drawn_more:
        confidence = at_most("possible", confidence)
    if share is not None and share >= _limit("half_of_all"):
        confidence = strongest(confidence, above("data", "drawn", drawn))
    if share is None or confidence is None:
        return None
    often = "" if drawn is None or rows is None else f", which has {rows:.1%} of the rows"
    return sign(
        SWAMPED,
        confidence,
        f"{share:.1%} of the examples come from one of several sources{often}: what the others teach is hardly seen",
        severity="warning" if is_drawn_more else "info",
        hint="give each source its share of the tokens (token_fraction of the sources), or repeat the small ones",
        evidence={"data/largest_source_share": share, "data/largest_source_rows": rows},
        alternatives={"the sources are meant to weigh so": "the shares that were planned"},
        proof="train with even shares and compare the validation loss of each source",
    )


def identity(case: Case) -> Sign | None:
    """Rows that say who the model is are so many that unrelated prompts are answered so."""
    share, answers = number(case, "data/identity_share"), number(case, "probe/identity_answers")
    confidence = above("data", "identity", share)
    if share is None or confidence is None:
        return None
    if answers is not None:
        said = above("answers", "identity", answers)
        confidence = at_most("possible", confidence) if said is None else strongest(confidence, at_most("likely", said))
    told = "" if answers is None else f"; {answers:.1%} of unrelated prompts are answered so"
    return sign(
        IDENTITY,
        confidence or "possible",
        f"{share:.1%} of the answers in the data say who the model is{told}",
        hint="keep rows on the model's identity below a few percent (max_rows of their source), and mix them with other rows",
        evidence={"data/identity_share": share, "probe/identity_answers": answers},
        proof="train with a tenth of these rows and count the unrelated prompts that are answered with the identity",
    )


def not_shuffled(case: Case) -> Sign | None:
    """Neighbours in training order are alike in length or source, far beyond chance."""
    correlation, errors = number(case, "data/order_correlation"), number(case, "data/order_z")
    in_file = number(case, "data/file_order_correlation")
    if correlation is None or errors is None:
        return None
    confidence = above("data", "order", correlation) if errors >= _limit("order_z") else None
    what = (
        f"examples that follow each other are alike: the correlation of neighbours in length or source is {correlation:.2f}, "
        f"{errors:.0f} standard deviations from that of a shuffled order"
    )
    if confidence is None and (confidence := above("data", "file_order", in_file)) is not None:
        what = f"examples are read in the order of their files: the correlation of both orders is {in_file:.2f}"
    if confidence is None:
        return None
    is_meant = bool(other_setting(case, "group_by_length", "curriculum"))
    return sign(
        NOT_SHUFFLED,
        "possible" if is_meant else confidence,
        what,
        severity="info" if is_meant else "error",
        hint="shuffle the rows before training, over all files and sources, anew in each epoch",
        evidence={
            "data/order_correlation": correlation,
            "data/order_z": errors,
            "data/file_order_correlation": in_file,
        },
        alternatives={"rows are grouped by length, as set": "the settings of the sampler"} if is_meant else {},
        proof="train the same rows in a shuffled order: the loss must be smoother and the validation loss lower",
    )


def equal_answers(case: Case) -> Sign | None:
    """One and the same answer stands in much of the data: information where the other answers are few as well, as those of a
    classification, and a model that was asked does not give one of them more often than the data do."""
    share = number(case, "data/largest_answer_share")
    confidence = above("data", "largest_answer", share)
    if share is None or confidence is None:
        return None
    given, others = number(case, "probe/equal_answers"), number(case, "data/frequent_other_answers")
    has_classes = others is not None and others >= _limit("few_classes")
    if has_classes or (given is not None and above("answers", "equal_answers", given) is None):
        confidence = at_most("possible", confidence) or confidence
    is_as_taught = has_classes and (given is None or not beyond_chance(given, share))
    few = f"; {others:.1%} of the others have one of a few frequent answers too" if has_classes else ""
    return sign(
        EQUAL_ANSWERS,
        confidence,
        f"{share:.1%} of the examples have one and the same answer{few}",
        severity="info" if is_as_taught else "error",
        hint="keep a few of the examples with this answer; look whether a column was filled with one value by mistake",
        evidence={"data/largest_answer_share": share, "data/frequent_other_answers": others, "probe/equal_answers": given},
        alternatives={"there are few classes of answers, as there should be": "the list of the commonest answers"},
        proof="train with at most one in a hundred of these examples and count the different answers",
    )


def overlap(case: Case) -> Sign | None:
    """Validation examples that are training examples."""
    share, gap = number(case, "data/validation_overlap"), _gap(case)
    confidence = above("data", "overlap", share)
    if share is None or confidence is None:
        return None
    return sign(
        OVERLAP,
        confidence,
        f"{share:.1%} of the validation examples are training examples too: the validation loss says little about new rows",
        hint="draw the validation rows first and drop them, and copies of them, from the training rows (decontaminate)",
        evidence={"data/validation_overlap": share, "validation above training": gap},
        patch=patch(case, data__clean__decontaminate=True),
        proof="evaluate on rows that are not in the training data and compare both losses",
    )


def cut_answers(case: Case) -> Sign | None:
    """Examples that were cut to the context, or that were refused because their prompts alone do not fit."""
    share, context, ends = number(case, "data/truncated_share"), case.settings.context, number(case, "data/ends_present")
    to = "the context" if context is None else f"the context of {context:,.0f} tokens"
    text = case.value("curve/crash") or ""
    confidence: Confidence | None
    if REFUSED in text:  # no row, or no validation row, is left
        confidence, said = "certain", f"prompts alone are longer than {to}, so that no row is left: {text[:160]}"
        evidence = {"text": text[:300], "context": context}
    else:
        confidence = above("data", "truncated", share)
        if share is None or confidence is None:
            return None
        lost = "" if ends is None or ends >= _limit("whole") else f", and only {ends:.1%} of the answers still have their end"
        said = f"{share:.1%} of the examples are cut to {to}{lost}"
        evidence = {"data/truncated_share": share, "data/ends_present": ends, "context": context}
    return sign(
        CUT_ANSWERS,
        confidence,
        said,
        hint="raise the longest sequence (max_seq_len, max_length, cutoff_len), or leave long examples out",
        evidence=evidence,
        patch=_longer_context(case),
        proof="train with a context in which nine of ten examples fit and count the sampled answers that end themselves",
    )


def _longer_context(case: Case) -> dict[str, Any] | None:
    """Twice the context, or as much of it as the model has positions for, with as many tokens in an update; fresh weights can
    have more positions. None where trained weights have no more."""
    context, positions = case.settings.context, as_number(other_setting(case, "max_position_embeddings"))
    if not context:
        return None
    wanted, more = 2 * int(context), dict[str, Any]()
    if positions is not None and wanted > positions:
        if case.settings.initial == "fresh":
            more = {"model.max_position_embeddings": wanted}
        elif positions <= context:
            return None
        else:
            wanted = int(positions)
    longer = patch(case, data__max_seq_len=wanted)
    return None if longer is None else {**longer, **of_longer_rows(case, wanted / context), **more}


def outside(case: Case) -> Sign | None:
    """Token ids that the model has no row for."""
    largest, rows = number(case, "data/max_token_id"), case.settings.vocab_size
    if largest is None or rows is None or largest < rows:
        return None
    return sign(
        OUTSIDE,
        "certain",
        f"the data has the token {largest:.0f}, and the model only rows for 0 to {rows - 1:.0f}",
        hint="take the tokenizer that belongs to the model, or give the embedding a row for each token of the tokenizer",
        evidence={"data/max_token_id": largest, "vocab_size": rows, "data/vocab_size": number(case, "data/vocab_size")},
        proof="the largest token id of the data must be below the rows of the embedding",
    )


def too_little(case: Case) -> Sign | None:
    """Fresh weights far beyond what the training data can teach, however often it is read."""
    examples, length = number(case, "data/examples"), number(case, "data/mean_length")
    settings, copies = case.settings, number(case, "data/duplicate_share") or 0.0
    is_fresh = settings.initial == "fresh"
    if examples is None or length is None or not settings.parameters or not is_fresh:
        return None
    tokens = examples * length * (1 - copies)
    ratio = tokens / settings.parameters
    confidence = below("data", "tokens_per_parameter", ratio)
    if confidence is None:
        return None
    return sign(
        TOO_LITTLE,
        confidence,
        f"the data has {tokens:,.0f} different tokens for {settings.parameters:,.0f} fresh weights ({ratio:.3g} to one): the "
        "model can only learn the rows by heart",
        severity="warning",
        hint="use far more data, a smaller model, or start from a trained model",
        evidence={"tokens": tokens, "parameters": settings.parameters, "data/duplicate_share": copies},
        alternatives={"too many epochs": "the validation loss at the end of each epoch"},
        proof="train a model of half the width on the same data: its validation loss must not be higher",
    )


CAUSES = (
    Cause(
        name=DUPLICATED,
        category="data",
        find=duplicated,
        explains=BY_HEART | {EQUAL_ANSWERS, TOO_LITTLE, "answers repeat themselves", "validation on training data"},
        setting=True,
        rank=22,
    ),
    Cause(name=SWAMPED, category="data", find=swamped, needs=("data/largest_source_share",), rank=40),
    Cause(
        name=IDENTITY,
        category="data",
        find=identity,
        kinds=ANSWERED,
        explains=frozenset(
            {DUPLICATED, EQUAL_ANSWERS, SWAMPED, "identity in unrelated answers", "loss near zero", "same answer to everything"}
        ),
        needs=("data/identity_share",),
        rank=20,
    ),
    Cause(
        name=NOT_SHUFFLED,
        category="data",
        find=not_shuffled,
        explains=BREAKS | {"forgetting", "same order in every epoch", "sawtooth", "train-validation gap", "validation rises"},
        needs=("data/order_correlation", "data/order_z"),
        rank=26,
    ),
    Cause(
        name=EQUAL_ANSWERS,
        category="data",
        find=equal_answers,
        kinds=ANSWERED,
        explains=frozenset({DUPLICATED, "loss near zero", "same answer to everything"}),
        needs=("data/largest_answer_share",),
        rank=21,
    ),
    Cause(
        name=OVERLAP,
        category="data",
        find=overlap,
        explains=frozenset({"validation on training data"}),
        needs=("data/validation_overlap",),
        rank=21,
    ),
    Cause(
        name=CUT_ANSWERS,
        category="data",
        find=cut_answers,
        kinds=CUT,
        explains=NO_ENDS | {"answers partly supervised", "end token missing", "stopped by an error"},
        needs=("data/truncated_share",),
        setting=True,
        rank=11,
    ),
    Cause(
        name=OUTSIDE,
        category="data",
        find=outside,
        explains=frozenset({"high level", "not a number", "stopped by an error"}),
        needs=("data/max_token_id",),
        rank=4,
    ),
    Cause(
        name=TOO_LITTLE,
        category="data",
        find=too_little,
        kinds=FROM_WEIGHTS,
        explains=BY_HEART,
        needs=("data/examples", "data/mean_length"),
        rank=48,
    ),
)
"""The causes in the data."""
