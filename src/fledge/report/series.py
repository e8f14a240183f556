"""Curves as lists of (step, value) points: read from events, smoothed, and downsampled for the screen."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping

from fledge.report.read_run import number

Points = list[tuple[float, float]]
MAX_POINTS = 800
SMOOTHING = 0.05  # share of a curve's points that a smoothed point is the mean of, unless the reader moves the slider


def points(rows: Iterable[Mapping[str, object]], key: str) -> Points:
    """The (step, value) pair of every event that holds a finite number under the key."""
    curve: Points = []
    for row in rows:
        step, value = number(row.get("step")), number(row.get(key))
        if step is not None and value is not None and math.isfinite(step) and math.isfinite(value):
            curve.append((step, value))
    return curve


def last_value(rows: Iterable[Mapping[str, object]], key: str) -> float | None:
    """The last number under the key, or None when no event has one."""
    values = [value for row in rows if (value := number(row.get(key))) is not None]
    return values[-1] if values else None


def smooth(curve: Points, share: float = SMOOTHING) -> Points:
    """The centred moving average over a share of the points, so that the mean does not lag behind a falling loss. Windows are
    shorter at both ends."""
    sums = [0.0, *itertools.accumulate(value for _, value in curve)]
    half = math.floor(len(curve) * share / 2 + 0.5)
    result: Points = []
    for index, (step, _) in enumerate(curve):
        first, after = max(0, index - half), min(len(curve), index + half + 1)
        result.append((step, (sums[after] - sums[first]) / (after - first)))
    return result


def downsample(curve: Points, max_points: int = MAX_POINTS) -> Points:
    """The curve with at most about `max_points` points: the lowest and the highest point of each stretch, so that spikes
    stay visible."""
    if len(curve) <= max_points:
        return curve
    kept: Points = [curve[0]]
    for indices in _stretches(len(curve), max_points):
        low = min(indices, key=lambda index: curve[index][1])
        high = max(indices, key=lambda index: curve[index][1])
        kept.extend(curve[index] for index in sorted({low, high}))
    kept.append(curve[-1])
    return kept


def bucket_means(curve: Points, max_points: int = MAX_POINTS) -> Points:
    """The mean step and the mean value of each stretch that `downsample` takes two points of: what smoothing starts from."""
    means: Points = [curve[0]]
    for indices in _stretches(len(curve), max_points):
        part = [curve[index] for index in indices]
        means.append((sum(step for step, _ in part) / len(part), sum(value for _, value in part) / len(part)))
    return [*means, curve[-1]]


def _stretches(count: int, max_points: int) -> Iterator[range]:
    stretch = math.ceil(2 * (count - 2) / (max_points - 2))
    for start in range(1, count - 1, stretch):
        yield range(start, min(start + stretch, count - 1))
