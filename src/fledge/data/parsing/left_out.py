"""Rows that are left out, counted with their reasons."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fledge.data.parsing.columns import RowError
from fledge.data.reading.records import Record

Parsed = TypeVar("Parsed")


@dataclass
class Counts:
    """How often each thing happened, with the place and detail of the first time."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str, detail: str = "") -> None:
        """Count one."""
        self.counts[reason] += 1
        self.first.setdefault(reason, f"{where}: {detail}" if detail else where)

    def lines(self) -> list[str]:
        """A line for each reason, the most frequent first."""
        return [f"{count:,} × {reason}, first at {self.first[reason]}" for reason, count in self.counts.most_common()]

    def parsed(self, record: Record, where: str, parse: Callable[[Any], Parsed]) -> Parsed | None:
        """What a row is parsed to; None for a broken row and for one that `parse` raises RowError for, which is counted."""
        try:
            if record.broken:
                raise RowError(record.broken, record.detail)
            return parse(record.value)
        except RowError as error:
            self.add(error.reason, where, error.detail)
            return None
