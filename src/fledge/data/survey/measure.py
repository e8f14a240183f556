"""A second look at the items, before they become tokens, for what no build needs to know: near duplicates that stay in, and
lengths before anything is cut. Nothing is changed by it."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fledge.data.building.build import Collected
from fledge.data.building.shards import Shard
from fledge.data.building.work import items_of, keep_of, result_of
from fledge.data.cleaning.duplicates import jaccard, near_duplicates, shingles, signatures
from fledge.data.examples import Rules, encode_items
from fledge.data.reading.records import place
from fledge.data.rows.facts import own_text
from fledge.data.rows.items import from_bytes
from fledge.data.storage import arrays_of
from fledge.tokenizer import Tokenizer

NEAR = 0.8  # Jaccard overlap from which rows count as near duplicates, where the recipe names no other
EXAMPLES_KEPT = 3
ANY_LENGTH = 2**40  # a context that nothing is longer than
CHUNK = 1000  # texts hashed together
SETS_KEPT = 20_000  # shingle sets of suspected rows that stay in memory
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Near:
    """Rows of a source that overlap an earlier row of the stage, and the first of them: (row, earlier row, overlap)."""

    count: int = 0
    examples: tuple[tuple[str, str, float], ...] = ()


@dataclass(frozen=True)
class Measured:
    """What only the items tell. Keys are numbers of sources in the plan."""

    threshold: float
    near: dict[int, Near] | None  # None: the recipe leaves near duplicates out
    tokens: dict[int, np.ndarray]  # of the longest sequence of each item, before any cut; conversations and preferences


class _Kept:
    """The rows that stay, as one sequence over all shards of the training sources."""

    def __init__(self, collected: Collected) -> None:
        self.folder, self.shards = collected.folder, collected.plan.of_part("train")
        self.known = [arrays_of(self.folder / "rows" / shard.folder / "rows.safetensors") for shard in self.shards]
        self.keeps = [keep_of(self.folder, shard) > 0 for shard in self.shards]
        self.inside = [np.flatnonzero(keep) for keep in self.keeps]
        self.starts = np.concatenate(([0], np.cumsum([len(kept) for kept in self.inside]))).astype(np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _locate(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        return shard, int(self.inside[shard][index - int(self.starts[shard])])

    def source(self, index: int) -> int:
        """Number of the source of a row."""
        return self.shards[self._locate(index)[0]].source

    def where(self, index: int) -> str:
        """file:line of a row."""
        shard, inside = self._locate(index)
        return where_of(self.folder, self.shards[shard], self.known[shard], inside)

    def text(self, index: int) -> str:
        """All text of a row, read from disk."""
        shard, inside = self._locate(index)
        start, stop = (int(value) for value in self.known[shard]["start"][inside : inside + 2])
        with (self.folder / "rows" / self.shards[shard].folder / "items.jsonl").open("rb") as file:
            file.seek(start)
            return own_text(from_bytes(file.read(stop - start)))

    def texts(self) -> Iterator[str]:
        """The text of every row, in order."""
        for shard, keep in zip(self.shards, self.keeps, strict=True):
            for item in items_of(self.folder / "rows" / shard.folder, keep):
                yield own_text(item)


def where_of(folder: Path, shard: Shard, known: Mapping[str, np.ndarray], inside: int) -> str:
    """file:line of an item of a shard, whose rows.safetensors is `known`."""
    files = result_of(folder / "rows" / shard.folder)["files"]
    return place(files[int(known["file"][inside])], int(known["number"][inside]))


def _chunks(values: Iterable[Any], size: int) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for value in values:
        chunk.append(value)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def measure_near(collected: Collected, threshold: float) -> dict[int, Near]:
    """Rows that stay though they overlap an earlier one by at least `threshold` (true Jaccard); nothing is left out."""
    kept = _Kept(collected)
    if not len(kept):
        return {}
    signed = np.concatenate([signatures(*shingles(texts)) for texts in _chunks(kept.texts(), CHUNK)])

    @lru_cache(maxsize=SETS_KEPT)
    def shingle_set(index: int) -> np.ndarray:
        return np.unique(shingles([kept.text(index)])[0])

    overlap = lambda a, b: jaccard(shingle_set(a), shingle_set(b))  # noqa: E731
    first = near_duplicates(signed, threshold, overlap)
    found: defaultdict[int, list[int]] = defaultdict(list)
    for index in np.flatnonzero(first != np.arange(len(first))).tolist():
        found[kept.source(index)].append(index)
    return {
        source: Near(
            len(indices),
            tuple((kept.where(i), kept.where(int(first[i])), overlap(i, int(first[i]))) for i in indices[:EXAMPLES_KEPT]),
        )
        for source, indices in found.items()
    }


def measure_tokens(collected: Collected, tokenizer: Tokenizer) -> dict[int, np.ndarray]:
    """Tokens of each item that stays, before anything is cut for the context: of the longest of its sequences."""
    plan = collected.plan
    rules = replace(Rules.of(plan.stage, plan.seed), context=ANY_LENGTH, long_conversations="recent")
    found: defaultdict[int, list[int]] = defaultdict(list)
    for shard in plan.of_part("train"):
        keep = keep_of(collected.folder, shard)
        for encoded in encode_items(items_of(collected.folder / "rows" / shard.folder, keep > 0), tokenizer, rules):
            for example in encoded.examples:
                found[shard.source].append(max(len(tokens) for tokens, _ in example))
    return {source: np.asarray(lengths, dtype=np.int64) for source, lengths in found.items()}


def measure(collected: Collected, tokenizer: Tokenizer, progress: Progress) -> Measured:
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
