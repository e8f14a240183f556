"""Packing sequences into rows of fixed length. A pure function of the lengths and the seed."""

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PackedLayout:
    """Which part of which sequence lies where. Slot s of row r, for s in [offsets[r], offsets[r+1]):
    `length[s]` positions of sequence `sequence[s]`, from its position `start[s]` on."""

    offsets: np.ndarray
    sequence: np.ndarray
    start: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1


def permutation(count: int, *key: int) -> np.ndarray:
    """A shuffle that is a pure function of its key (counter-based generator: Salmon et al. 2011)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).permutation(count)


def pack_concat_and_chunk(lengths: np.ndarray, row_length: int, seed: int) -> PackedLayout:
    """Documents end to end in shuffled order, cut at row ends: no position is lost, none but the last row is padded."""
    order = permutation(len(lengths), seed)
    ends = np.cumsum(lengths[order])
    starts = ends - lengths[order]
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.unique(np.concatenate((starts, np.arange(0, total, row_length), [total])))
    begin, finish = cuts[:-1], cuts[1:]
    document = np.searchsorted(ends, begin, side="right")
    counts = np.bincount(begin // row_length, minlength=-(-total // row_length))
    offsets = np.concatenate(([0], np.cumsum(counts)))
    return PackedLayout(offsets, order[document], begin - starts[document], finish - begin)


def pack_best_fit(lengths: np.ndarray, row_length: int, seed: int, per_example: int = 1) -> PackedLayout:
    """Whole examples into rows by best fit, in shuffled order: nothing is cut, few positions stay empty."""
    sizes = lengths.reshape(-1, per_example).sum(axis=1)
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (positions left, row), sorted
    for example in permutation(len(sizes), seed).tolist():
        size = int(sizes[example])
        place = bisect_left(room, (size, -1))
        if place < len(room):
            left, row = room.pop(place)
        else:
            left, row = row_length, len(rows)
            rows.append([])
        rows[row].append(example)
        if left > size:
            insort(room, (left - size, row))
    members = [example * per_example + part for row in rows for example in row for part in range(per_example)]
    counts = [len(row) * per_example for row in rows]
    sequence = np.asarray(members, dtype=np.int64)
    offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    return PackedLayout(offsets, sequence, np.zeros_like(sequence), lengths[sequence])
