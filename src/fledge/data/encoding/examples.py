"""Examples: token sequences with loss weights that fit the context, and the configuration of how items become examples."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fledge.data.parsing.items import Item
from fledge.data.row_events import RowEvent
from fledge.recipe.schema import AugmentConfig

TokenSequence = tuple[np.ndarray, np.ndarray]
"""Tokens int32 [n] and loss weights float32 [n]. A weight belongs to the token at its position *as a target*, so the first
token's never counts."""
Example = tuple[TokenSequence, ...]
"""The sequences of one example: as many as its format has, in the format's order."""

BATCH_ITEMS, BATCH_CHARACTERS = 1000, 4_000_000


@dataclass(frozen=True)
class Encoded:
    """The examples of one item, and the events about its row; without an example, there is an event "dropped". `label` and
    `margin`: of all its examples, in formats whose examples have one."""

    examples: tuple[Example, ...]
    events: tuple[RowEvent, ...] = ()
    label: bool | None = None
    margin: float | None = None


@dataclass(frozen=True, kw_only=True)
class EncodingConfig:
    """The settings of encoding.

    A sequence of n tokens gives n − 1 positions, so n ≤ `max_seq_len` + 1. Items with fewer than `min_tokens` are dropped.
    `max_prompt_length` and `max_completion_length`: most tokens of a prompt and of a completion behind it; None: no own limit.
    """

    max_seq_len: int
    truncation: Literal["keep_recent", "keep_start", "split"]
    train_on_turns: Literal["all", "last"]
    min_tokens: int
    augment: AugmentConfig
    seed: int
    max_prompt_length: int | None = None
    max_completion_length: int | None = None

    def is_too_long(self, prompt_length: int) -> bool:
        """Whether a prompt has more tokens than its own limit."""
        return self.max_prompt_length is not None and prompt_length > self.max_prompt_length

    def limit(self, prompt_length: int) -> int:
        """The most tokens of a sequence with a prompt of this length."""
        most = self.max_seq_len + 1
        return most if self.max_completion_length is None else min(most, prompt_length + self.max_completion_length)


def prompt_length(weights: np.ndarray) -> int:
    """Number of tokens before the first one with weight, which a completion begins with."""
    return int(np.flatnonzero(weights)[0])


def dropped(reason: str, detail: str) -> Encoded:
    """The encoding of an item without examples, with the event "dropped"."""
    return Encoded((), (RowEvent("dropped", reason, detail.encode(errors="replace").decode()),))


NOT_UNICODE = dropped("not valid Unicode", "a lone surrogate has no UTF-8 form")


def item_batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Lists of the items, in order, each with at most BATCH_ITEMS items and about BATCH_CHARACTERS characters."""
    batch: list[Item] = []
    size = 0
    for item in items:
        batch.append(item)
        size += sum(map(len, item.texts()))
        if len(batch) == BATCH_ITEMS or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
