"""Packing loses nothing, order is a pure function of the seed, and no token sees or predicts another document."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fledge.data import Batch, PackedDataset
from fledge.data.dataset.packing import PackedLayout, pack_best_fit, pack_concat_and_chunk, permutation
from fledge.data.storage import Examples

PAD = 10**6
SEED = st.integers(0, 2**32 - 1)
LENGTHS = st.lists(st.integers(2, 9), min_size=1, max_size=30)


def examples_of(lengths: list[int], sequences_per_example: int = 1) -> Examples:
    """Examples whose token at position p of sequence s is 1000·s + p; the weight depends on p, every fourth weight is 0."""
    tokens = np.concatenate([1000 * s + np.arange(n) for s, n in enumerate(lengths)]).astype(np.int32)
    weights = np.where(tokens % 4 == 3, 0, 1 + tokens % 1000).astype(np.float32)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    return Examples(tokens=tokens, weights=weights, offsets=offsets, sequences_per_example=sequences_per_example)


def positions_of(layout: PackedLayout) -> list[list[tuple[int, int]]]:
    """(sequence, position in it) of every position, packed row by packed row."""
    return [
        [
            (int(layout.sequence[slot]), int(layout.start[slot]) + position)
            for slot in range(layout.offsets[row], layout.offsets[row + 1])
            for position in range(layout.length[slot])
        ]
        for row in range(len(layout))
    ]


@given(st.lists(st.integers(0, 40), max_size=20), st.integers(1, 12), SEED)
def test_concat_and_chunk_loses_no_position_and_pads_only_the_last_packed_row(
    lengths: list[int], width: int, seed: int
) -> None:
    rows = positions_of(pack_concat_and_chunk(np.asarray(lengths, dtype=np.int64), width, seed))
    positions = [position for row in rows for position in row]
    assert sorted(positions) == [(s, p) for s, n in enumerate(lengths) for p in range(n)]
    assert all(len(row) == width for row in rows[:-1])
    assert all(0 < len(row) <= width for row in rows)
    for before, after in pairwise(positions):  # documents lie end to end, in order
        assert after == (before[0], before[1] + 1) or after[1] == 0


@given(st.lists(st.integers(1, 12), min_size=1, max_size=40), SEED)
def test_best_fit_cuts_no_example_and_packs_each_once(lengths: list[int], seed: int) -> None:
    packed = pack_best_fit(np.asarray(lengths), 12, seed)
    rows = positions_of(packed)
    assert all(len(row) <= 12 for row in rows)
    assert (packed.start == 0).all()
    assert sorted(position for row in rows for position in row) == [(s, p) for s, n in enumerate(lengths) for p in range(n)]
    used = [len(row) for row in rows]
    assert sum(2 * size <= 12 for size in used) <= 1  # two half-empty rows would have been one


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=20), SEED)
def test_a_pair_stays_together_chosen_before_rejected(pairs: list[tuple[int, int]], seed: int) -> None:
    packed = pack_best_fit(np.asarray(pairs).reshape(-1), 12, seed, sequences_per_example=2)
    for row in range(len(packed)):
        members = packed.sequence[packed.offsets[row] : packed.offsets[row + 1]].tolist()
        assert [m % 2 for m in members] == [0, 1] * (len(members) // 2)
        assert all(b == a + 1 for a, b in zip(members[::2], members[1::2], strict=True))
    assert sorted(packed.sequence.tolist()) == list(range(2 * len(pairs)))


@given(LENGTHS, SEED, st.booleans())
def test_a_target_is_the_next_token_of_the_same_sequence_and_padding_has_no_weight(
    lengths: list[int], seed: int, split: bool
) -> None:
    data = PackedDataset(examples_of(lengths), 8, PAD, seed, split)
    batch = data.assemble([*range(len(data)), None])
    filled = batch.documents > 0
    assert (batch.targets[filled] == batch.input_ids[filled] + 1).all()  # the same thousand, the next position
    expected = torch.where(batch.targets % 4 == 3, 0, 1 + batch.targets % 1000).float()
    assert torch.equal(batch.loss_weights[filled], expected[filled])
    assert (batch.loss_weights[~filled] == 0).all()
    assert (batch.input_ids[~filled] == PAD).all()
    assert (batch.targets[~filled] == PAD).all()
    assert not filled[-1].any()
    assert batch.num_tokens == data.num_tokens == sum(n - 1 for n in lengths)
    assert batch.num_target_tokens == data.num_target_tokens
    assert data.summary()["tokens"] == batch.num_tokens


@given(LENGTHS, SEED, st.booleans())
def test_position_document_and_sequence_ids_separate_the_pieces_of_a_row(lengths: list[int], seed: int, split: bool) -> None:
    data = PackedDataset(examples_of(lengths), 8, PAD, seed, split)
    batch = data.assemble([*range(len(data)), None])
    for b in range(len(data)):
        for number in range(1, int(batch.documents[b].max()) + 1):
            inside = batch.documents[b] == number
            assert torch.equal(batch.position_ids[b][inside], torch.arange(int(inside.sum())))
            assert len(set((batch.input_ids[b][inside] // 1000).tolist())) == 1
            sequence = set(batch.sequence_ids[b][inside].tolist())
            assert len(sequence) == 1
            assert batch.examples[sequence.pop()] == int(batch.input_ids[b][inside][0]) // 1000
    assert (batch.sequence_ids[batch.documents == 0] == batch.num_sequences).all()
    assert sorted(set(batch.sequence_ids[batch.documents > 0].tolist())) == list(range(batch.num_sequences))
    assert len(batch.examples) == batch.num_sequences


@given(st.lists(st.integers(2, 9), min_size=1, max_size=8), SEED)
def test_the_examples_of_a_batch_of_pairs_are_its_pairs(lengths: list[int], seed: int) -> None:
    data = PackedDataset(examples_of([n for n in lengths for _ in range(2)], 2), 16, PAD, seed, False)
    batch = data.batch(0, len(data))
    assert sorted(batch.examples) == list(range(len(lengths)))
    assert batch.sequences_per_example == 2
    assert batch.num_sequences == 2 * len(lengths)
    for i, example in enumerate(batch.examples):
        firsts = [int(batch.input_ids[batch.sequence_ids == 2 * i + index].min()) // 1000 for index in (0, 1)]
        assert firsts == [2 * example, 2 * example + 1]


def equal(a: Batch, b: Batch) -> bool:
    """Whether two batches hold equal examples and tensors."""
    tensors = ("input_ids", "targets", "loss_weights", "position_ids", "documents", "sequence_ids")
    return a.examples == b.examples and all(torch.equal(getattr(a, name), getattr(b, name)) for name in tensors)


@given(LENGTHS, SEED, st.integers(0, 40), st.integers(1, 5))
def test_a_batch_does_not_depend_on_the_batches_read_before(lengths: list[int], seed: int, first: int, count: int) -> None:
    walked, entered = (PackedDataset(examples_of(lengths), 8, PAD, seed, False) for _ in range(2))
    for position in range(first):
        walked.batch(position, 1)
    assert equal(walked.batch(first, count), entered.batch(first, count))
    together = entered.batch(first, count)
    for i in range(count):
        assert torch.equal(together.input_ids[i], walked.batch(first + i, 1).input_ids[0])


@given(LENGTHS, SEED)
def test_every_epoch_reads_every_packed_row_once_in_its_own_order(lengths: list[int], seed: int) -> None:
    data = PackedDataset(examples_of(lengths), 8, PAD, seed, True)
    epochs = [data.epoch_order(epoch).tolist() for epoch in (0, 1, 0)]
    assert epochs[0] == epochs[2] == permutation(len(data), seed, 1).tolist()
    assert all(sorted(order) == list(range(len(data))) for order in epochs)
    assert data.epoch_order(1).tolist() == permutation(len(data), seed, 2).tolist()


def test_epochs_and_seeds_differ_in_order() -> None:
    orders = {tuple(permutation(50, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_packed_rows_after_the_end_are_empty_and_have_weight_zero() -> None:
    data = PackedDataset(examples_of([9] * 6), 8, PAD, 1, False)
    batch = data.batch(4, 4, stop=6)
    assert batch.input_ids.shape == (4, 8)
    assert torch.equal(batch.input_ids[:2], data.batch(4, 2).input_ids)
    assert (batch.documents[2:] == 0).all()
    assert (batch.loss_weights[2:] == 0).all()
    assert batch.weight == data.batch(4, 2).weight
    assert batch.num_sequences == 2
    assert (batch.to(torch.device("cpu")).sequence_ids[2:] == 2).all()


def test_a_batch_of_empty_rows_has_the_number_of_sequences_per_example() -> None:
    data = PackedDataset(examples_of([5] * 4, 2), 16, PAD, 1, False)
    batch = data.batch(0, 2, stop=0)
    assert (batch.num_sequences, batch.examples, batch.sequences_per_example) == (0, (), 2)
