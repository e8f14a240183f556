"""Means of the figures of updates, for guards that look at more than one update at a time."""

import math
import statistics
from collections import deque
from collections.abc import Collection, Iterable

from fledge.monitor.rules import Event


class WindowMeans:
    """The means of some figures of `step` events over the last `window` updates that have all of them, and over the first
    ones."""

    def __init__(self, keys: tuple[str, ...], window: int) -> None:
        self.keys, self.window = keys, window
        self._count = 0
        self._first: list[tuple[float, ...]] = []
        self._recent = deque[tuple[float, ...]](maxlen=window)

    def add(self, event: Event) -> tuple[float, ...] | None:
        """The means with this event; None if it lacks a figure, or as long as there are fewer than `window` updates."""
        values = tuple(event.get(key) for key in self.keys) if event["kind"] == "step" else (None,)
        if None in values:
            return None
        return self.add_values(values)  # type: ignore[arg-type]

    def add_values(self, values: tuple[float, ...]) -> tuple[float, ...] | None:
        """The means with the figures of one more update, which a rule has computed; None as in `add`."""
        self._count += 1
        self._recent.append(values)
        if len(self._first) < self.window:
            self._first.append(values)
        return _means(self._recent) if len(self._recent) == self.window else None

    @property
    def is_apart(self) -> bool:
        """Whether none of the last updates is one of the first ones."""
        return self._count >= 2 * self.window

    @property
    def errors(self) -> tuple[float, ...]:
        """The standard errors of the means over the last updates; 0 for a window of one."""
        return _errors(self._recent)

    @property
    def first_errors(self) -> tuple[float, ...]:
        """The standard errors of `first`."""
        return _errors(self._first)

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


def _errors(rows: Collection[tuple[float, ...]]) -> tuple[float, ...]:
    spread = statistics.stdev if len(rows) > 1 else lambda column: 0.0
    return tuple(spread(column) / math.sqrt(len(rows)) for column in zip(*rows, strict=True))
