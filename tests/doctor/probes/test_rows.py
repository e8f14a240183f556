"""Rows and readings: the doctor's own losses against PyTorch's, and where answers begin and end."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fledge.doctor.probes.losses import at_offsets, swapped
from fledge.doctor.probes.rows import Row, RowMaker, read_rows
from fledge.tokenizer import Message, Tokenizer
from tests.support.decoders import VOCAB, make_decoder

STOPS = frozenset({3, 5})


def _row(*tokens: int, weights: list[float] | None = None, answers: tuple[tuple[int, int], ...] = ()) -> Row:
    values = np.ones(len(tokens)) if weights is None else np.asarray(weights)
    return Row(np.asarray(tokens, np.int64), values.astype(np.float32), answers, tuple(True for _ in answers))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 5))
def test_readings_are_the_cross_entropies_of_pytorch(lengths: list[int], seed: int) -> None:
    model = make_decoder()
    generator = np.random.default_rng(seed)
    rows = [_row(*generator.integers(0, VOCAB, length).tolist()) for length in lengths]
    for row, reading in zip(rows, read_rows(model, rows, STOPS, pad=0), strict=True):
        tokens = torch.from_numpy(row.tokens)
        with torch.no_grad():
            logits = model.logits(model(tokens[None]))[0]
        for offset in range(min(3, len(tokens))):
            places = len(tokens) - offset
            expected = F.cross_entropy(logits[:places], tokens[offset:], reduction="none").numpy()
            np.testing.assert_allclose(reading.losses[offset, :places], expected, atol=1e-4)
            assert np.isnan(reading.losses[offset, places:]).all()
        expected_ends = logits.softmax(-1)[:, sorted(STOPS)].sum(-1).numpy()
        np.testing.assert_allclose(reading.ends, expected_ends, atol=1e-5)


def test_losses_at_offsets_are_of_the_same_places_and_of_targets_with_weight() -> None:
    model = make_decoder()
    row = _row(7, 8, 9, 10, 11, 12, weights=[0, 0, 0, 1, 1, 1])
    (reading,) = read_rows(model, [row], STOPS, pad=0)
    found = at_offsets([row], [reading])
    assert found == pytest.approx([float(reading.losses[offset][2:4].mean()) for offset in range(3)])
    unsupervised = _row(7, 8, 9, 10, weights=[0] * 4)
    (reading,) = read_rows(model, [unsupervised], STOPS, pad=0)
    assert at_offsets([unsupervised], [reading]) == pytest.approx(
        [float(reading.losses[offset][:2].mean()) for offset in range(3)]
    )
    short = _row(7, 8)
    assert at_offsets([short], read_rows(model, [short], STOPS, pad=0)) is None


@pytest.mark.parametrize("template", ["chatml", "inst"])
def test_answers_are_found_whatever_their_weights_are(template: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(template)
    messages = [Message("user", "hello"), Message("assistant", "a fox"), Message("user", "more"), Message("assistant", "12")]
    tokens, weights = tokenizer.encode_conversation(messages)
    maker = RowMaker(tokenizer, 999, has_answers=True)
    for given_weights in (weights, [1.0] * len(tokens), [0.0] * len(tokens)):
        row = maker.row(np.asarray(tokens), np.asarray(given_weights))
        texts = [tokenizer.decode(tokens[start : stop - 1]).strip() for start, stop in row.answers]
        assert texts == ["a fox", "12"] and row.ended == (True, True)
        assert row.in_answers.sum() == sum(stop - start for start, stop in row.answers)


def test_an_answer_that_is_cut_has_no_end_and_a_document_has_no_answers(chatml: Tokenizer) -> None:
    tokens, weights = chatml.encode_conversation([Message("user", "hello"), Message("assistant", "a fox over the lazy dog")])
    length = len(tokens) - 4
    row = RowMaker(chatml, length, has_answers=True).row(np.asarray(tokens), np.asarray(weights))
    assert len(row.tokens) == length and row.ended == (False,) and row.answers[0][1] == length
    assert RowMaker(chatml, 999, has_answers=False).row(np.asarray(tokens), np.asarray(weights)).answers == ()


def test_the_first_token_of_a_row_is_no_target() -> None:
    assert _row(1, 2, 3, weights=[1, 1, 0]).supervised.tolist() == [False, True, False]


def test_other_prompts_are_other_and_rows_that_equal_them_are_passed_over() -> None:
    rows = [_row(1, 2, n, 9, 40 + n, 5, answers=((4, 6),)) for n in range(10, 14)]
    found = swapped(rows, longest=50)
    assert len(found) == 4
    for (own, other, size), row in zip(found, rows, strict=True):
        assert size == 2 and own.tokens.tolist() == row.tokens.tolist()
        assert other.tokens[-2:].tolist() == row.tokens[-2:].tolist() and other.tokens.tolist() != row.tokens.tolist()
    assert swapped([_row(1, 2, 9, 7, 5, answers=((3, 5),))] * 5, longest=50) == []
    assert swapped(rows, longest=5) == []
