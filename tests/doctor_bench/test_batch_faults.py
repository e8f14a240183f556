import torch

from fledge.doctor_bench.faults.batches import shifted_twice, sources_of, unshifted
from tests.support.packed import Sequence, pack

TEXTS = ([11, 12, 13, 14, 15], [21, 22, 23])


def _batch():
    sequences = [Sequence(torch.tensor(tokens), torch.ones(len(tokens))) for tokens in TEXTS]
    return pack(sequences, 8, seed=1).assemble([0])


def test_targets_are_the_inputs() -> None:
    batch = _batch()
    changed = unshifted(batch)
    assert torch.equal(changed.targets, batch.input_ids)
    assert torch.equal(changed.loss_weights, batch.loss_weights)


def test_targets_are_two_tokens_on_inside_their_document() -> None:
    batch = _batch()
    changed = shifted_twice(batch)
    pairs = {
        (int(token), int(target))
        for token, target, weight in zip(
            changed.input_ids.flatten(), changed.targets.flatten(), changed.loss_weights.flatten(), strict=True
        )
        if weight
    }
    assert pairs == {(11, 13), (12, 14), (13, 15), (21, 23)}
    assert torch.equal(changed.target_index, changed.loss_weights.flatten().nonzero(as_tuple=True)[0])
    assert changed.num_target_tokens == 4


def test_sources_are_languages_where_there_are_two() -> None:
    rows = [{"text": text} for text in ("春眠", "spring", "不觉", "sleep")]

    assert sources_of(rows) == {"first": [rows[0], rows[2]], "second": [rows[1], rows[3]]}


def test_sources_of_one_language_differ_by_how_answers_begin() -> None:
    answers = ("b", "d", "a", "c")
    rows = [{"messages": [{"role": "user", "content": "z"}, {"role": "assistant", "content": answer}]} for answer in answers]

    assert sources_of(rows) == {"first": [rows[2], rows[0]], "second": [rows[3], rows[1]]}
