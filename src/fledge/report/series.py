"""Curves as lists of (step, value) points: read from events, smoothed, and downsampled for the screen."""

import itertools
import math
from collections.abc import Iterable, Mapping

from fledge.report.read_run import number

Points = list[tuple[float, float]]
MAX_POINTS = 800


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


def smoothing_span(count: int) -> int:
    """The window of the moving average: an odd number of points, about a twentieth of the curve, from 3 to 101."""
    return max(3, min(101, count // 20)) | 1


def smooth(curve: Points) -> Points:
    """The centred moving average of the curve, so that the mean does not lag behind a falling loss. Windows are shorter at
    both ends."""
    sums = [0.0, *itertools.accumulate(value for _, value in curve)]
    half = smoothing_span(len(curve)) // 2
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
    stretch = math.ceil(2 * (len(curve) - 2) / (max_points - 2))
    kept: Points = [curve[0]]
    for start in range(1, len(curve) - 1, stretch):
        indices = range(start, min(start + stretch, len(curve) - 1))
        low = min(indices, key=lambda index: curve[index][1])
        high = max(indices, key=lambda index: curve[index][1])
        kept.extend(curve[index] for index in sorted({low, high}))
    kept.append(curve[-1])
    return kept
