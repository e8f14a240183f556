"""Checks of tokens: doubled start tokens, tokens that the model or the tokenizer does not know."""

from collections.abc import Iterator

import numpy as np

from fledge.data.analysis.check_context import CheckContext, source_finding
from fledge.data.storage import ConcatenatedArrays
from fledge.findings import Finding

UNKNOWN = 0.01  # share of unknown tokens


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
