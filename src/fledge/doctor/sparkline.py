"""A small plot in text: the course of a figure on one line, with the ends of both axes."""

import math
import sys

import numpy as np

from fledge.training_log import Series

WIDTH = 48  # characters of the course
LEVELS = "▁▂▃▄▅▆▇█"
ASCII_LEVELS = "_.-=+*#@"
GAP, BAD = " ", "!"  # nothing was recorded; a value that is no finite number
LOG_RANGE = 30.0  # largest ÷ smallest value from which the axis is logarithmic


def levels_of(encoding: str | None) -> str:
    """The characters from low to high that an encoding has: blocks, or signs of ASCII."""
    try:
        LEVELS.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII_LEVELS
    return LEVELS


def sparkline(series: Series, name: str, steps: tuple[float, float] | None = None, levels: str | None = None) -> list[str]:
    """Two lines, or three with `steps`: name, course (means of equal stretches of steps) and the range of what is drawn; the
    range of the steps; a mark below the steps that evidence was read from. Empty without a finite value. `levels`: characters
    from low to high; None: what standard output can write."""
    finite = series.finite
    if not len(finite):
        return []
    levels = levels_of(getattr(sys.stdout, "encoding", None)) if levels is None else levels
    width = min(WIDTH, max(2, len(series)))
    buckets = _buckets(series, width)
    means = [float(one[np.isfinite(one)].mean()) for one in buckets if np.isfinite(one).any()]
    low, high = min(means), max(means)  # of what is drawn: the first point of a loss alone would flatten all others
    is_log = low > 0 and high / low >= LOG_RANGE
    course = "".join(_character(one, (low, high), is_log, levels) for one in buckets)
    label = f"{name} "
    axis = f"{number(low)} to {number(high)}" + (", logarithmic" if is_log else "")
    first, last = float(series.steps[0]), float(series.steps[-1])
    lines = [f"{label}{course} {axis}", f"{' ' * len(label)}step {number(first)} to {number(last)}"]
    mark = _mark(steps, (first, last), width)
    return [lines[0], f"{' ' * len(label)}{mark}", lines[1]] if mark else lines


def _buckets(series: Series, width: int) -> list[np.ndarray]:
    """The values of `width` equal stretches of steps."""
    first, last = series.steps[0], series.steps[-1]
    if last <= first:
        return list(np.array_split(series.values, width))
    index = np.minimum(((series.steps - first) / (last - first) * width).astype(int), width - 1)
    return [series.values[index == one] for one in range(width)]


def _character(values: np.ndarray, ends: tuple[float, float], is_log: bool, levels: str) -> str:
    if not len(values):
        return GAP
    finite = values[np.isfinite(values)]
    if len(finite) < len(values):
        return BAD
    low, high = map(math.log, ends) if is_log else ends
    mean = float(finite.mean())
    mean = math.log(mean) if is_log else mean
    share = 0.5 if high <= low else (mean - low) / (high - low)
    return levels[min(len(levels) - 1, max(0, int(share * len(levels))))]


def _mark(steps: tuple[float, float] | None, ends: tuple[float, float], width: int) -> str:
    """A line of `^` below the stretch of the evidence; empty where it is the whole course, or lies outside."""
    first, last = ends
    if steps is None or last <= first or (steps[0] <= first and steps[1] >= last) or steps[1] < first or steps[0] > last:
        return ""
    begin, end = (min(width - 1, max(0, int((one - first) / (last - first) * width))) for one in steps)
    return " " * begin + "^" * (end - begin + 1)


def number(value: float) -> str:
    """A figure as people read it: `0.00012`, `4.77`, `1,666`, `1.2e-08`."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
