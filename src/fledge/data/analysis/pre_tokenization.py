"""A second look at the items, before they become tokens, for what no build needs to know: near duplicates that stay in, and
lengths before anything is cut. Nothing is changed by it."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fledge.data.build.build import CollectedRows
from fledge.data.build.shard_items import ShardItems
from fledge.data.cleaning.duplicates import find_near_duplicates, signatures
from fledge.data.cleaning.ngrams import shingles
from fledge.data.parsing.items import own_text
from fledge.tokenizer import Tokenizer

NEAR = 0.8  # Jaccard overlap from which rows count as near duplicates, where the recipe names no other
EXAMPLES_KEPT = 3
ANY_LENGTH = 2**40  # a context that nothing is longer than
CHUNK = 1000  # texts hashed together
Progress = Callable[[str], None]


@dataclass(frozen=True)
class NearDuplicates:
    """Rows of a source that overlap an earlier row of the stage, and the first of them: (row, earlier row, overlap)."""

    count: int = 0
    examples: tuple[tuple[str, str, float], ...] = ()


@dataclass(frozen=True)
class Measured:
    """What only the items tell. The keys are numbers of sources in the plan.

    `near`: None where the recipe drops near duplicates. `tokens`: of the longest sequence of each item, before any cut; empty
    where sequences are never cut."""

    threshold: float
    near: dict[int, NearDuplicates] | None
    tokens: dict[int, np.ndarray]


def measure(collected: CollectedRows, tokenizer: Tokenizer, progress: Progress) -> Measured:
    """Look at the items once more; call it before `encode`, after which a run removes them."""
    plan = collected.plan
    threshold, near, tokens = plan.data.clean.near_duplicates, None, {}
    if threshold is None:
        progress("looking for near duplicates …")
        threshold = NEAR
        near = measure_near(collected, threshold)
    if not plan.format.splits_documents:
        progress("measuring lengths …")
        tokens = measure_tokens(collected, tokenizer)
    return Measured(threshold, near, tokens)


def measure_near(collected: CollectedRows, threshold: float) -> dict[int, NearDuplicates]:
    """Rows that stay though they overlap an earlier one by at least `threshold` (true Jaccard); nothing is dropped."""
    kept = _KeptItems(collected)
    if not len(kept):
        return {}
    item_signatures = np.concatenate([signatures(*shingles(texts)) for texts in _chunks(kept.texts(), CHUNK)])
    pairs: defaultdict[int, list[tuple[int, int, float]]] = defaultdict(list)
    for row, first, overlap in find_near_duplicates(item_signatures, threshold, kept.text):
        pairs[kept.source(row)].append((row, first, overlap))

    def examples(pairs: list[tuple[int, int, float]]) -> tuple[tuple[str, str, float], ...]:
        return tuple((kept.location(row), kept.location(first), overlap) for row, first, overlap in pairs[:EXAMPLES_KEPT])

    return {source: NearDuplicates(len(found), examples(found)) for source, found in pairs.items()}


def measure_tokens(collected: CollectedRows, tokenizer: Tokenizer) -> dict[int, np.ndarray]:
    """Tokens of each item that stays, before anything is cut for the context: of the longest of its sequences."""
    build, plan = collected.build, collected.plan
    config = plan.format.encoding_config(plan.data, plan.seed)
    config = replace(config, max_seq_len=ANY_LENGTH, truncation="keep_recent")
    lengths: defaultdict[int, list[int]] = defaultdict(list)
    for shard in plan.shards_of("train"):
        items = ShardItems.of(build, shard).read(build.keep_mask(shard) > 0)
        for encoded in plan.format.encode(items, tokenizer, config):
            for example in encoded.examples:
                lengths[shard.source].append(max(len(tokens) for tokens, _ in example))
    return {source: np.asarray(values, dtype=np.int64) for source, values in lengths.items()}


class _KeptItems:
    """The items that stay, as one sequence over all shards of the training sources."""

    def __init__(self, collected: CollectedRows) -> None:
        build = collected.build
        self.shards = [ShardItems.of(build, shard) for shard in collected.plan.shards_of("train")]
        self.masks = [build.keep_mask(items.shard) > 0 for items in self.shards]
        self.inside = [np.flatnonzero(mask) for mask in self.masks]
        self.starts = np.concatenate(([0], np.cumsum([len(kept) for kept in self.inside]))).astype(np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _locate(self, index: int) -> tuple[ShardItems, int]:
        """The shard of an item, and its index there."""
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.shards[number], int(self.inside[number][index - int(self.starts[number])])

    def source(self, index: int) -> int:
        """Number of the source of an item."""
        return self._locate(index)[0].shard.source

    def location(self, index: int) -> str:
        """FILE:LINE of an item."""
        items, inside = self._locate(index)
        return items.location(inside)

    def text(self, index: int) -> str:
        """The own text of an item, read from disk."""
        items, inside = self._locate(index)
        return items.text(inside)

    def texts(self) -> Iterator[str]:
        """The own text of every item, in order."""
        for items, mask in zip(self.shards, self.masks, strict=True):
            for item in items.read(mask):
                yield own_text(item)


def _chunks(values: Iterable[Any], size: int) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for value in values:
        chunk.append(value)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
