"""events.jsonl: one JSON object per line. Guards, report and TensorBoard read nothing else."""

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from fledge.errors import FledgeError
from fledge.run.input_files import check_regular_file

Event = dict[str, Any]
DAMAGED_FILE = "events.damaged.txt"  # lines of a log that were no events when a run was resumed


def read_events(path: Path, on_damaged: Callable[[bytes], None] = lambda line: None) -> Iterator[Event]:
    """Every complete line that is an event. The incomplete last line of a killed process is left out.

    `on_damaged` is called with each other line that is not an event.
    """
    if not path.exists():
        return
    check_regular_file(path)
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                event = _parse(line)
                if event is None:
                    on_damaged(line)
                else:
                    yield event


def _parse(line: bytes) -> Event | None:
    """The event on a line; None if the line is not one."""
    try:
        event = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    valid = isinstance(event, dict) and isinstance(event.get("kind"), str) and type(event.get("step")) is int
    return event if valid else None


def rolled_back_file(folder: Path, rollback: int) -> Path:
    """The file of the events that roll-back number `rollback` (from 1) of a stage took back."""
    return folder / f"events.rolled_back.{rollback}.jsonl"


def set_events_aside(path: Path) -> Path | None:
    """Rename the events of a stage that starts over although it had trained; returns the new path, None without such events."""
    if not any(event["step"] > 0 for event in read_events(path)):
        return None
    return path.replace(path.with_name("events.started_over.jsonl"))


class EventLog:
    """Appends events to a file. Opening the log at a step first removes what a killed process wrote after that step.

    A disk that refuses a line for a moment costs nothing: the events are kept in memory and written, in order, when it takes
    them again. `warnings`: sentences about what was found when the log was opened.
    """

    def __init__(self, path: Path, step: int, rollbacks: int = 0, log: Callable[[str], None] = lambda text: None) -> None:
        """`rollbacks`: number of roll-backs of the state that training goes on from; a later one, which a killed process had
        begun, is undone. `log` gets a line when the disk refuses events, and when they are written."""
        self.path, self.warnings, self._log = path, list[str](), log
        self._pending: list[bytes] = []
        self._file: int | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        events = self._without_unfinished_rollback(self._read_and_keep_damaged(), rollbacks)
        self.kept, _ = _split(events, step)
        if step and not any(event["kind"] == "step" for event in self.kept):
            self.warnings.append(f"{path} has no events of the {step:,} steps before: report and guards go on without them")
        self._replace(self.kept)

    # -- opening ----------------------------------------------------------------------------------------------------

    def _read_and_keep_damaged(self) -> list[Event]:
        """The events of the file. Lines that are no events go to a file of their own."""
        damaged: list[bytes] = []
        events = list(read_events(self.path, damaged.append))
        if damaged:
            aside = self.path.with_name(DAMAGED_FILE)
            with aside.open("ab") as file:
                file.writelines(damaged)
            self.warnings.append(f"{len(damaged):,} lines of {self.path} are not events: they are left out and kept in {aside}")
        return events

    def _without_unfinished_rollback(self, events: list[Event], rollbacks: int) -> list[Event]:
        """The events as they were before a roll-back that is not part of the state: its report is removed and the events that
        it took back are put in again. Training then comes to the same roll-back once more."""
        events = [event for event in events if not _reports_rollback_after(event, rollbacks)]
        file = rolled_back_file(self.path.parent, rollbacks + 1)
        taken_back = list(read_events(file))
        if taken_back and events[-len(taken_back) :] != taken_back:
            events += taken_back
        file.unlink(missing_ok=True)
        return events

    def _replace(self, events: list[Event]) -> None:
        """Replace the content of the file and open it for appending."""
        _write_lines(self.path, events)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        self._size = os.fstat(self._file).st_size

    # -- writing ----------------------------------------------------------------------------------------------------

    def rewind(self, step: int, removed_path: Path) -> list[Event]:
        """Return to a step: the later events move into the file `removed_path`. Returns the remaining events."""
        if not self.flush():
            raise FledgeError(
                "cannot write events: the disk refuses them", where=str(self.path), hint="free some space, then run again"
            )
        self.close()
        kept, removed = _split(list(read_events(self.path)), step)
        _write_lines(removed_path, removed)
        self._replace(kept)
        return kept

    def write(self, kind: str, step: int, **values: Any) -> Event:
        """Append one event, and return it as readers will see it."""
        event = nan_to_none({"kind": kind, "step": step, **values})
        refused_before = bool(self._pending)
        self._pending.append(_line(event))
        self._append_pending(refused_before)
        return event

    def flush(self) -> bool:
        """Try to write the events that the disk refused; returns whether all events are in the file."""
        self._append_pending(refused_before=True)
        return not self._pending

    def _append_pending(self, refused_before: bool) -> None:
        """Append the events in memory. After a failure the file has no incomplete line, and the events stay in memory."""
        if not self._pending or self._file is None:
            return
        content, count = b"".join(self._pending), len(self._pending)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            if not refused_before:
                self._log(
                    f"warning: {self.path} cannot be written ({error.strerror}): its events are kept in memory until it can"
                )
            return
        self._size += len(content)
        self._pending = []
        if refused_before:
            self._log(f"{self.path} is written again, with the {count:,} events that were kept in memory")

    def close(self) -> None:
        """Close the file. Events that the disk still refuses are reported; a resumed run computes their steps again."""
        if self._file is None:
            return
        if not self.flush():
            self._log(f"warning: the last {len(self._pending):,} events could not be written to {self.path}")
        os.close(self._file)
        self._file = None


def _split(events: list[Event], step: int) -> tuple[list[Event], list[Event]]:
    """The events up to a step, and the later ones. Up to step 0 there are none: a stage that starts writes all of its own."""
    kept = [event for event in events if step and event["step"] <= step]
    return kept, [event for event in events if not (step and event["step"] <= step)]


def _reports_rollback_after(event: Event, rollbacks: int) -> bool:
    """Whether an event reports a later roll-back than number `rollbacks`."""
    evidence = event.get("evidence")
    number = evidence.get("rollbacks") if event["kind"] == "guard" and isinstance(evidence, dict) else None
    return isinstance(number, int) and number > rollbacks


def _write_lines(path: Path, events: list[Event]) -> None:
    """Write a file of events atomically. Raises FledgeError when the disk refuses it."""
    tmp_path = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        tmp_path.write_bytes(b"".join(_line(event) for event in events))
        tmp_path.replace(path)
    except OSError as error:
        with suppress(OSError):
            tmp_path.unlink(missing_ok=True)
        hint = "free some space, then run the same command again"
        raise FledgeError(f"cannot write: {error.strerror}", where=str(path), hint=hint) from None


def _line(event: Event) -> bytes:
    """The event as a line. A lone surrogate, which UTF-8 cannot express, is written as an escape sequence."""
    text = json.dumps(event, ensure_ascii=False, allow_nan=False)
    try:
        return f"{text}\n".encode()
    except UnicodeEncodeError:
        return f"{json.dumps(event, allow_nan=False)}\n".encode()


def nan_to_none(value: Any) -> Any:
    """The value with None in place of NaN and infinities, which JSON cannot express."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: nan_to_none(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [nan_to_none(inner) for inner in value]
    return value
