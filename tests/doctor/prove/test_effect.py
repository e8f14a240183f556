"""What paired figures say: verdicts, intervals, rates, runs that ended alike."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.doctor.prove_effect import Scale, compare, outcome_of, signed_rank_interval

LOSS = Scale(name="loss", label="loss", unit="nats/token", higher_is_better=False, useful=0.01)
RATE = Scale(name="ended", label="ended", unit="", higher_is_better=True, useful=0.05, relative=False, is_rate=True)


def runs(mean: float, seeds: int = 3, *, seed: int = 0, spread: float = 0.02) -> list[dict[str, float]]:
    """Losses of 40 documents under runs of several seeds: documents differ, seeds differ a little."""
    draw, documents = np.random.default_rng(seed), np.random.default_rng(99).normal(0, 0.5, 40)
    return [
        {str(n): mean + documents[n] + shift + draw.normal(0, spread) for n in range(40)}
        for shift in draw.normal(0, spread, seeds)
    ]


def test_a_lower_loss_helps_a_higher_one_is_worse_and_a_tiny_one_is_of_no_use() -> None:
    assert compare(LOSS, runs(3.0), runs(2.5, seed=1)).outcome == "helps"
    assert compare(LOSS, runs(2.5), runs(3.0, seed=1)).outcome == "makes it worse"
    same = runs(3.0, spread=0.001)
    tiny = [{name: value - 0.005 for name, value in one.items()} for one in same]
    effect = compare(LOSS, same, tiny)
    assert effect.gain == pytest.approx(0.005) and effect.interval[0] > 0  # sure, and below 1 % of the loss
    assert effect.outcome == "does not help" and effect.useful == pytest.approx(0.03, rel=0.05)


def test_seeds_that_disagree_cannot_tell() -> None:
    before = [{"a": 3.0, "b": 3.1}] * 3
    after = [{"a": 2.0, "b": 2.1}, {"a": 3.4, "b": 3.5}, {"a": 2.9, "b": 3.0}]
    effect = compare(LOSS, before, after)
    assert effect.outcome == "cannot tell" and effect.interval[0] < 0 < effect.useful < effect.interval[1]


def test_few_documents_widen_the_interval_although_the_seeds_agree() -> None:
    before = [{"a": 3.0, "b": 3.0, "c": 3.0}] * 3
    after = [{"a": 1.0, "b": 3.4, "c": 3.1}] * 3  # one document of three is better
    assert compare(LOSS, before, after).outcome == "cannot tell"


def test_rates_that_never_change_are_no_proof_of_equality() -> None:
    few = [dict.fromkeys("abcdefgh", 0.0)] * 3
    effect = compare(RATE, few, few)
    assert effect.gain == 0 and effect.outcome == "cannot tell" and effect.interval[1] > 0.2
    many = [dict.fromkeys(map(str, range(60)), 0.0)] * 3
    assert compare(RATE, many, many).outcome == "does not help"
    ended = [dict.fromkeys(map(str, range(60)), 1.0)] * 3
    assert compare(RATE, many, ended).outcome == "helps" and compare(RATE, ended, many).outcome == "makes it worse"


def test_equal_weights_are_said_to_change_nothing() -> None:
    one = runs(3.0)
    effect = compare(LOSS, one, one, identical=True)
    assert effect.outcome == "does not help" and effect.interval == (0, 0) and "same weights" in effect.sentence


def test_documents_of_one_run_alone_are_left_out() -> None:
    before = [{"a": 3.0, "b": 3.0, "x": 100.0}] * 3
    after = [{"a": 2.0, "b": 2.0, "y": 0.0}] * 3
    effect = compare(LOSS, before, after)
    assert effect.gain == 1.0 and effect.given == 3.0 and effect.documents == 2
    with pytest.raises(ValueError, match="no document in common"):
        compare(LOSS, [{"a": 1.0}] * 3, [{"b": 1.0}] * 3)
    with pytest.raises(ValueError, match="two or more pairs"):
        compare(LOSS, [{"a": 1.0}], [{"a": 1.0}])


@pytest.mark.parametrize("pairs", [3, 6])
def test_intervals_hold_the_truth_as_often_as_they_say(pairs: int) -> None:
    draw, held = np.random.default_rng(3), 0
    for _ in range(400):  # seeds and documents both vary, and the truth is 0.2
        documents, seeds = draw.normal(0, 0.3, 12), draw.normal(0, 0.1, pairs)
        before = [dict.fromkeys(map(str, range(12)), 3.0)] * pairs
        after = [{str(n): 2.8 - documents[n] - shift + draw.normal(0, 0.05) for n in range(12)} for shift in seeds]
        low, high = compare(LOSS, before, after).interval
        held += low <= 0.2 <= high
    assert held / 400 > 0.93


@given(
    gain=st.floats(-2, 2), half=st.floats(0, 2), useful=st.floats(1e-3, 1)
)  # every interval has one verdict, and better gains never a worse one
def test_outcomes_are_in_order(gain: float, half: float, useful: float) -> None:
    rank = {"makes it worse": 0, "does not help": 1, "cannot tell": 1, "helps": 2}
    first = outcome_of(gain, (gain - half, gain + half), useful)
    better = outcome_of(gain + 0.1, (gain + 0.1 - half, gain + 0.1 + half), useful)
    assert rank[better] >= rank[first]
    if first == "helps":
        assert gain >= useful and gain > half
    if first == "does not help":
        assert gain + half < useful or gain == half == 0


def test_six_pairs_that_agree_in_sign_decide_however_much_they_differ() -> None:
    before = [{"a": 3.0, "b": 3.1}] * 6
    after = [{"a": 3.0 - gain, "b": 3.1 - gain} for gain in (0.3, 0.5, 0.4, 2.4, 2.9, 0.35)]
    assert compare(LOSS, before[:3], [after[0], after[2], after[3]]).outcome == "cannot tell"
    six = compare(LOSS, before, after)
    assert six.outcome == "helps" and six.interval == pytest.approx((0.3, 2.9))


def test_signed_ranks_have_the_published_limits() -> None:
    assert signed_rank_interval(np.arange(6.0)) == (0, 5)  # P(sum of ranks = 0) = 1/64
    averages = np.sort([(a + b) / 2 for a in range(10) for b in range(a, 10)])
    assert signed_rank_interval(np.arange(10.0)) == (averages[8], averages[-9])  # critical value 8 of n = 10 at 5 %
