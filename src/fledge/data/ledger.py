"""The account of every row: what was used, cut, split or dropped, where and why. Its totals always add up."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from fledge.errors import FledgeError

EXAMPLES_KEPT = 3  # of each reason, with place and detail


@dataclass
class SourceAccount:
    """One source: rows = used + dropped. Used rows may be truncated (an answer or text was cut), shortened (oldest
    turns left out) or split (continued in another packed row)."""

    name: str
    path: str
    rows: int = 0
    used: int = 0
    validation: int = 0
    truncated: int = 0
    shortened: int = 0
    split: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    noted: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def note(self, reason: str, where: str, detail: str = "") -> None:
        """Keep the first places of a reason for the user to look at."""
        places = self.noted.setdefault(reason, [])
        if len(places) < EXAMPLES_KEPT:
            places.append({"reason": reason, "where": where, "detail": detail})

    def drop(self, reason: str, where: str, detail: str = "") -> None:
        """Count a row that is not used."""
        self.dropped[reason] += 1
        self.note(reason, where, detail)

    def check(self) -> None:
        """The sum that must hold; a failure is a fault of fledge, not of the data."""
        if self.rows != self.used + sum(self.dropped.values()):
            raise AssertionError(f"{self.name}: {self.rows} rows != {self.used} used + {dict(self.dropped)} dropped")

    def as_dict(self) -> dict[str, Any]:
        """For data.json."""
        return {
            "name": self.name, "path": self.path, "rows": self.rows, "used": self.used, "validation": self.validation,
            "dropped": dict(self.dropped.most_common()), "truncated": self.truncated, "shortened": self.shortened,
            "split": self.split, "tokens": self.tokens, "supervised_tokens": self.supervised_tokens,
            "examples": [place for places in self.noted.values() for place in places],
        }  # fmt: skip


@dataclass
class Ledger:
    """The accounts of a stage's sources."""

    sources: list[SourceAccount] = field(default_factory=list)

    def open(self, name: str, path: str) -> SourceAccount:
        """A new account."""
        account = SourceAccount(name, path)
        self.sources.append(account)
        return account

    def refuse_unusable(self, key: str) -> None:
        """FledgeError for a source of which no row is left."""
        for account in self.sources:
            if not account.rows or sum(account.dropped.values()) < account.rows:
                continue
            reasons = ", ".join(f"{count} {reason}" for reason, count in account.dropped.most_common())
            place = next(item for items in account.noted.values() for item in items)
            first = f"first at {place['where']}: {place['detail'] or place['reason']}"
            raise FledgeError(
                f"none of the {account.rows} rows of '{account.path}' can be used ({reasons})", where=key, hint=first
            )

    def close(self, key: str) -> None:
        """Check the sums, and refuse a source of which nothing is left."""
        for account in self.sources:
            account.check()
        self.refuse_unusable(key)

    def as_dict(self) -> dict[str, Any]:
        """For data.json."""
        return {"sources": [account.as_dict() for account in self.sources]}

    def lines(self) -> list[str]:
        """What the console says: one line a source, and one for each reason with its first place."""
        said = []
        for account in self.sources:
            dropped = sum(account.dropped.values())
            parts = [f"{account.rows:,} rows", f"{account.used:,} used"]
            parts += [f"{account.validation:,} of them for validation"] if account.validation else []
            parts += [f"{dropped:,} dropped"] if dropped else []
            parts += [f"{n:,} {what}" for what, n in (("truncated", account.truncated), ("shortened", account.shortened)) if n]
            said.append(f"{account.name}: " + ", ".join(parts))
            for reason, places in account.noted.items():
                count = account.dropped.get(reason)
                label = f"{count:,} × {reason}" if count else reason
                said.append(f"  {label}, first at {places[0]['where']}" + _detail(places[0]["detail"]))
        return said


def _detail(text: str) -> str:
    return f" ({text})" if text else ""
