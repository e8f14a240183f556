"""Packing sequences into packed rows of fixed length. A pure function of the lengths and the seed."""

from bisect import bisect_left, insort
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class PackedLayout:
    """The assignment of pieces of sequences to R packed rows. offsets int64 [R + 1].

    Slot s of packed row r, for s in [offsets[r], offsets[r + 1]), holds `length[s]` positions of sequence `sequence[s]`,
    beginning at position `start[s]` of the sequence. `branch[s]`: 0, or from 1 the number of a piece that goes on from the last
    piece before it whose branch is 0, which belongs to the beginning of several sequences. None: all are 0."""

    offsets: np.ndarray
    sequence: np.ndarray
    start: np.ndarray
    length: np.ndarray
    branch: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def branches(self) -> np.ndarray:
        """`branch`, with zeros for None."""
        return np.zeros_like(self.start) if self.branch is None else self.branch


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
    lengths: np.ndarray,
    packed_length: int,
    seed: int,
    sequences_per_example: int = 1,
    *,
    halves_rows: bool = False,
    shared: np.ndarray | None = None,
) -> PackedLayout:
    """Pack complete examples into rows by best fit, in shuffled order: nothing is cut, few positions stay empty.

    `lengths` [S]: positions of each sequence; `sequences_per_example` neighbouring sequences are one example. `halves_rows`:
    the sequences at each place of their examples take at most an equal part of the packed row. `shared` [E]: the positions at
    the beginning of each example that its sequences share, and that stand in the row once."""
    by_example = lengths.reshape(-1, sequences_per_example)
    sizes = sequences_per_example * by_example.max(axis=1, initial=0) if halves_rows else by_example.sum(axis=1)
    if shared is not None:
        sizes = sizes - (sequences_per_example - 1) * shared
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
    layout = PackedLayout(offsets, sequence, np.zeros_like(sequence), lengths[sequence])
    return layout if shared is None else _with_branches(layout, examples, shared[examples])


def _with_branches(layout: PackedLayout, examples: np.ndarray, shared: np.ndarray) -> PackedLayout:
    """A layout of complete `examples` [n] whose sequences share their first `shared` [n] positions: a piece for these, and a
    branch for the rest of each sequence."""
    members, lengths = layout.sequence.reshape(len(examples), -1), layout.length.reshape(len(examples), -1)
    count, has_trunk = members.shape[1], shared > 0
    ends = np.cumsum(count + has_trunk)
    first = ends - count - has_trunk  # piece of each example
    sequence, start, length, branch = (np.zeros(ends[-1] if len(ends) else 0, np.int64) for _ in range(4))
    trunks, own = first[has_trunk], (first + has_trunk)[:, None] + np.arange(count)
    sequence[trunks], length[trunks] = members[has_trunk, 0], shared[has_trunk]
    sequence[own], start[own], length[own] = members, shared[:, None], lengths - shared[:, None]
    branch[own] = np.where(has_trunk[:, None], np.arange(1, count + 1), 0)
    offsets = np.concatenate(([0], ends))[layout.offsets // count]
    return PackedLayout(offsets, sequence, start, length, branch)


def pack_singly(lengths: np.ndarray, sequences_per_example: int = 1) -> PackedLayout:
    """A packed row for each example, in order."""
    sequence = np.arange(len(lengths), dtype=np.int64)
    offsets = np.arange(0, len(lengths) + 1, sequences_per_example, dtype=np.int64)
    return PackedLayout(offsets, sequence, np.zeros_like(sequence), lengths[sequence])
