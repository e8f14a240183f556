"""Events of fledge, taken one by one, as columns: for a reader of `events.jsonl`, and for the doctor of a run that goes on."""

import math
from array import array
from typing import Any

import numpy as np

from fledge.training_log.records import Series

FIGURES = frozenset({"step", "system", "eval", "initial_eval", "prompt_tests", "sets"})
"""Kinds of events whose values are figures; all others are kept as they are."""
SAMPLED = "system"
"""The kind of events of which a long run keeps one of several."""
NO_FIGURES = frozenset({"kind", "step"})


class EventColumns:
    """The figures of events by name, and the other events.

    `records`: events with figures that were taken. `unread`: what was left out → how many times. `events`: those without
    figures, in order. `most_sampled`: so many `system` events are kept at least, and less than twice as many; of
    more, every second, fourth, …; None: all of them. `left_out`: names of figures that are not kept.
    """

    def __init__(self, most_sampled: int | None = None, left_out: frozenset[str] = frozenset()) -> None:
        self._left_out = NO_FIGURES | left_out
        self.unread: dict[str, int] = {}
        self.events: list[dict[str, Any]] = []
        self.records = 0
        self._columns: dict[str, tuple[array[float], array[float]]] = {}
        self._most_sampled = most_sampled
        self._sampled, self._every, self._seen = EventColumns() if most_sampled else self, 1, 0

    def take(self, event: dict[str, Any]) -> None:
        """Take one event. Its steps are whole numbers, and its values those that JSON can express."""
        kind, step = event["kind"], event["step"]
        if kind not in FIGURES:
            self.events.append(event)
            return
        self.records += 1
        if kind == SAMPLED and self._sampled is not self:
            self._take_sampled(event)
            return
        columns = self._columns
        for name, value in event.items():
            of = type(value)
            if of is float or (of is int and name != "step"):
                column = columns.get(name)
                if column is None:
                    column = columns[name] = (array("d"), array("d"))
                column[0].append(step)
                column[1].append(value)
            elif name not in self._left_out:
                self._other(name, value, step)

    def _take_sampled(self, event: dict[str, Any]) -> None:
        """Take an event of which one of several is kept; every second one is dropped when there are too many."""
        assert self._most_sampled is not None
        self._seen += 1
        if self._seen % self._every:
            return
        self._sampled.take(event)
        if self._sampled.records == 2 * self._most_sampled:
            self._every *= 2
            self._sampled.drop_every_second()

    def drop_every_second(self) -> None:
        """Keep the second, fourth, … point of each figure, and a single one."""
        self.records //= 2
        for steps, values in self._columns.values():
            first = min(1, len(steps) - 1)
            steps[:], values[:] = steps[first::2], values[first::2]

    def _other(self, name: str, value: Any, step: int) -> None:
        """A value that is no number: null is a number that was none; mappings and lists hold numbers."""
        if value is None:
            self._add(name, step, math.nan)
        elif isinstance(value, bool | str):
            self.unread[f"{name}: no numbers"] = self.unread.get(f"{name}: no numbers", 0) + 1
        elif isinstance(value, dict):
            for key, one in value.items():
                self._other_inside(f"{name}/{key}", one, step)
        elif isinstance(value, list):
            for index, one in enumerate(value):
                self._other_inside(f"{name}/{index}", one, step)

    def _other_inside(self, name: str, value: Any, step: int) -> None:
        if isinstance(value, int | float) and not isinstance(value, bool):
            self._add(name, step, value)
        else:
            self._other(name, value, step)

    def _add(self, name: str, step: int, value: float) -> None:
        steps, values = self._columns.setdefault(name, (array("d"), array("d")))
        steps.append(step)
        values.append(value)

    def series(self) -> dict[str, Series]:
        """The figures as series, in order of their steps."""
        found = {} if self._sampled is self else self._sampled.series()
        for name, (steps, values) in self._columns.items():
            at, figures = np.array(steps, dtype=np.float64), np.array(values, dtype=np.float64)
            if len(at) > 1 and (np.diff(at) < 0).any():
                order = np.argsort(at, kind="stable")
                at, figures = at[order], figures[order]
            found[name] = Series(at, figures)
        return found
