"""Means of the figures of updates, for guards that look at more than one update at a time."""

import math
import statistics
from collections import deque
from collections.abc import Iterable

from fledge.monitor.rules import Event


class WindowMeans:
    """The means of some figures of `step` events over the last `window` updates that have all of them, and over the first
    ones."""

    def __init__(self, keys: tuple[str, ...], window: int) -> None:
        self.keys, self.window = keys, window
        self._first: list[tuple[float, ...]] = []
        self._recent = deque[tuple[float, ...]](maxlen=window)

    def add(self, event: Event) -> tuple[float, ...] | None:
        """The means with this event; None if it lacks a figure, or as long as there are fewer than `window` updates."""
        values = tuple(event.get(key) for key in self.keys) if event["kind"] == "step" else (None,)
        if None in values:
            return None
        self._recent.append(values)  # type: ignore[arg-type]
        if len(self._first) < self.window:
            self._first.append(values)  # type: ignore[arg-type]
        return _means(self._recent) if len(self._recent) == self.window else None

    @property
    def errors(self) -> tuple[float, ...]:
        """The standard errors of the means over the last updates; 0 for a window of one."""
        if self.window == 1:
            return (0.0,) * len(self.keys)
        return tuple(statistics.stdev(column) / math.sqrt(self.window) for column in zip(*self._recent, strict=True))

    @property
    def is_empty(self) -> bool:
        """Whether no event has had all figures yet."""
        return not self._first

    @property
    def first(self) -> tuple[float, ...]:
        """The means over the first updates."""
        return _means(self._first)


def _means(rows: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(statistics.fmean(column) for column in zip(*rows, strict=True))
