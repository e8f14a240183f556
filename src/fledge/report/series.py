"""Points of a curve: taken from events, smoothed, and thinned to what a screen can show."""

import itertools
import math
from collections.abc import Iterable, Mapping

from fledge.report.read_run import number

Points = list[tuple[float, float]]
MOST_POINTS = 800


def points(rows: Iterable[Mapping[str, object]], key: str) -> Points:
    """(step, value) for every row holding a finite number under the key."""
    found: Points = []
    for row in rows:
        step, value = number(row.get("step")), number(row.get(key))
        if step is not None and value is not None and math.isfinite(step) and math.isfinite(value):
            found.append((step, value))
    return found


def last(rows: Iterable[Mapping[str, object]], key: str) -> float | None:
    values = [value for row in rows if (value := number(row.get(key))) is not None]
    return values[-1] if values else None


def smoothing_span(count: int) -> int:
    """An odd number of points, about a twentieth of the curve."""
    return max(3, min(101, count // 20)) | 1


def smooth(curve: Points) -> Points:
    """Centred moving average, so the mean does not lag behind a falling loss; cut short at both ends."""
    sums = [0.0, *itertools.accumulate(value for _, value in curve)]
    half = smoothing_span(len(curve)) // 2
    result: Points = []
    for place, (step, _) in enumerate(curve):
        first, after = max(0, place - half), min(len(curve), place + half + 1)
        result.append((step, (sums[after] - sums[first]) / (after - first)))
    return result


def thin(curve: Points, most: int = MOST_POINTS) -> Points:
    """At most about `most` points: the lowest and the highest of each stretch, so that spikes stay."""
    if len(curve) <= most:
        return curve
    stretch = math.ceil(2 * (len(curve) - 2) / (most - 2))
    kept: Points = [curve[0]]
    for start in range(1, len(curve) - 1, stretch):
        part = range(start, min(start + stretch, len(curve) - 1))
        low = min(part, key=lambda place: curve[place][1])
        high = max(part, key=lambda place: curve[place][1])
        kept.extend(curve[place] for place in sorted({low, high}))
    kept.append(curve[-1])
    return kept
