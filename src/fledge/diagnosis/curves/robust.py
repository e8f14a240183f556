"""Statistics of noisy series that a few wild points do not move."""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fledge.training_log.records import Floats, Series

NORMAL = 1.4826  # standard deviation of a normal distribution ÷ its median absolute deviation


def spread(values: Floats) -> float:
    """The standard deviation, from the median absolute deviation; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    return float(NORMAL * np.median(np.abs(values - np.median(values))))


def noise(values: Floats) -> float:
    """The standard deviation of single points around a slow trend, from differences of neighbours. Where more than half of
    these are equal, from their plain standard deviation."""
    if len(values) < 3:
        return 0.0
    differences = np.diff(values)
    found = spread(differences) / np.sqrt(2)
    return float(found if found > 0 else differences.std() / np.sqrt(2))


def running_mean(values: Floats, window: int) -> Floats:
    """The means of all windows of so many points, [N − window + 1]."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    return (sums[window:] - sums[:-window]) / window


def centred_mean(values: Floats, half: int) -> Floats:
    """The mean of each point with `half` points on both sides, [N]; shorter at the ends."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    places = np.arange(len(values))
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def trailing_median(values: Floats, window: int) -> Floats:
    """For each point from number `window` on, the median of the `window` points before it, [N − window]."""
    return np.median(sliding_window_view(values, window)[:-1], axis=-1)


@dataclass(frozen=True)
class Blocks:
    """Means of consecutive pieces of a series: `steps`, `means` [K]; `error`: the standard error of a mean, which holds slow
    noise too; `points`: of a piece."""

    steps: Floats
    means: Floats
    error: float
    points: int

    def __len__(self) -> int:
        return len(self.means)


def blocks(series: Series, count: int) -> Blocks:
    """Up to `count` blocks of equally many points; the remainder is left out at the beginning."""
    count = max(1, min(count, len(series)))
    size = len(series) // count
    values, steps = (column[len(series) - size * count :].reshape(count, size) for column in (series.values, series.steps))
    means = values.mean(axis=1)
    of_points = noise(series.values) / np.sqrt(size)
    bends = np.diff(means, 2)
    of_blocks = spread(bends) / np.sqrt(6) if len(bends) >= 4 else 0.0
    return Blocks(steps.mean(axis=1), means, float(max(of_points, of_blocks)), size)


def trend(values: Floats) -> tuple[float, float]:
    """(slope, z) of a short series: the median of the slopes of all pairs (Theil 1950, Sen 1968) per place, and the statistic
    of Mann (1945) and Kendall for a monotone trend in standard deviations. (0, 0) for fewer than four values."""
    count = len(values)
    if count < 4:
        return 0.0, 0.0
    first, second = np.triu_indices(count, 1)
    differences = values[second] - values[first]
    slope = float(np.median(differences / (second - first)))
    rises = float(np.sign(differences).sum())
    deviation = np.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    return slope, (rises - np.sign(rises)) / deviation


def correlation(first: Floats, second: Floats) -> float:
    """Pearson's correlation; 0 where one of them does not vary."""
    first, second = first - first.mean(), second - second.mean()
    size = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / size if size > 0 else 0.0
