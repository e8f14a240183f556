"""Tests of paired values: two models on the same items. Numpy only; `tests/evaluate/test_statistics.py` compares with scipy.

Every test is two-sided. A difference is the second model's value less the first one's.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fledge.evaluate.intervals import Interval, percentiles, resampled_sums, wilson_interval

LEVEL = 0.05  # of all tests; intervals hold 1 − LEVEL
EXACT_FLIPS = 14  # differences whose 2**n signs are all tried
FLIPS = 4000  # random signs of more differences
MAX_SIGNS = 50_000_000  # numbers that a test draws, at most
MIN_FLIPS = 1000
SAME = 1e-9  # relative distance below which two sums count as equal


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """The difference of two means over `count` paired values, with its 95 % interval and the p-value of no difference.

    `spread`: standard deviation of the differences; of binary values, `discordant` is the number of unequal pairs (else None).
    """

    difference: float
    interval: Interval
    p_value: float
    test: Literal["mcnemar", "sign_flip"]
    count: int
    spread: float
    discordant: int | None = None

    @property
    def is_different(self) -> bool:
        """Whether the interval leaves 0 out, and the test says the same."""
        low, high = self.interval
        return self.p_value <= LEVEL and not low <= 0 <= high


def binomial_probabilities(n: int, p: float) -> np.ndarray:
    """The probabilities [n + 1] of 0 … n successes in n trials of probability p."""
    if p <= 0 or p >= 1:
        result = np.zeros(n + 1)
        result[0 if p <= 0 else n] = 1.0
        return result
    k = np.arange(1, n + 1)
    log_ratios = np.log((n - k + 1) / k) + math.log(p) - math.log1p(-p)  # of neighbouring probabilities
    logs = np.concatenate(([0.0], np.cumsum(log_ratios)))
    weights = np.exp(logs - logs.max())
    return weights / weights.sum()


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """The exact p-value of McNemar's test (1947): `only_first` and `only_second` items are right for one model alone, and both
    kinds are equally likely if the models are equally good. 1 without such items."""
    discordant = only_first + only_second
    if discordant == 0:
        return 1.0
    tail = binomial_probabilities(discordant, 0.5)[: min(only_first, only_second) + 1].sum()
    return min(1.0, 2 * float(tail))


def clopper_pearson_interval(successes: int, n: int) -> Interval:
    """The exact 95 % interval of a rate (Clopper and Pearson 1934); all of [0, 1] without a trial."""
    if n == 0:
        return 0.0, 1.0

    def upper(k: int) -> float:
        """The rate at which k successes or fewer have a probability of LEVEL / 2."""
        low, high = k / n, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            if binomial_probabilities(n, middle)[: k + 1].sum() > LEVEL / 2:
                low = middle
            else:
                high = middle
        return high

    return (
        0.0 if successes == 0 else 1.0 - upper(n - successes),
        1.0 if successes == n else upper(successes),
    )


def mcnemar_interval(only_first: int, only_second: int, n: int) -> Interval:
    """The 95 % interval of the difference of two rates over n paired items.

    The difference is the share of unequal pairs times how far the second model wins them; the exact interval of the wins and
    Wilson's interval of the share are joined as in Newcombe (1998, method 10). It leaves 0 out exactly where `mcnemar_p_value`
    is at most 0.05. Without an unequal pair it is as wide as the share of unequal pairs may be.
    """
    discordant = only_first + only_second
    if discordant == 0:
        most = wilson_interval(0, n)[1]
        return -most, most
    if only_first > only_second:
        low, high = mcnemar_interval(only_second, only_first, n)
        return -high, -low
    wins, share = clopper_pearson_interval(only_second, discordant), discordant / n
    least_share, most_share = wilson_interval(discordant, n)
    lead, least, most = 2 * only_second / discordant - 1, 2 * wins[0] - 1, 2 * wins[1] - 1
    low = lead * share - math.hypot((lead - least) * share, lead * (share - least_share))
    high = lead * share + math.hypot((most - lead) * share, lead * (most_share - share))
    return (max(low, least * least_share) if least > 0 else low), min(high, 1.0)


def sign_flip_p_value(differences: np.ndarray) -> float:
    """The p-value of the sign-flip test (Fisher 1935): differences [n] of equally good models are as likely as their negatives.

    All signs are tried for up to 14 differences that are not 0, random ones for more, with equal ones for equal numbers of
    differences. The sign of a sum decides nothing, so the test is two-sided.
    """
    values = np.asarray(differences, dtype=float)
    values = values[values != 0]
    n = len(values)
    if n == 0:
        return 1.0
    bound = abs(values.sum()) * (1 - SAME)
    if n <= EXACT_FLIPS:
        bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float((np.abs((2 * bits - 1) @ values) >= bound).mean())
    flips = max(MIN_FLIPS, min(FLIPS, MAX_SIGNS // n))
    generator, extreme, done = np.random.default_rng(0), 0, 0
    while done < flips:
        rows = min(flips - done, max(1, 2_000_000 // n))
        signs = generator.integers(0, 2, size=(rows, n), dtype=np.int8) * 2.0 - 1.0
        extreme += int((np.abs(signs @ values) >= bound).sum())
        done += rows
    return (extreme + 1) / (flips + 1)


def bootstrap_difference_interval(differences: np.ndarray) -> Interval:
    """The 95 % interval of the mean of differences [n], from percentiles of 1,000 resamplings of items (Efron 1979).

    Where all differences are equal, resampling tells nothing, and the interval reaches from there as far as one item that
    differs by as much again could move it: to 0 for fewer than two items.
    """
    values = np.asarray(differences, dtype=float)
    n = len(values)
    if np.ptp(values) == 0:
        value = float(values[0])
        return (min(0.0, value), max(0.0, value)) if n < 2 else _around(value, abs(value) * wilson_interval(0, n)[1])
    return percentiles(resampled_sums(values[:, None])[:, 0] / n)


def _around(value: float, half_width: float) -> Interval:
    return value - half_width, value + half_width


def is_binary(values: np.ndarray) -> bool:
    """Whether all values are 0 or 1."""
    return bool(np.isin(values, (0.0, 1.0)).all())


def paired_test(first: np.ndarray, second: np.ndarray) -> PairedTest:
    """Compare two models by their values [n] on the same items: exact McNemar where all values are 0 or 1, else the sign-flip
    test with a bootstrap interval. Raises ValueError without an item, or for values that are not finite or not paired."""
    one, two = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if one.shape != two.shape or one.ndim != 1 or not len(one):
        raise ValueError(f"paired values are two lists of equal length with at least one item, not {one.shape} and {two.shape}")
    if not (np.isfinite(one).all() and np.isfinite(two).all()):
        raise ValueError("paired values are finite numbers")
    differences, n = two - one, len(one)
    mean, spread = float(differences.mean()), float(differences.std(ddof=1)) if n > 1 else 0.0
    if is_binary(one) and is_binary(two):
        only_first, only_second = int((differences < 0).sum()), int((differences > 0).sum())
        return PairedTest(
            difference=mean,
            interval=mcnemar_interval(only_first, only_second, n),
            p_value=mcnemar_p_value(only_first, only_second),
            test="mcnemar",
            count=n,
            spread=spread,
            discordant=only_first + only_second,
        )
    return PairedTest(
        difference=mean,
        interval=bootstrap_difference_interval(differences),
        p_value=sign_flip_p_value(differences),
        test="sign_flip",
        count=n,
        spread=spread,
    )
