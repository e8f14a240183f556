"""The account of every row: what was used, cut, split or dropped, where and why. Its totals always add up.

Workers write one line for each row that is not simply used (`row_events.jsonl`) and count; the accounts of the sources are sums
of those counts.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import orjson

from fledge.errors import FledgeError

EXAMPLES_KEPT = 3  # of each reason, with place and detail
STATES = ("dropped", "truncated", "shortened", "split", "changed", "noticed")
DETAIL_LENGTH = 300


class RowEventLog:
    """Remarks on the rows of one shard. A change or a notice is kept with its first places only, and counted always."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.counts: dict[str, Counter[str]] = {state: Counter() for state in STATES}
        self.amounts: Counter[str] = Counter()  # tokens or rounds, by state
        self.rows: Counter[str] = Counter()  # rows with at least one remark of a state
        self._last: dict[str, int] = {}

    def add(self, row: int, where: str, state: str, reason: str, detail: str = "", amount: int = 0) -> None:
        """One remark: `state` is one of STATES, `amount` the tokens or rounds that it concerns."""
        counts = self.counts[state]
        counts[reason] += 1
        self.amounts[state] += amount
        if self._last.get(state) != row:
            self._last[state] = row
            self.rows[state] += 1
        if state in ("changed", "noticed") and counts[reason] > EXAMPLES_KEPT:
            return
        line = {"row": row, "where": where, "state": state, "reason": reason, "detail": detail[:DETAIL_LENGTH]}
        self._file.write(orjson.dumps({**line, "amount": amount} if amount else line) + b"\n")

    def as_dict(self) -> dict[str, Any]:
        """For the shard's result."""
        counts = {state: dict(counter) for state, counter in self.counts.items() if counter}
        return {"counts": counts, "amounts": dict(self.amounts), "marked": dict(self.rows)}


@dataclass
class SourceReport:
    """One source: rows = used + dropped. Used rows may be truncated (an answer or text was cut), shortened (oldest turns
    left out), split (made several examples, or continued in another packed row) or changed (mended). `cut` counts the first
    three by reason."""

    name: str
    path: str
    part: str = "train"
    rows: int = 0
    used: int = 0
    validation: int = 0
    truncated: int = 0
    shortened: int = 0
    split: int = 0
    examples: int = 0
    tokens: int = 0
    target_tokens: int = 0
    tokens_lost: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    noticed: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    examples_by_reason: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def merge(self, counted: Mapping[str, Any]) -> None:
        """Add what a shard counted (`Notes.as_dict`)."""
        counts, marked = counted["counts"], counted["marked"]
        for state in ("dropped", "changed", "noticed"):
            getattr(self, state).update(counts.get(state, {}))
        for state in ("truncated", "shortened", "split"):
            self.cut.update(counts.get(state, {}))
        self.truncated += marked.get("truncated", 0)
        self.shortened += marked.get("shortened", 0)
        self.split += marked.get("split", 0)
        self.tokens_lost += counted["amounts"].get("truncated", 0)

    def keep(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Keep the first places of each reason for the user to look at."""
        for line in lines:
            places = self.examples_by_reason.setdefault(line["reason"], [])
            if len(places) < EXAMPLES_KEPT:
                places.append({key: line[key] for key in ("reason", "where", "detail")})

    def add_file_notice(self, reason: str, where: str, detail: str = "") -> None:
        """Something about the source that is no row of it."""
        self.noticed[reason] += 1
        self.keep([{"reason": reason, "where": where, "detail": detail}])

    def check(self) -> None:
        """The sum that must hold; a failure is a fault of fledge, not of the data."""
        if self.rows != self.used + sum(self.dropped.values()):
            raise AssertionError(f"{self.name}: {self.rows} rows != {self.used} used + {dict(self.dropped)} dropped")

    def as_dict(self) -> dict[str, Any]:
        """For data_report.json."""
        return {
            "name": self.name, "path": self.path, "part": self.part, "rows": self.rows, "used": self.used,
            "validation": self.validation, "dropped": dict(self.dropped.most_common()), "truncated": self.truncated,
            "shortened": self.shortened, "split": self.split, "changed": dict(self.changed.most_common()),
            "noticed": dict(self.noticed.most_common()), "cut": dict(self.cut.most_common()),
            "training_examples": self.examples, "tokens": self.tokens,
            "target_tokens": self.target_tokens, "tokens_lost": self.tokens_lost,
            "examples": [place for places in self.examples_by_reason.values() for place in places],
        }  # fmt: skip

    def reasons(self) -> str:
        """Why rows were dropped, most frequent first."""
        return ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.most_common())

    def first_dropped(self) -> str:
        """Where the first dropped row of the most frequent reason stands."""
        reason = self.dropped.most_common(1)[0][0]
        place = self.examples_by_reason[reason][0]
        return f"first at {place['where']}: {place['detail'] or place['reason']}"


@dataclass
class DataReport:
    """The accounts of a stage's sources."""

    sources: list[SourceReport] = field(default_factory=list)

    def check_usable(self, key: str, max_dropped: float | None = None) -> None:
        """FledgeError for a source of which no row is left, or of which a larger share is dropped than allowed."""
        for account in self.sources:
            dropped = sum(account.dropped.values())
            if account.rows and dropped >= account.rows:
                raise FledgeError(
                    f"none of the {account.rows:,} rows of '{account.path}' can be used ({account.reasons()})",
                    where=key,
                    hint=account.first_dropped(),
                )
            if max_dropped is not None and dropped > max_dropped * account.rows:
                raise FledgeError(
                    f"{dropped:,} of the {account.rows:,} rows of '{account.path}' are dropped "
                    f"({dropped / account.rows:.1%}): {account.reasons()}",
                    where=f"{key}.max_dropped ({max_dropped:.3g})",
                    hint=account.first_dropped(),
                )

    def close(self, key: str, max_dropped: float | None = None) -> None:
        """Check the sums, and refuse what cannot be trained on."""
        for account in self.sources:
            account.check()
        self.check_usable(key, max_dropped)

    def as_dict(self) -> dict[str, Any]:
        """For data_report.json."""
        return {"sources": [account.as_dict() for account in self.sources]}

    def lines(self) -> list[str]:
        """What the console says: one line a source, and one for each reason with its first place."""
        return [line for account in self.sources for line in account_lines(account.as_dict())]


def account_lines(account: Mapping[str, Any]) -> list[str]:
    """One source of data_report.json in words."""
    dropped = sum(account["dropped"].values())
    parts = [f"{account['rows']:,} rows", f"{account['used']:,} used"]
    parts += [f"{account['validation']:,} of them for validation"] if account["validation"] else []
    parts += [f"{dropped:,} dropped"] if dropped else []
    parts += [f"{account[what]:,} {what}" for what in ("truncated", "shortened") if account[what]]
    said = [f"{account['name']}: " + ", ".join(parts)]
    first: dict[str, Mapping[str, str]] = {}
    for place in account["examples"]:
        first.setdefault(place["reason"], place)
    for reason, place in first.items():
        counts = (account[state].get(reason) for state in ("dropped", "changed", "noticed", "cut"))
        count = next((number for number in counts if number), None)
        label = f"{count:,} × {reason}" if count else reason
        detail = f" ({place['detail']})" if place["detail"] else ""
        said.append(f"  {label}, first at {place['where']}{detail}")
    return said


def read_notes(file: Path) -> list[dict[str, Any]]:
    """The remarks of one shard and phase."""
    return [orjson.loads(line) for line in file.read_bytes().splitlines()] if file.exists() else []
