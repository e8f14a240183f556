import numpy as np

from fledge.doctor_bench.faults.encoding import (
    answer_ends,
    beginning_of_answers,
    fraction_of,
    nothing,
    on_share,
    rolled,
    whole_prompt,
    without_end,
    without_end_weight,
)

TOKENS = np.array([1, 50, 60, 2, 70, 71, 2, 9, 80, 81, 82, 2, 9])
WEIGHTS = np.array([0, 0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 0], np.float32)  # two answers, each with its end token 2


def test_ends_of_answers_are_found() -> None:
    assert answer_ends(WEIGHTS).tolist() == [6, 11]


def test_whole_prompts_get_weight() -> None:
    tokens, weights = whole_prompt(TOKENS, WEIGHTS)
    assert tokens is TOKENS
    assert weights.all()


def test_weights_are_moved_by_one() -> None:
    early, late = rolled(-1)(TOKENS, WEIGHTS)[1], rolled(1)(TOKENS, WEIGHTS)[1]
    assert np.flatnonzero(early).tolist() == [3, 4, 5, 7, 8, 9, 10]
    assert np.flatnonzero(late).tolist() == [5, 6, 7, 9, 10, 11, 12]


def test_end_tokens_lose_their_weight_or_go() -> None:
    _, weights = without_end_weight(TOKENS, WEIGHTS)
    assert np.flatnonzero(weights).tolist() == [4, 5, 8, 9, 10]
    tokens, kept = without_end(TOKENS, WEIGHTS)
    assert tokens.tolist() == [1, 50, 60, 2, 70, 71, 9, 80, 81, 82, 9]
    assert np.flatnonzero(kept).tolist() == [4, 5, 7, 8, 9]


def test_only_the_beginning_of_answers_keeps_weight() -> None:
    _, weights = beginning_of_answers(0.5)(TOKENS, WEIGHTS)
    assert np.flatnonzero(weights).tolist() == [4, 5, 8, 9]
    assert not nothing(TOKENS, WEIGHTS)[1].any()


def test_a_share_of_the_sequences_is_changed() -> None:
    sequences = [np.array([number, number + 1, 7]) for number in range(400)]
    weights = np.ones(3, np.float32)
    change = on_share(0.3, nothing)
    changed = sum(not change(tokens, weights)[1].any() for tokens in sequences)
    assert 80 < changed < 160
    assert all(0 <= fraction_of(tokens) < 1 for tokens in sequences)
