"""Sequences of an example that share their beginning have it once in the packed row, and nothing is lost."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fledge.data import PackedDataset
from fledge.data.dataset.mixing import Mixture, SourceQuota
from fledge.data.storage import Examples
from fledge.document_numbers import BRANCH, trunk
from tests.support.packed import Pair, pack, pack_pairs, random_pairs, random_sequences

LENGTH = 24
TOKENS = st.lists(st.integers(1, 3), min_size=1, max_size=8)
PAIRS = st.lists(st.builds(Pair, TOKENS, TOKENS, TOKENS), min_size=1, max_size=12)


def _sequences(data: PackedDataset, epoch: int = 0) -> list[tuple[list[int], list[int], list[float], list[int]]]:
    """Inputs, targets, weights and positions of every sequence of an epoch in its order, with its trunk before its own."""
    count, found = data.num_packed_rows(epoch), []
    first = sum(data.num_packed_rows(before) for before in range(epoch))
    batch = data.batch(first, count)
    for number in range(batch.num_sequences):
        row, columns = (batch.sequence_ids == number).nonzero(as_tuple=True)
        documents, own = batch.documents[row[0]], int(batch.documents[row[-1], columns[-1]])
        visible = (documents == own) | (documents == trunk(own))
        values = (batch.input_ids, batch.targets, batch.loss_weights, batch.position_ids)
        found.append(tuple(tensor[row[0]][visible].tolist() for tensor in values))
    return found


@given(PAIRS)
def test_every_sequence_is_whole_and_its_positions_count_up_from_0(pairs: list[Pair]) -> None:
    plain = pack_pairs(pairs, LENGTH * 2)
    shared = plain.sharing_beginnings()
    every = []
    for inputs, targets, weights, positions in _sequences(shared):
        assert positions == list(range(len(inputs)))
        assert inputs[1:] == targets[:-1]
        every.append((inputs, [t for t, w in zip(targets, weights, strict=True) if w]))
    expected = []
    for pair in pairs:
        for answer in (pair.chosen, pair.rejected):
            expected.append(((pair.prompt + answer)[:-1], answer))
    assert sorted(every) == sorted(expected)


@given(PAIRS)
def test_a_beginning_stands_in_the_row_once_and_has_no_target_with_weight(pairs: list[Pair]) -> None:
    plain = pack_pairs(pairs, LENGTH * 2)
    shared = plain.sharing_beginnings()
    saved = sum(len(pair.prompt) - 1 for pair in pairs)
    assert plain.examples.shared_lengths.tolist() == [len(pair.prompt) - 1 for pair in pairs]
    assert shared.num_tokens == plain.num_tokens - saved
    assert shared.num_target_tokens == plain.num_target_tokens
    assert abs(plain.shareable_share * plain.num_tokens - saved) < 1e-6
    batch = shared.batch(0, len(shared))
    assert batch.num_tokens == shared.num_tokens and batch.weight == plain.num_target_tokens
    for documents, weights in zip(batch.documents, batch.loss_weights, strict=True):
        trunks = {int(trunk(number)) for number in documents.unique() if number >= BRANCH}
        for number in trunks:
            assert not weights[documents == number].any()
            assert {int(n) // BRANCH for n in documents.unique() if trunk(n) == number} == {0, 1, 2}


def test_rows_hold_more_pairs_and_name_the_examples_of_their_sequences() -> None:
    plain = pack_pairs([Pair(list(range(1, 20)), [1, 2, 3], [4, 5]) for _ in range(8)], 48)
    shared = plain.sharing_beginnings()
    assert (len(plain), len(shared)) == (8, 4)
    batch = shared.batch(0, 4)
    assert sorted(batch.examples) == list(range(8)) and batch.num_sequences == 16
    assert shared.examples_at(0, 4) == list(batch.examples)


def test_rows_do_not_depend_on_how_they_are_read_and_change_the_fingerprint() -> None:
    plain = pack_pairs(random_pairs(9))
    first, second = plain.sharing_beginnings(), plain.sharing_beginnings()
    assert first.fingerprint() == second.fingerprint() != plain.fingerprint()
    together, apart = first.batch(0, len(first)), [second.batch(row, 1) for row in range(len(second))]
    for name in ("input_ids", "targets", "loss_weights", "position_ids", "documents"):
        assert torch.equal(getattr(together, name), torch.cat([getattr(one, name) for one in apart]))


def test_only_equal_tokens_before_the_first_target_with_weight_are_shared() -> None:
    def shared(*sequences: tuple[list[int], list[float]]) -> list[int]:
        tokens, weights = (np.concatenate([one[part] for one in sequences]) for part in (0, 1))
        offsets = np.concatenate(([0], np.cumsum([len(one[0]) for one in sequences])))
        examples = Examples(
            tokens=tokens.astype(np.int32), weights=weights.astype(np.float32), offsets=offsets, sequences_per_example=2
        )
        return examples.shared_lengths.tolist()

    assert shared(([1, 2, 3, 4], [0, 0, 0, 1]), ([1, 2, 3, 5], [0, 0, 0, 1])) == [2]
    assert shared(([1, 2, 3, 4], [0, 0, 0, 1]), ([1, 9, 3, 5], [0, 0, 0, 1])) == [1]  # other prompts
    assert shared(([1, 2, 3, 4], [0, 0, 0, 1]), ([1, 2, 3, 5], [0, 1, 0, 1])) == [0]  # a target inside the prompt
    assert shared(([1, 4], [0, 1]), ([1, 5], [0, 1])) == [0]
    assert shared(([7, 2, 3, 4], [1, 0, 0, 1]), ([8, 2, 3, 5], [1, 0, 0, 1])) == [0]


def test_a_mixture_draws_pairs_that_share_their_beginning() -> None:
    pairs = random_pairs(10, seed=4)
    examples = pack_pairs(pairs).examples
    source = np.repeat([0, 1], 5).astype(np.int32)
    quotas = (SourceQuota(name="a", repeat=2.0), SourceQuota(name="b", max_rows=2))
    mixture = Mixture(source, examples.tokens_per_example(), quotas, seed=1)
    data = PackedDataset(examples, 48, 0, 1, False, mixture=mixture).sharing_beginnings()
    for epoch in (0, 1):
        drawn = mixture.sample_epoch(epoch)
        expected = sorted((pairs[n].prompt + answer)[:-1] for n in drawn for answer in (pairs[n].chosen, pairs[n].rejected))
        assert sorted(inputs for inputs, *_ in _sequences(data, epoch)) == expected


def test_attention_counts_the_trunk_that_a_branch_sees() -> None:
    pair = Pair([1] * 7, [2] * 3, [3] * 5)
    data = pack_pairs([pair], 40).sharing_beginnings()
    before, chosen, rejected = 6, 3, 5  # positions: the last token of the prompt begins each branch
    squares = before**2 + (before + chosen) ** 2 - before**2 + (before + rejected) ** 2 - before**2
    assert data.mean_context == squares / (before + chosen + rejected)
    assert data.pieces_per_row == 3


def test_data_without_pairs_has_no_branches() -> None:
    batch = pack(random_sequences([9, 12, 5]), 16).batch(0, 2)
    assert int(batch.documents.max()) < BRANCH
    assert all(a <= b + 1 for a, b in pairwise(sorted(batch.documents.unique().tolist())))
