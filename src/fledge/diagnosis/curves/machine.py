"""Figures of time and memory: waiting for data, steps that become slower, memory that grows; and records of crashes."""

from typing import Any

import numpy as np

from fledge.diagnosis.curves.robust import blocks, correlation, trend
from fledge.training_log.records import Series, TrainingLog

FIRST_STEPS = 5  # that compile and fill caches
FAST = 0.1  # share of steps that are at least so fast
DATA_SECONDS = ("system/phases/data", "system/data_seconds")
"""Names of the seconds that an update waits for its batch."""


def machine_figures(log: TrainingLog) -> dict[str, Any]:
    """All figures of time and memory."""
    return _time(log) | _memory(log) | _crash(log)


def _steady(series: Series | None, fewest: int) -> Series | None:
    """The points after the first steps; None where they are too few."""
    if series is None or len(series) < fewest + FIRST_STEPS:
        return None
    return Series(series.steps[FIRST_STEPS:], series.values[FIRST_STEPS:])


def _time(log: TrainingLog) -> dict[str, Any]:
    seconds = _steady(log.get("system/step_seconds"), 20)
    speed = _steady(log.get("system/step_tokens_per_second"), 20)
    figures: dict[str, Any] = {}
    if seconds is not None:
        usual = float(np.median(seconds.values))
        ratio, steady = _slow_down(seconds, FAST)
        figures |= {"curve/step_seconds": usual, "curve/slow_down": ratio, "curve/slow_trend": steady}
        data = next((found for name in DATA_SECONDS if (found := _steady(log.get(name), 20)) is not None), None)
        if data is not None and usual > 0:
            times = np.interp(data.steps, seconds.steps, seconds.values)
            figures["curve/data_share"] = float(np.sum(data.values) / max(np.sum(times), 1e-12))
    if speed is not None and speed.values.min() > 0:  # of the work alone: saving and evaluation are not in it
        ratio, steady = _slow_down(Series(speed.steps, 1 / speed.values), FAST)
        figures |= {"curve/slow_down": ratio, "curve/slow_trend": steady}
    return figures


def _slow_down(series: Series, quantile: float) -> tuple[float, float]:
    """(the fast end of the last fifth ÷ that of the first fifth, statistic of Mann and Kendall of the fast ends of ten pieces).
    Other programs on the machine hardly move the fast end."""
    ends = np.array([np.quantile(piece, quantile) for piece in np.array_split(series.values, 10)])
    first, last = ends[:2].mean(), ends[-2:].mean()
    return float(last / first) if first > 0 else 1.0, trend(ends)[1]


def _memory(log: TrainingLog) -> dict[str, Any]:
    """How far memory grows steadily: from the second fifth of the log on, when caches are filled."""
    series = log.get("system/memory_bytes")
    if series is None or len(series) < 50:
        return {}
    late = Series(series.steps[len(series) // 5 :], series.values[len(series) // 5 :])
    means = blocks(late, 20)
    growth = float(means.means[-1] - means.means[0])
    return {
        "curve/memory_bytes": float(late.values[-1]),
        "curve/memory_growth": growth,
        "curve/memory_growth_share": growth / float(means.means[0]) if means.means[0] > 0 else 0.0,
        "curve/memory_is_steady": correlation(means.steps, means.means),
    }


def _crash(log: TrainingLog) -> dict[str, Any]:
    """The last line that tells of a crash. One that records of the training loss follow was caught, or the run went on later:
    it counts for none, but where so few follow that a buffer may have held them back."""
    crashes = [event for event in log.events if event.get("kind") == "crash"]
    ends = [event for event in crashes if not event.get("records_after")]
    if ends:
        return {"curve/crash": str(ends[-1].get("text", ""))}
    held = [event for event in crashes if event.get("is_held_back")]
    return {"curve/crash_before_records": str(held[-1].get("text", ""))} if held and not log.ended else {}
