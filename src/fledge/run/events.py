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
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [event for event in read_events(path) if event.get("step", 0) <= step] if step else []
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text("".join(_line(event) for event in kept), encoding="utf-8")
        beside.replace(path)
        self.path = path
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """One event."""
        try:
            self._file.write(_line({"kind": kind, "step": step, **values}))
        except OSError as error:
            raise FledgeError(
                f"cannot write: {error.strerror}", where=str(self.path), hint="free some space, then --resume"
            ) from None

    def close(self) -> None:
        """Flush and close."""
        self._file.close()


def _line(event: dict[str, Any]) -> str:
    return json.dumps(finite(event), ensure_ascii=False, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """The same with null for what is no finite number: JSON has no other word for it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value
