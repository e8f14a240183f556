"""Events about rows: one for each way in which a row was dropped, cut, split, changed or noticed.

Workers write them to `row_events.jsonl`, a JSON object a line, and count them; the data report adds up the counts.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_args

import orjson
from pydantic import NonNegativeInt
from typing_extensions import TypedDict

from fledge.errors import FledgeError

RowState = Literal["dropped", "truncated", "shortened", "split", "changed", "noticed"]
STATES: tuple[RowState, ...] = get_args(RowState)
SAMPLED_STATES = ("changed", "noticed")  # of these only the first events of each reason are written; all are counted
EVENTS_KEPT = 3  # of each reason, with location and detail
DETAIL_LENGTH = 300
MAX_REASONS = 100  # of one sampled state, as keys of turns may have any name; further ones count as OTHER
OTHER = "other notices"
EVENT_KEYS = ("where", "state", "reason", "detail")  # whose values are texts
BUILD_AGAIN = "remove the folder of the build and build the data again"  # hint for a damaged file of a build


@dataclass(frozen=True)
class RowEvent:
    """One event about one row.

    `state`: dropped (the row is not used), truncated (an answer is cut), shortened (its oldest turns are left out), split (it
    makes several examples), changed (its text is cleaned or augmented), noticed (it is used, but worth a look).
    `amount`: tokens lost (truncated), rounds left out (shortened), examples made (split), rounds or letters (changed).
    `excerpts`: the text before and after a change, around the first difference.
    """

    state: RowState
    reason: str
    detail: str = ""
    amount: int = 0
    excerpts: tuple[str, str] | None = None


class EventCounts(TypedDict):
    """The counts of the events of one shard and phase (`RowEventLog.as_dict`), by state."""

    counts: dict[str, dict[str, NonNegativeInt]]
    rows: dict[str, NonNegativeInt]


class RowEventLog:
    """Writes the events of one shard to a file, and counts them."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.counts: dict[str, Counter[str]] = {state: Counter() for state in STATES}  # state -> reason -> events
        self.amounts: Counter[str] = Counter()  # state -> sum of the amounts
        self.rows: Counter[str] = Counter()  # state -> rows with at least one event of it
        self._last_row: dict[str, int] = {}

    def add(self, row: int, location: str, event: RowEvent) -> None:
        """Add an event about row number `row` of the shard, which stands at `location` (FILE:LINE)."""
        state, counts, reason = event.state, self.counts[event.state], event.reason
        if state in SAMPLED_STATES and reason not in counts and len(counts) >= MAX_REASONS:
            reason = OTHER
        counts[reason] += 1
        self.amounts[state] += event.amount
        if self._last_row.get(state) != row:
            self._last_row[state] = row
            self.rows[state] += 1
        if state in SAMPLED_STATES and counts[reason] > EVENTS_KEPT:
            return
        line = {"row": row, "where": location, "state": state, "reason": reason, "detail": event.detail[:DETAIL_LENGTH]}
        self._file.write(orjson.dumps({**line, "amount": event.amount} if event.amount else line) + b"\n")

    def as_dict(self) -> dict[str, Any]:
        """The counts, for the result of the shard."""
        counts = {state: dict(counter) for state, counter in self.counts.items() if counter}
        return {"counts": counts, "amounts": dict(self.amounts), "rows": dict(self.rows)}


def read_row_events(file: Path) -> list[dict[str, Any]]:
    """The events that one phase wrote about the rows of one shard; empty if the file is missing."""
    return list(_lines(file)) if file.exists() else []


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """The events of a file. Raises FledgeError for a line that is none."""
    for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
        if not line:
            continue
        try:
            event = orjson.loads(line)
            valid = isinstance(event, dict) and all(isinstance(event.get(key), str) for key in EVENT_KEYS)
        except ValueError:
            event, valid = None, False
        if event is None or not valid:
            raise FledgeError("damaged: this line is not an event of a row", where=f"{file}:{number}", hint=BUILD_AGAIN)
        yield event
