"""Rows of a log as they are read, before their names and steps are understood."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fledge.training_log.records import Floats


class Rows:
    """Figures of the rows of a log, column by column under the names of the log, and what was seen beside them.

    `unread`: what was left out → how many lines or cells. `notes`: sentences on what was understood. `events`: records that are
    no figures. `measures`: column → unit that was written beside its numbers.
    """

    def __init__(self) -> None:
        self.lines: list[int] = []
        self.unread: Counter[str] = Counter()
        self.notes: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.measures: dict[str, str] = {}
        self._columns: dict[str, tuple[list[int], list[float]]] = {}

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def names(self) -> list[str]:
        """The columns in the order in which they came."""
        return list(self._columns)

    def add(self, line: int, values: Mapping[str, float]) -> None:
        """Add a row: its line in the file, from 1, and its figures."""
        row = len(self.lines)
        self.lines.append(line)
        columns = self._columns
        for name, value in values.items():
            column = columns.get(name)
            if column is None:
                column = columns[name] = ([], [])
            column[0].append(row)
            column[1].append(value)

    def column(self, name: str) -> tuple[NDArray[np.int64], Floats]:
        """The rows that have a figure, and its values there."""
        rows, values = self._columns[name]
        return np.asarray(rows, dtype=np.int64), np.asarray(values, dtype=np.float64)

    def points(self, name: str) -> int:
        """The number of rows that have a figure."""
        return len(self._columns[name][0])

    def spread(self, name: str | None) -> Floats | None:
        """A figure for every row, NaN where a row has none: [rows]. None where there is no such column."""
        if name is None or name not in self._columns:
            return None
        rows, values = self.column(name)
        full = np.full(len(self.lines), np.nan)
        full[rows] = values
        return full
