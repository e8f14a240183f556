"""Causes between template, tokenizer and model."""

from fledge.diagnosis.case import Case
from fledge.diagnosis.cause import Cause, Sign
from fledge.diagnosis.causes.consequences import FAULTY_ANSWERS
from fledge.diagnosis.causes.signs import above, count, number, sign
from fledge.diagnosis.thresholds import threshold

ANSWERED = frozenset({"sft", "preference", "kto", "reward", "grpo"})

DIFFERS = "template differs in serving"
SPLIT = "control tokens are split"
UNFIT = "tokenizer does not fit the model"


def differs(case: Case) -> Sign | None:
    """Prompts are rendered otherwise for answering than for training."""
    share = number(case, "data/template_differs")
    confidence = above("template", "differs", share)
    if share is None or confidence is None:
        return None
    return sign(
        DIFFERS,
        confidence,
        f"{share:.1%} of sampled conversations are rendered otherwise for answering than they were for training",
        hint="answer with the template of the training, byte for byte: the same system prompt, control tokens, line breaks and "
        "beginning of an answer",
        evidence={"data/template_differs": share},
        proof="answer the same prompts in both forms and compare the loss of the reference answers",
    )


def split(case: Case) -> Sign | None:
    """Control tokens that the template writes are no single tokens."""
    found = count(case, "data/control_tokens_split")
    if found is None or found[0] == 0:
        return None
    number_of, names = found
    named = f": {', '.join(names[:5])}" if names else ""
    return sign(
        SPLIT,
        "certain",
        f"the tokenizer splits {number_of} of the control tokens that the template writes, or does not know them{named}",
        hint="add them to the tokenizer as special tokens and give the embedding a row for each, or take the template of the "
        "model",
        evidence={"data/control_tokens_split": list(names) or number_of},
        proof="encode the template's text: each control token must be one id",
    )


def unfit(case: Case) -> Sign | None:
    """The tokenizer has more tokens than the model has rows, or the rows are mostly without a token."""
    tokens, largest = number(case, "data/vocab_size"), number(case, "data/max_token_id")
    rows, unused = case.settings.vocab_size, number(case, "probe/embedding_rows_unused")
    evidence = {
        "data/vocab_size": tokens,
        "data/max_token_id": largest,
        "vocab_size": rows,
        "probe/embedding_rows_unused": unused,
        "data/prompt_tokens_differ": number(case, "data/prompt_tokens_differ"),
    }
    confidence, message = above("template", "rows_unused", unused), ""
    if unused is not None:
        message = f"{unused:.1%} of the rows of the embedding belong to no token of the tokenizer: it may be another model's"
    if tokens is not None and rows is not None and tokens > rows:
        confidence, message = "certain", f"the tokenizer has {tokens:,.0f} tokens and the model only {rows:,.0f} rows for them"
    if tokens is not None and largest is not None and largest >= tokens:
        confidence = "certain"
        message = f"the data has the token {largest:.0f}, which the tokenizer of {tokens:,.0f} tokens cannot have written"
    others, texts = number(case, "data/prompt_tokens_differ"), number(case, "data/text_differs")
    if texts is not None and texts < threshold("template", "other_text"):
        others = None  # other tokens of the same text are not another tokenizer's
    if others is not None and (sure := above("template", "tokens_differ", others)) is not None:
        confidence = sure
        told = f"{others:.1%} of the tokens of prompts are others than the tokenizer of the run writes"
        message = f"{told}: the data was built by another one"
    if confidence is None:
        return None
    return sign(
        UNFIT,
        confidence,
        message,
        hint="build the data again with the tokenizer that is saved with the model",
        evidence=evidence,
        proof="decode some rows of the built data with the model's tokenizer and read them",
    )


CAUSES = (
    Cause(
        name=DIFFERS,
        category="template",
        find=differs,
        kinds=ANSWERED,
        explains=FAULTY_ANSWERS | {"checkpoint damaged"},
        needs=("data/template_differs",),
        rank=14,
    ),
    Cause(
        name=SPLIT,
        category="template",
        find=split,
        kinds=ANSWERED,
        explains=FAULTY_ANSWERS | {DIFFERS, "end token missing", "stopped by an error"},
        needs=("data/control_tokens_split",),
        rank=7,
    ),
    Cause(
        name=UNFIT,
        category="template",
        find=unfit,
        explains=FAULTY_ANSWERS
        | {SPLIT, DIFFERS, "high level", "noisy answers", "stopped by an error", "tokens outside of the vocabulary"},
        rank=3,
    ),
)
"""The causes between template, tokenizer and model."""
