"""The law of the loss by length: laws that are known are found within their interval, and what follows none is told."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.tune.duration import length_by_law
from fledge.tune.loss_law import NOISE, Law, LossLaw, fit_law

LENGTHS = (125, 250, 500, 1000)


@given(floor=st.floats(0, 3), scale=st.floats(3, 30), power=st.floats(0.1, 0.8), seed=st.integers(0, 10**6))
def test_a_law_holds_at_twice_the_longest_run_within_its_interval(floor: float, scale: float, power: float, seed: int) -> None:
    def true(steps: float) -> float:
        return floor + scale * steps**-power

    noise = np.random.default_rng(seed).uniform(-NOISE / 4, NOISE / 4, len(LENGTHS))
    law = fit_law({steps: true(steps) * (1 + one) for steps, one in zip(LENGTHS, noise, strict=True)})
    if law is None:  # so flat that noise makes it rise somewhere
        return
    middle, low, high = law.loss(2000)
    assert low <= true(2000) <= high and low <= middle <= high
    gain, least, most = law.gain(1000, 2.0)
    assert least <= gain <= most


def test_laws_without_noise_are_found_and_narrow() -> None:
    law = fit_law({steps: 1.5 + 8 * steps**-0.4 for steps in LENGTHS})
    assert law is not None
    middle, low, high = law.loss(2000)
    assert middle == pytest.approx(1.5 + 8 * 2000**-0.4, rel=2e-3) and high - low < 0.04 * middle


@pytest.mark.parametrize("losses", [
    {125: 3.0, 250: 2.5, 500: 2.2},  # too few
    {125: 3.0, 250: 2.5, 500: 2.2, 1000: 2.3},  # it rises
    {125: 3.0, 250: 2.9, 500: 2.85, 1000: 1.2},  # a cliff, which no law has
    {125: 3.0, 250: float("nan"), 500: 2.2, 1000: 2.0},
])  # fmt: skip
def test_what_follows_no_law_is_told(losses: dict[int, float]) -> None:
    assert fit_law(losses) is None


def test_no_length_is_advised_at_which_rows_are_read_more_often_than_a_law_may_speak_of() -> None:
    law = LossLaw(laws=(Law(1.0, 30.0, 0.5),))
    assert length_by_law(law, 640, 0.5)[0] == 4 * 640  # rows are read twice then
    steps, told = length_by_law(law, 640, 2.0)
    assert steps == 1280 and "read the rows 8 times" in told and told.startswith("medium")
    steps, told = length_by_law(law, 640, 10.5)  # the longest run read its rows 5.25 times
    assert steps == 320 and "read the rows 10.5 times" in told
    steps, told = length_by_law(LossLaw(laws=(Law(1.0, 0.01, 0.5),)), 640, 10.5)
    assert steps == 80 and told.startswith("high")
