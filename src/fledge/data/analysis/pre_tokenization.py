"""A second look at the items, before they become tokens, for what no build needs to know: near duplicates that stay in, and
lengths before anything is cut. Nothing is changed by it."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fledge.data.build.build import CollectedRows
from fledge.data.build.phases import iter_items, keep_mask
from fledge.data.build.shard_items import ShardRows
from fledge.data.cleaning.duplicates import find_near_duplicates, signatures
from fledge.data.cleaning.ngrams import shingles
from fledge.data.encoding.examples import EncodingConfig, encode_items
from fledge.data.parsing.row_statistics import own_text
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
    """What only the items tell. Keys are numbers of sources in the plan."""

    threshold: float
    near: dict[int, NearDuplicates] | None  # None: the recipe leaves near duplicates out
    tokens: dict[int, np.ndarray]  # of the longest sequence of each item, before any cut; conversations and preferences


class _Kept:
    """The rows that stay, as one sequence over all shards of the training sources."""

    def __init__(self, collected: CollectedRows) -> None:
        self.folder = collected.folder
        self.rows = [ShardRows.of(self.folder, shard) for shard in collected.plan.of_part("train")]
        self.keeps = [keep_mask(self.folder, rows.shard) > 0 for rows in self.rows]
        self.inside = [np.flatnonzero(keep) for keep in self.keeps]
        self.starts = np.concatenate(([0], np.cumsum([len(kept) for kept in self.inside]))).astype(np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _locate(self, index: int) -> tuple[ShardRows, int]:
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.rows[number], int(self.inside[number][index - int(self.starts[number])])

    def source(self, index: int) -> int:
        """Number of the source of a row."""
        return self._locate(index)[0].shard.source

    def where(self, index: int) -> str:
        """file:line of a row."""
        rows, inside = self._locate(index)
        return rows.where(inside)

    def text(self, index: int) -> str:
        """All text of a row, read from disk."""
        rows, inside = self._locate(index)
        return rows.text(inside)

    def texts(self) -> Iterator[str]:
        """The text of every row, in order."""
        for rows, keep in zip(self.rows, self.keeps, strict=True):
            for item in iter_items(rows.folder, keep):
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


def measure_near(collected: CollectedRows, threshold: float) -> dict[int, NearDuplicates]:
    """Rows that stay though they overlap an earlier one by at least `threshold` (true Jaccard); nothing is left out."""
    kept = _Kept(collected)
    if not len(kept):
        return {}
    signed = np.concatenate([signatures(*shingles(texts)) for texts in _chunks(kept.texts(), CHUNK)])

    found: defaultdict[int, list[tuple[int, int, float]]] = defaultdict(list)
    for row, first, overlap in find_near_duplicates(signed, threshold, kept.text):
        found[kept.source(row)].append((row, first, overlap))
    named = lambda row, first, overlap: (kept.where(row), kept.where(first), overlap)  # noqa: E731
    return {
        source: NearDuplicates(len(near), tuple(named(*one) for one in near[:EXAMPLES_KEPT])) for source, near in found.items()
    }


def measure_tokens(collected: CollectedRows, tokenizer: Tokenizer) -> dict[int, np.ndarray]:
    """Tokens of each item that stays, before anything is cut for the context: of the longest of its sequences."""
    plan = collected.plan
    rules = replace(EncodingConfig.of(plan.stage, plan.seed), max_seq_len=ANY_LENGTH, truncation="keep_recent")
    found: defaultdict[int, list[int]] = defaultdict(list)
    for shard in plan.of_part("train"):
        keep = keep_mask(collected.folder, shard)
        for encoded in encode_items(iter_items(collected.folder / "rows" / shard.folder, keep > 0), tokenizer, rules):
            for example in encoded.examples:
                found[shard.source].append(max(len(tokens) for tokens, _ in example))
    return {source: np.asarray(lengths, dtype=np.int64) for source, lengths in found.items()}


def measure(collected: CollectedRows, tokenizer: Tokenizer, progress: Progress) -> Measured:
    """Look at the items once more; call it before `encode`, which lets them go."""
    stage = collected.plan.stage
    threshold, near, tokens = stage.data.clean.near_duplicates, None, {}
    if threshold is None:
        progress("looking for near duplicates …")
        threshold = NEAR
        near = measure_near(collected, threshold)
    if stage.kind != "pretrain":
        progress("measuring lengths …")
        tokens = measure_tokens(collected, tokenizer)
    return Measured(threshold, near, tokens)
