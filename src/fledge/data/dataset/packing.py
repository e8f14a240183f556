"""Packing sequences into packed rows of fixed length. A pure function of the lengths and the seed."""

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PackedLayout:
    """The assignment of pieces of sequences to R packed rows. offsets int64 [R + 1].

    Slot s of packed row r, for s in [offsets[r], offsets[r + 1]), holds `length[s]` positions of sequence `sequence[s]`,
    beginning at position `start[s]` of the sequence."""

    offsets: np.ndarray
    sequence: np.ndarray
    start: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1


def permutation(count: int, *key: int) -> np.ndarray:
    """A random permutation of 0 … count - 1, a pure function of its key (counter-based generator: Salmon et al. 2011)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).permutation(count)


def pack_concat_and_chunk(lengths: np.ndarray, packed_length: int, seed: int) -> PackedLayout:
    """Concatenate documents in shuffled order and cut them into packed rows. No position is lost; the last row is padded."""
    order = permutation(len(lengths), seed)
    ends = np.cumsum(lengths[order])
    starts = ends - lengths[order]
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.unique(np.concatenate((starts, np.arange(0, total, packed_length), [total])))
    begin, finish = cuts[:-1], cuts[1:]
    document = np.searchsorted(ends, begin, side="right")
    counts = np.bincount(begin // packed_length, minlength=-(-total // packed_length))
    offsets = np.concatenate(([0], np.cumsum(counts)))
    return PackedLayout(offsets, order[document], begin - starts[document], finish - begin)


def pack_best_fit(lengths: np.ndarray, packed_length: int, seed: int, sequences_per_example: int = 1) -> PackedLayout:
    """Pack complete examples into rows by best fit, in shuffled order: nothing is cut, few positions stay empty.

    `lengths` [S]: positions of each sequence; `sequences_per_example` neighbouring sequences are one example."""
    sizes = lengths.reshape(-1, sequences_per_example).sum(axis=1)
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (positions left, packed row), sorted
    for example in permutation(len(sizes), seed).tolist():
        size = int(sizes[example])
        best = bisect_left(room, (size, -1))
        if best < len(room):
            left, row = room.pop(best)
        else:
            left, row = packed_length, len(rows)
            rows.append([])
        rows[row].append(example)
        if left > size:
            insort(room, (left - size, row))
    examples = np.asarray([example for row in rows for example in row], dtype=np.int64)
    sequence = (examples[:, None] * sequences_per_example + np.arange(sequences_per_example)).ravel()
    counts = [len(row) * sequences_per_example for row in rows]
    offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    return PackedLayout(offsets, sequence, np.zeros_like(sequence), lengths[sequence])
