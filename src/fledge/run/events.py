"""events.jsonl: one JSON object per line. Guards, report and TensorBoard read nothing else."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fledge.errors import FledgeError


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Every complete line as an event. The incomplete last line of a killed process is left out."""
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
    """Appends events to a file. Opening the log at a step first removes what a killed process wrote after that step."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.kept, _ = self._cut(step)

    def _cut(self, step: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Keep the events up to a step and open the file for appending. Returns the kept and the removed events."""
        kept, removed = [], []
        for event in read_events(self.path):
            (kept if step and event.get("step", 0) <= step else removed).append(event)
        tmp_path = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        tmp_path.write_text("".join(_line(event) for event in kept), encoding="utf-8")
        tmp_path.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8", buffering=1)
        return kept, removed

    def rewind(self, step: int, removed_path: Path) -> list[dict[str, Any]]:
        """Return to a step: the later events move into the file `removed_path`. Returns the remaining events."""
        self._file.close()
        kept, removed = self._cut(step)
        removed_path.write_text("".join(_line(event) for event in removed), encoding="utf-8")
        return kept

    def write(self, kind: str, step: int, **values: Any) -> dict[str, Any]:
        """Append one event, and return it as readers will see it. Raises FledgeError when the disk refuses the line."""
        event = nan_to_none({"kind": kind, "step": step, **values})
        try:
            self._file.write(_line(event))
        except OSError as error:
            hint = "free some space, then run the same command again"
            raise FledgeError(f"cannot write: {error.strerror}", where=str(self.path), hint=hint) from None
        return event

    def close(self) -> None:
        """Flush and close the file."""
        self._file.close()


def _line(event: dict[str, Any]) -> str:
    return json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n"


def nan_to_none(value: Any) -> Any:
    """The value with None in place of NaN and infinities, which JSON cannot express."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: nan_to_none(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [nan_to_none(inner) for inner in value]
    return value
