"""events.jsonl: one JSON object a line, the only thing that watchers read."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fledge.errors import FledgeError


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Every whole line; a torn last line (a killed process) is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                try:
                    yield json.loads(line)
                except ValueError:
                    continue


class EventLog:
    """Appends events. Opened at a step, it first cuts away what a killed process wrote after that step."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.kept, _ = self._cut(step)

    def _cut(self, step: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Leave what was written up to a step, and open the rest of the file; returns both parts."""
        kept, gone = [], []
        for event in read_events(self.path):
            (kept if step and event.get("step", 0) <= step else gone).append(event)
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        beside.write_text("".join(_line(event) for event in kept), encoding="utf-8")
        beside.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8", buffering=1)
        return kept, gone

    def rewind(self, step: int, aside: Path) -> list[dict[str, Any]]:
        """Go back to a step: what was written after it is moved into a file of its own. Returns what is left."""
        self._file.close()
        kept, gone = self._cut(step)
        aside.write_text("".join(_line(event) for event in gone), encoding="utf-8")
        return kept

    def write(self, kind: str, step: int, **values: Any) -> dict[str, Any]:
        """One event; returns it as it will be read."""
        event = nan_to_none({"kind": kind, "step": step, **values})
        try:
            self._file.write(_line(event))
        except OSError as error:
            hint = "free some space, then go on with the same command"
            raise FledgeError(f"cannot write: {error.strerror}", where=str(self.path), hint=hint) from None
        return event

    def close(self) -> None:
        """Flush and close."""
        self._file.close()


def _line(event: dict[str, Any]) -> str:
    return json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n"


def nan_to_none(value: Any) -> Any:
    """The same with null for what is no finite number: JSON has no other word for it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: nan_to_none(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [nan_to_none(inner) for inner in value]
    return value
