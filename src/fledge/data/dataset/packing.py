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


def evenly_spread(kinds: np.ndarray, *key: int) -> np.ndarray:
    """A random order of the items 0 … n - 1 in which each of their `kinds` [n] comes at even intervals: of K items of a kind,
    any n / K + 3 consecutive places hold one where there are three kinds, also from one epoch to the next. A pure function of
    its arguments."""
    shuffled = permutation(len(kinds), *key)
    place = np.zeros(len(kinds))
    for kind in np.unique(kinds):
        own = shuffled[kinds[shuffled] == kind]
        place[own] = (np.arange(len(own)) + 0.5) / len(own)
    return shuffled[np.argsort(place[shuffled], kind="stable")]


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


def pack_best_fit(
    lengths: np.ndarray, packed_length: int, seed: int, sequences_per_example: int = 1, halves_rows: bool = False
) -> PackedLayout:
    """Pack complete examples into rows by best fit, in shuffled order: nothing is cut, few positions stay empty.

    `lengths` [S]: positions of each sequence; `sequences_per_example` neighbouring sequences are one example. `halves_rows`:
    the sequences at each place of their examples take at most an equal part of the packed row."""
    by_example = lengths.reshape(-1, sequences_per_example)
    sizes = sequences_per_example * by_example.max(axis=1, initial=0) if halves_rows else by_example.sum(axis=1)
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


def pack_singly(lengths: np.ndarray, sequences_per_example: int = 1) -> PackedLayout:
    """A packed row for each example, in order."""
    sequence = np.arange(len(lengths), dtype=np.int64)
    offsets = np.arange(0, len(lengths) + 1, sequences_per_example, dtype=np.int64)
    return PackedLayout(offsets, sequence, np.zeros_like(sequence), lengths[sequence])
