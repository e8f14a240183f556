"""Confidence intervals of rates and of scores that are sums over rows."""

from collections.abc import Callable

import numpy as np

Z95 = 1.959964  # of the normal distribution
RESAMPLES = 1000
Interval = tuple[float, float]


def wilson_interval(successes: float, n: int) -> Interval:
    """The 95 % interval of a rate of `successes` in `n` trials (Wilson 1927); all of [0, 1] without a trial."""
    if n == 0:
        return 0.0, 1.0
    rate = successes / n
    center = (rate + Z95 * Z95 / (2 * n)) / (1 + Z95 * Z95 / n)
    half_width = Z95 / (1 + Z95 * Z95 / n) * (rate * (1 - rate) / n + Z95 * Z95 / (4 * n * n)) ** 0.5
    return max(0.0, center - half_width), min(1.0, center + half_width)


def bootstrap_interval(counts: np.ndarray, score: Callable[[np.ndarray], np.ndarray]) -> Interval:
    """The 95 % interval of a score of sums over rows, from percentiles of 1,000 resamplings of the rows (Efron 1979).

    `counts` [rows, k]: what each row adds to the sums. `score` maps sums [..., k] to scores [...] in [0, 1]. Rows are drawn as
    wholes, because the fields of one answer are right or wrong together. Where all resamplings have one score (no row is
    wrong, or every row is), they tell nothing: then the interval is Wilson's, with the rows that add anything as trials.
    Equal counts give equal intervals.
    """
    counts = counts[counts.any(axis=1)]
    rows = len(counts)
    if rows == 0:
        return 0.0, 1.0
    scores = score(resampled_sums(counts))
    if np.ptp(scores) == 0:
        return wilson_interval(float(scores[0]) * rows, rows)
    return percentiles(scores)


def resampled_sums(counts: np.ndarray) -> np.ndarray:
    """The sums [1000, k] of 1,000 resamplings of rows with `counts` [rows, k] (Efron 1979). Equal counts give equal sums."""
    rows = len(counts)
    return np.random.default_rng(0).multinomial(rows, np.full(rows, 1 / rows), size=RESAMPLES) @ counts


def percentiles(draws: np.ndarray) -> Interval:
    """The 95 % interval of a score that the resamplings gave these values [n] of."""
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)


def paired_difference(before: np.ndarray, after: np.ndarray) -> tuple[float, Interval]:
    """The mean of `after` − `before` over rows [n], and its 95 % interval by the normal approximation of paired values.

    Where all differences are equal, the interval is as wide as if one row were otherwise by 1.
    """
    difference = after.astype(float) - before.astype(float)
    n = len(difference)
    mean = float(difference.mean())
    spread = float(difference.std(ddof=1)) if n > 1 else 1.0
    half_width = Z95 * max(spread, n**-0.5) / n**0.5
    return mean, (mean - half_width, mean + half_width)
