"""Statistics that a build does not need and that only the items give, before they are tokenized: near duplicates that are
kept, and lengths before truncation. The build is not changed."""

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
    """Number of a source's rows that nearly duplicate an earlier row of the stage, and the first few as examples:
    (FILE:LINE, FILE:LINE of the earlier row, Jaccard overlap)."""

    count: int = 0
    examples: tuple[tuple[str, str, float], ...] = ()


@dataclass(frozen=True)
class Measured:
    """Measurements of the kept items of each source, by the number of the source in the plan.

    `threshold`: Jaccard overlap from which rows are near duplicates. `near`: None if the recipe drops near duplicates.
    `tokens`: length of each item's longest sequence before truncation, int64 [items]; empty if sequences are never cut."""

    threshold: float
    near: dict[int, NearDuplicates] | None
    tokens: dict[int, np.ndarray]


def measure(collected: CollectedRows, tokenizer: Tokenizer, progress: Progress) -> Measured:
    """Measure the kept items. Call it before `encode`, after which a run removes the items."""
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
    """Kept rows whose exact Jaccard overlap with an earlier row is at least `threshold`, by source; nothing is dropped."""
    kept = _KeptItems(collected)
    if not len(kept):
        return {}
    item_signatures = np.concatenate([signatures(*shingles(texts)) for texts in _chunks(kept.texts(), CHUNK)])
    pairs: defaultdict[int, list[tuple[int, int, float]]] = defaultdict(list)
    for row, first, overlap in find_near_duplicates(item_signatures, threshold, kept.text):
        pairs[kept.source(row)].append((row, first, overlap))

    def examples(pairs: list[tuple[int, int, float]]) -> tuple[tuple[str, str, float], ...]:
        return tuple((kept.location(row), kept.location(first), overlap) for row, first, overlap in pairs[:EXAMPLES_KEPT])

    return {source: NearDuplicates(len(matches), examples(matches)) for source, matches in pairs.items()}


def measure_tokens(collected: CollectedRows, tokenizer: Tokenizer) -> dict[int, np.ndarray]:
    """Length in tokens of each kept item's longest sequence, before truncation, by source: int64 [items]."""
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
    """The kept items of all shards of the training sources, as one sequence."""

    def __init__(self, collected: CollectedRows) -> None:
        build = collected.build
        self.shards = [ShardItems.of(build, shard) for shard in collected.plan.shards_of("train")]
        self.masks = [build.keep_mask(items.shard) > 0 for items in self.shards]
        self.inside = [np.flatnonzero(mask) for mask in self.masks]
        self.starts = np.concatenate(([0], np.cumsum([len(kept) for kept in self.inside]))).astype(np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _locate(self, index: int) -> tuple[ShardItems, int]:
        """The shard of an item, and its index in the shard."""
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
