"""Checks of tokens: doubled start tokens, tokens that the model or the tokenizer does not know."""

from collections.abc import Iterator

import numpy as np

from fledge.data.analysis.check_context import CheckContext, count_of_rows, first_event, source_finding
from fledge.data.encoding import control_tokens
from fledge.data.storage import ConcatenatedArrays
from fledge.findings import Finding

UNKNOWN = 0.01  # share of unknown tokens
OWN_HINT = "set data.parse_special_tokens to true to train them as tokens, or take them out of the texts"
FOREIGN_HINT = "take them out, or name them in tokenizer.special_tokens so that each is a single token"
RENDERED_HINT = (
    "these are conversations that were rendered as texts: give their turns as messages to an sft stage, which trains only the "
    "answers; or set data.parse_special_tokens to true to train every token"
)
CONTROL_TOKENS = {  # reason of the notice -> message, hint, and the share of rows above which it is a finding
    control_tokens.SPELLED_OUT: ("hold control tokens, which are spelled out as text", OWN_HINT, 0.0),
    control_tokens.FOREIGN: ("hold control tokens of another tokenizer, which this one spells out", FOREIGN_HINT, 0.01),
}


def doubled_start_token(stage: CheckContext) -> Iterator[Finding]:
    """Sequences begin with two equal control tokens: a template and something else both wrote one."""
    examples, doubled = stage.dataset.train.examples, _doubled_starts(stage)
    for source in stage.training_sources:
        sequences = examples.sequences_of(source.sequences.examples)
        concerned = sequences[doubled[sequences]]
        if len(concerned):
            first = int(concerned[0])
            token = stage.tokenizer.decode(examples.sequence(first)[0][:1].tolist())
            yield source_finding(
                check="start token",
                severity="error",
                message=f"{len(concerned):,} sequences begin with {token} twice",
                source=source.name,
                where=stage.sequence_location(first),
                hint="take it out of the chat template, or out of the rows' texts",
            )


def _doubled_starts(stage: CheckContext) -> np.ndarray:
    """Which sequences begin with the same control token twice: bool [S]."""
    examples = stage.dataset.train.examples
    assert isinstance(examples.tokens, ConcatenatedArrays)
    special = [number for number, token in stage.tokenizer.core.get_added_tokens_decoder().items() if token.special]
    doubled = np.diff(examples.offsets) > 1
    for array, start in zip(examples.tokens.arrays, examples.tokens.starts[:-1], strict=True):
        first, last = np.searchsorted(examples.offsets[:-1], [start, start + len(array)])
        sequences = first + np.flatnonzero(doubled[first:last])
        begins = examples.offsets[sequences] - start
        doubled[sequences] = (array[begins] == array[begins + 1]) & np.isin(array[begins], special)
    return doubled


def vocabulary(stage: CheckContext) -> Iterator[Finding]:
    """The data has a token that the model does not know."""
    vocab_size = stage.vocab_size
    largest = max((scan.largest for scan in stage.scans), default=0)
    if vocab_size is not None and largest >= vocab_size:
        yield Finding(
            check="vocabulary",
            severity="error",
            message=f"the data has token {largest:,}, but the model knows {vocab_size:,} tokens",
            hint="use the tokenizer that belongs to the model",
        )


def unknown_tokens(stage: CheckContext) -> Iterator[Finding]:
    """More than UNKNOWN of a source's tokens are the tokenizer's unknown token."""
    for number, source in enumerate(stage.training_sources):
        scans = [scan for scan in stage.scans if scan.source == number]
        count, size = sum(scan.unknown for scan in scans), sum(scan.size for scan in scans)
        if count > UNKNOWN * size:
            first = next(scan.first_unknown for scan in scans if scan.unknown)
            yield source_finding(
                check="unknown tokens",
                severity="error",
                message=f"{count:,} of {size:,} tokens ({count / size:.1%}) are unknown to the tokenizer",
                source=source.name,
                where=stage.sequence_location(first),
                hint="use a tokenizer that was trained on this language, or train one",
            )


def control_tokens_in_texts(stage: CheckContext) -> Iterator[Finding]:
    """Texts contain control tokens: of this tokenizer, spelled out unless the recipe parses them, or of another one."""
    for source in stage.training_sources:
        rows, noticed = source.statistics.rows, source.report.noticed
        rendered = noticed[control_tokens.RENDERED]
        for reason, (message, hint, share) in CONTROL_TOKENS.items():
            count = noticed[reason]
            if count <= share * rows:
                continue
            location, detail = first_event(source.report, reason)
            yield source_finding(
                check="control tokens",
                severity="warning",
                message=f"{count_of_rows(count, rows)} {message}: {detail}",
                source=source.name,
                where=location,
                hint=RENDERED_HINT if rendered > count / 2 else hint,
                patch=stage.patch("data.parse_special_tokens", True) if reason == control_tokens.SPELLED_OUT else None,
            )


def lossy_tokenizer(stage: CheckContext) -> Iterator[Finding]:
    """The tokenizer does not give a text back as it was, as those of encoders such as BERT."""
    problem = stage.tokenizer.round_trip_problem()
    if problem:
        yield Finding(
            check="round trip",
            severity="warning",
            message=problem,
            hint="a model can only write what its tokenizer can: use one of a generative model, or train one",
        )
