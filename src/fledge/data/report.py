"""The data report: counts of every source's rows. They always add up: every row is used, or dropped for one reason.

The numbers of a source are sums over its shards and the phases.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt
from typing_extensions import TypedDict

from fledge.data.row_events import BUILD_AGAIN, EVENTS_KEPT
from fledge.errors import FledgeError
from fledge.run.text_files import read_json

COUNTERS = ("dropped", "cut", "changed", "noticed", "unread_columns")
LISTED_COLUMNS = 12  # in the line about columns that nothing reads


class SavedEvent(TypedDict):
    """One of the first events of a source."""

    reason: str
    where: str
    detail: str


class SavedSource(TypedDict):
    """The counts of one source as data_report.json has them (`SourceReport.as_dict`)."""

    name: str
    path: str
    split: str
    rows: NonNegativeInt
    used_rows: NonNegativeInt
    validation_rows: NonNegativeInt
    dropped: dict[str, NonNegativeInt]
    truncated_rows: NonNegativeInt
    shortened_rows: NonNegativeInt
    split_rows: NonNegativeInt
    cut: dict[str, NonNegativeInt]
    changed: dict[str, NonNegativeInt]
    noticed: dict[str, NonNegativeInt]
    unread_columns: dict[str, NonNegativeInt]
    examples: NonNegativeInt
    tokens: NonNegativeInt
    target_tokens: NonNegativeInt
    lost_tokens: NonNegativeInt
    first_events: list[SavedEvent]


class SavedReport(TypedDict):
    """data_report.json of a build."""

    sources: list[SavedSource]


@dataclass(kw_only=True)
class SourceReport:
    """Counts of one source's rows: read, used, and dropped by reason (rows = used_rows + sum of `dropped`).

    `split`: train, validation or evaluation. `validation_rows`: used rows that went to validation.
    `truncated_rows`: used rows with an answer cut. `shortened_rows`: used rows with their oldest turns left out. `split_rows`:
    used rows with several examples or with a continuation in another packed row.
    `cut`: reason -> number of events of these three states. `lost_tokens`: tokens cut away.
    `dropped`, `changed` and `noticed`: reason -> number of rows (noticed: also of files).
    `unread_columns`: column with a value that nothing reads -> number of rows, of the rows that could be parsed.
    `examples`, `tokens`, `target_tokens`: totals of the used rows, validation included.
    `first_events`: reason -> its first events, each with `reason`, `where` (location) and `detail`.
    """

    name: str
    path: str
    split: str = "train"
    rows: int = 0
    used_rows: int = 0
    validation_rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    truncated_rows: int = 0
    shortened_rows: int = 0
    split_rows: int = 0
    cut: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    noticed: Counter[str] = field(default_factory=Counter)
    unread_columns: Counter[str] = field(default_factory=Counter)
    examples: int = 0
    tokens: int = 0
    target_tokens: int = 0
    lost_tokens: int = 0
    first_events: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    @property
    def dropped_rows(self) -> int:
        """Number of rows that are not used."""
        return sum(self.dropped.values())

    def add_counts(self, counted: Mapping[str, Any]) -> None:
        """Add the counts of the events of one shard and phase (`RowEventLog.as_dict`)."""
        counts, rows = counted["counts"], counted["rows"]
        for state in ("dropped", "changed", "noticed"):
            getattr(self, state).update(counts.get(state, {}))
        for state in ("truncated", "shortened", "split"):
            self.cut.update(counts.get(state, {}))
        self.truncated_rows += rows.get("truncated", 0)
        self.shortened_rows += rows.get("shortened", 0)
        self.split_rows += rows.get("split", 0)
        self.lost_tokens += counted["amounts"].get("truncated", 0)

    def keep_first_events(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Keep the first EVENTS_KEPT events of each reason, as examples for the user."""
        for event in events:
            kept = self.first_events.setdefault(event["reason"], [])
            if len(kept) < EVENTS_KEPT:
                kept.append({key: event[key] for key in ("reason", "where", "detail")})

    def add_file_notice(self, reason: str, file: str) -> None:
        """Add a notice about a whole file."""
        self.noticed[reason] += 1
        self.keep_first_events([{"reason": reason, "where": file, "detail": ""}])

    def check_sum(self) -> None:
        """Raise AssertionError if the rows do not add up, which is a fault of fledge, not of the data."""
        if self.rows != self.used_rows + self.dropped_rows:
            raise AssertionError(f"{self.name}: {self.rows} rows != {self.used_rows} used + {dict(self.dropped)} dropped")

    def check_usable(self, key: str, max_drop_fraction: float | None) -> None:
        """Raise FledgeError if no row can be used, or if more than the fraction `max_drop_fraction` of the rows is dropped
        (None: no limit). `key`: the recipe key of the data."""
        if self.rows and self.dropped_rows >= self.rows:
            raise FledgeError(
                f"none of the {self.rows:,} rows of '{self.path}' can be used ({self.drop_reasons()})",
                where=key,
                hint=self._first_drop(),
            )
        if max_drop_fraction is not None and self.dropped_rows > max_drop_fraction * self.rows:
            raise FledgeError(
                f"{self.dropped_rows:,} of the {self.rows:,} rows of '{self.path}' are dropped "
                f"({self.dropped_rows / self.rows:.1%}): {self.drop_reasons()}",
                where=f"{key}.max_drop_fraction ({max_drop_fraction:.3g})",
                hint=self._first_drop(),
            )

    def drop_reasons(self) -> str:
        """The reasons for which rows were dropped, with their counts, most frequent first."""
        return ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.most_common())

    def _first_drop(self) -> str:
        """Location and detail of the first row that was dropped for the most frequent reason."""
        event = self.first_events[self.dropped.most_common(1)[0][0]][0]
        return f"first at {event['where']}: {event['detail'] or event['reason']}"

    def as_dict(self) -> dict[str, Any]:
        """The counts as JSON values, for data_report.json."""
        counters = {name: dict(getattr(self, name).most_common()) for name in COUNTERS}
        events = [event for events in self.first_events.values() for event in events]
        return {**vars(self), **counters, "first_events": events}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "SourceReport":
        """The report from the output of `as_dict`."""
        counters = {name: Counter(saved[name]) for name in COUNTERS}
        values = {field.name: saved[field.name] for field in fields(cls)}
        report = cls(**{**values, **counters, "first_events": {}})
        report.keep_first_events(saved["first_events"])
        return report


@dataclass
class DataReport:
    """The reports of all sources of a stage."""

    sources: list[SourceReport] = field(default_factory=list)

    def check(self, key: str, max_drop_fraction: float | None = None) -> None:
        """Raise AssertionError if rows do not add up, and FledgeError for a source that cannot be used (`check_usable`)."""
        for source in self.sources:
            source.check_sum()
        for source in self.sources:
            source.check_usable(key, max_drop_fraction)

    def as_dict(self) -> dict[str, Any]:
        """The reports as JSON values, for data_report.json."""
        return {"sources": [source.as_dict() for source in self.sources]}

    @classmethod
    def read(cls, file: Path) -> "DataReport":
        """The report in the data_report.json of a build. Raises FledgeError if the file is damaged."""
        return cls.from_dict(read_json(file, SavedReport, BUILD_AGAIN))

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "DataReport":
        """The report from the content of data_report.json."""
        return cls([SourceReport.from_dict(source) for source in saved["sources"]])

    def lines(self) -> list[str]:
        """The console lines: one for each source, and one for each reason, with the location of its first event."""
        return [line for source in self.sources for line in source_lines(source.as_dict())]


def source_lines(source: Mapping[str, Any]) -> list[str]:
    """The console lines of one source of data_report.json."""
    dropped = sum(source["dropped"].values())
    totals = [f"{source['rows']:,} rows", f"{source['used_rows']:,} used"]
    totals += [f"{source['validation_rows']:,} of them for validation"] if source["validation_rows"] else []
    totals += [f"{dropped:,} dropped"] if dropped else []
    totals += [f"{source[f'{state}_rows']:,} {state}" for state in ("truncated", "shortened") if source[f"{state}_rows"]]
    lines = [f"{source['name']}: " + ", ".join(totals)]
    first: dict[str, Mapping[str, str]] = {}
    for event in source["first_events"]:
        first.setdefault(event["reason"], event)
    for reason, event in first.items():
        counts = (source[counter].get(reason) for counter in ("dropped", "changed", "noticed", "cut"))
        count = next((number for number in counts if number), None)
        label = f"{count:,} × {reason}" if count else reason
        detail = f" ({event['detail']})" if event["detail"] else ""
        lines.append(f"  {label}, first at {event['where']}{detail}")
    if source["unread_columns"]:
        lines.append(f"  columns that nothing reads: {_columns(source['unread_columns'])}")
    return lines


def _columns(counts: Mapping[str, int]) -> str:
    """Columns with the number of rows in which they have a value: `id, source (300 rows), lang (12 rows)`."""
    by_count: dict[int, list[str]] = {}
    for name, count in list(counts.items())[:LISTED_COLUMNS]:
        by_count.setdefault(count, []).append(str(name))
    groups = [f"{', '.join(names)} ({count:,} row{'s' if count > 1 else ''})" for count, names in by_count.items()]
    more = len(counts) - LISTED_COLUMNS
    return ", ".join(groups) + (f", and {more:,} more" if more > 0 else "")
