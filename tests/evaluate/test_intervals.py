"""Intervals: known values, coverage, and the ends of the range."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.evaluate.intervals import bootstrap_interval, paired_difference, wilson_interval


def rate(sums: np.ndarray) -> np.ndarray:
    """The first sum ÷ both sums."""
    return sums[..., 0] / sums.sum(axis=-1)


def test_wilson_s_interval_has_the_published_values() -> None:
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)  # Newcombe 1998, table I, without correction
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.integers(1, 60), st.integers(0, 60))
def test_wilson_s_interval_holds_the_rate_and_stays_in_range(n: int, successes: int) -> None:
    successes = min(successes, n)
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= successes / n + 1e-12 and successes / n - 1e-12 <= high <= 1 and low < high


def test_the_bootstrap_of_independent_rows_agrees_with_wilson_and_is_repeatable() -> None:
    right = np.arange(400) < 300
    counts = np.stack([right, ~right], axis=1).astype(float)
    assert bootstrap_interval(counts, rate) == pytest.approx(wilson_interval(300, 400), abs=0.015)
    assert bootstrap_interval(counts, rate) == bootstrap_interval(counts, rate)


def test_fields_that_are_wrong_together_make_the_interval_wider() -> None:
    right = np.arange(100) < 80
    alone = np.stack([right, ~right], axis=1).astype(float)
    apart, together = np.repeat(alone, 4, axis=0), alone * 4
    (low, high), (wide_low, wide_high) = bootstrap_interval(apart, rate), bootstrap_interval(together, rate)
    assert wide_high - wide_low > 1.6 * (high - low)


def test_rows_without_a_mistake_do_not_make_it_certain() -> None:
    low, high = bootstrap_interval(np.array([[2.0, 0.0]] * 20), rate)
    assert (low, high) == wilson_interval(20, 20) and low < 0.9
    assert bootstrap_interval(np.zeros((5, 2)), rate) == (0.0, 1.0)


def test_a_paired_difference_is_narrow_where_the_same_rows_are_right() -> None:
    before, after = np.arange(200) < 100, np.arange(200) < 110
    mean, (low, high) = paired_difference(before, after)
    assert mean == pytest.approx(0.05) and 0 < low < mean < high < 0.1
    mean, (low, high) = paired_difference(before, before)
    assert mean == 0 and low < 0 < high < 0.02
