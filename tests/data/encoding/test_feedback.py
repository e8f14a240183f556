"""Labelled answers become an answer with its label and an unrelated answer behind the same prompt."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.data import Conversation
from fledge.data.dataset.packing import evenly_spread, pack_best_fit
from fledge.data.encoding.examples import EncodingConfig
from fledge.data.encoding.feedback import behind_prompt, encode_feedback
from fledge.data.parsing.items import BinaryFeedback
from fledge.recipe.schema import AugmentConfig
from fledge.tokenizer import Message, Tokenizer
from tests.support.sources import jsonl, prepare

QUESTIONS = ["What is 1+1?", "Name a colour.", "Who are you?"]
ANSWERS = ["It is 2.", "Red.", "A small model that answers."]


def _config(max_seq_len: int = 128) -> EncodingConfig:
    return EncodingConfig(
        max_seq_len=max_seq_len, truncation="keep_recent", train_on_turns="all", min_tokens=0, augment=AugmentConfig(), seed=1
    )


def _items() -> list[BinaryFeedback]:
    return [
        BinaryFeedback((Message("user", question),), answer, number != 1)
        for number, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))
    ]


def test_each_answer_is_followed_by_the_answer_before_behind_its_own_prompt(chatml: Tokenizer) -> None:
    encoded = list(encode_feedback(_items(), chatml, _config()))
    assert [one.label for one in encoded] == [True, False, True]
    for number, one in enumerate(encoded):
        ((answer, weights), (unrelated, other_weights)) = one.examples[0]
        assert chatml.decode(answer[weights > 0].tolist()).startswith(ANSWERS[number])
        assert chatml.decode(unrelated[other_weights > 0].tolist()).startswith(ANSWERS[number - 1])
        prompt = int(np.flatnonzero(weights)[0])
        assert int(np.flatnonzero(other_weights)[0]) == prompt
        assert (answer[:prompt] == unrelated[:prompt]).all() and QUESTIONS[number] in chatml.decode(answer[:prompt].tolist())


def test_an_unrelated_answer_that_does_not_fit_is_cut_and_the_prompt_stays(chatml: Tokenizer) -> None:
    long = BinaryFeedback((Message("user", "q"),), "many words " * 60, True)
    short = BinaryFeedback((Message("user", "Name a colour."),), "Red.", False)
    encoded = list(encode_feedback([long, short], chatml, _config(64)))
    (_, _), (unrelated, weights) = encoded[1].examples[0]
    assert len(unrelated) == 65 and weights.any()
    assert not encoded[1].events and any(event.state == "truncated" for event in encoded[0].events)


def test_an_answer_alone_has_its_own_answer_in_both_places(chatml: Tokenizer) -> None:
    ((answer, _), (unrelated, _)) = next(encode_feedback(_items()[:1], chatml, _config())).examples[0]
    assert (answer == unrelated).all()


def test_a_row_without_a_label_is_no_feedback(chatml: Tokenizer) -> None:
    item = Conversation((Message("user", "q"), Message("assistant", "a")))
    with pytest.raises(TypeError, match="has no label"):
        list(encode_feedback([item], chatml, _config()))


def test_the_completion_of_another_sequence_goes_behind_the_prompt() -> None:
    first = np.array([1, 2, 3, 4]), np.array([0, 0, 1, 1], np.float32)
    second = np.array([7, 8, 9]), np.array([0, 1, 0], np.float32)
    tokens, weights = behind_prompt(first, second, _config(10))
    assert tokens.tolist() == [1, 2, 8, 9] and weights.tolist() == [0, 0, 1, 0]
    assert behind_prompt(first, second, _config(2))[0].tolist() == [1, 2, 8]
    assert behind_prompt(first, second, replace(_config(10), max_completion_length=1))[0].tolist() == [1, 2, 8]


def test_the_label_of_each_row_is_stored_and_changes_the_fingerprint(tmp_path: Path, chatml: Tokenizer) -> None:
    rows = [{"prompt": q, "completion": a, "label": i != 1} for i, (q, a) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))]
    data = prepare("kto", jsonl(tmp_path / "a.jsonl", rows), chatml, max_seq_len=64)
    assert data.train.examples.labels is not None and data.train.examples.labels.tolist() == [True, False, True]
    assert data.train.packed_length == 128 and data.train.examples.sequences_per_example == 2
    flipped = [{**row, "label": not row["label"]} for row in rows]
    other = prepare("kto", jsonl(tmp_path / "b.jsonl", flipped), chatml, max_seq_len=64)
    assert other.train.fingerprint() != data.train.fingerprint()


@settings(deadline=None)
@given(lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=60), seed=st.integers(0, 9))
def test_each_place_has_half_of_a_packed_row_for_itself(lengths: list[tuple[int, int]], seed: int) -> None:
    layout = pack_best_fit(np.asarray(lengths).ravel(), 60, seed, 2, halves_rows=True)
    assert sorted(layout.sequence.tolist()) == list(range(2 * len(lengths)))
    for row in range(len(layout)):
        span = slice(layout.offsets[row], layout.offsets[row + 1])
        assert layout.length[span][0::2].sum() <= 30 and layout.length[span][1::2].sum() <= 30


@settings(deadline=None)
@given(kinds=st.lists(st.integers(1, 3), min_size=1, max_size=200), seed=st.integers(0, 99))
def test_rows_of_each_kind_come_at_even_intervals_in_a_random_order(kinds: list[int], seed: int) -> None:
    array = np.asarray(kinds)
    order = evenly_spread(array, seed, 1)
    assert sorted(order.tolist()) == list(range(len(kinds)))
    twice = np.concatenate((array[order], array[evenly_spread(array, seed, 2)]))
    for kind in set(kinds):
        count = kinds.count(kind)
        assert np.diff(np.flatnonzero(twice == kind)).max(initial=1) <= len(kinds) / count + 3
