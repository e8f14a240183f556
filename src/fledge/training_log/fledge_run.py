"""Logs of fledge: a run, live or done, one of its stages, or its events.jsonl."""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fledge.errors import FledgeError
from fledge.run.events import DAMAGED_FILE
from fledge.run.input_files import check_regular_file
from fledge.training_log.event_columns import EventColumns
from fledge.training_log.fledge_settings import stage_order, stage_settings
from fledge.training_log.records import TrainingLog, TrainingSettings

EVENTS, RECIPE, PLAN = "events.jsonl", "recipe.yaml", "plan.json"
EVERY_SYSTEM_EVENT = 20_000  # system events that are all read; of more, every second, third, …
CHUNK = 4_000


def is_stage(folder: Path) -> bool:
    """Whether a folder is a stage of a run of fledge."""
    return (folder / PLAN).is_file() or ((folder / EVENTS).is_file() and (folder.parent / RECIPE).is_file())


def stage_folders(target: Path) -> list[Path]:
    """The stages of a run, a stage or an events.jsonl, in order; empty for what is none of them."""
    if target.is_file():
        return [target.resolve().parent] if target.name == EVENTS and _first_is_event(target) else []
    if (target / RECIPE).is_file():
        begun = [folder for folder in sorted(target.iterdir()) if folder.is_dir() and is_stage(folder)]
        return stage_order(target, begun) if begun else []
    return [target] if is_stage(target) else []


def _first_is_event(file: Path) -> bool:
    with file.open("rb") as lines:
        first = lines.readline(1_000_000)
    try:
        event = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(event, dict) and isinstance(event.get("kind"), str) and isinstance(event.get("step"), int)


def read_stage(folder: Path) -> TrainingLog:
    """The log of one stage. Raises FledgeError if it has not begun."""
    file = folder / EVENTS
    if not file.is_file():
        raise FledgeError("this stage has no events yet: it has not begun to train", where=str(folder))
    reading = _Reading(file)
    settings, notes = stage_settings(folder)
    notes = [*reading.notes, *notes, *_rolled_back(folder)]
    return stage_log(folder, reading.columns, settings, notes=notes, ended=(folder / "result.json").is_file())


def stage_log(
    folder: Path, columns: EventColumns, settings: TrainingSettings, *, notes: Iterable[str] = (), ended: bool = False
) -> TrainingLog:
    """The log of a stage from events that were taken already, and its `settings` (those of `stage_settings`)."""
    return TrainingLog(
        source="run of fledge",
        path=str(folder / EVENTS),
        series=columns.series(),
        settings=_with_processes(settings, columns.events),
        stage=folder.name,
        records=columns.records,
        unread=columns.unread,
        notes=tuple(notes),
        events=tuple(columns.events),
        ended=ended,
    )


class _Reading:
    """The events of a file: its figures by column, and the other events. `unread`: what was left out, by reason."""

    def __init__(self, file: Path) -> None:
        self.notes: list[str] = []
        self.columns = EventColumns()
        self.unread = self.columns.unread
        check_regular_file(file)
        for event in self._parsed(self._lines(file)):
            self.columns.take(event)

    def _lines(self, file: Path) -> list[bytes]:
        lines = file.read_bytes().split(b"\n")
        if lines and lines.pop():
            self.unread["a last line that is cut off"] = 1
            self.notes.append("The last line of the events is cut off and left out.")
        marks = [b'{"kind": "system"' in line[:20] for line in lines]
        count = sum(marks)
        if count > EVERY_SYSTEM_EVENT:
            every = math.ceil(count / EVERY_SYSTEM_EVENT)
            number, kept = 0, []
            for line, is_system in zip(lines, marks, strict=True):
                number += is_system
                if not is_system or number % every == 0:
                    kept.append(line)
            self.unread[f"system events: one of {every} is read"] = len(lines) - len(kept)
            lines = kept
        return lines

    def _parsed(self, lines: list[bytes]) -> Iterator[dict[str, Any]]:
        for start in range(0, len(lines), CHUNK):
            chunk = lines[start : start + CHUNK]
            try:
                events = json.loads(b"[" + b",".join(chunk) + b"]")
            except (ValueError, RecursionError):
                events = None
            if events is None or len(events) != len(chunk):
                events = [self._parse(line) for line in chunk]
            for event in events:
                if isinstance(event, dict) and isinstance(event.get("kind"), str) and type(event.get("step")) is int:
                    yield event
                else:
                    self.unread["lines that are no events"] = self.unread.get("lines that are no events", 0) + 1

    @staticmethod
    def _parse(line: bytes) -> Any:
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            return None


def _with_processes(settings: TrainingSettings, events: list[dict[str, Any]]) -> TrainingSettings:
    """The settings with the number of processes: the newest that an event tells, else one."""
    sizes = [event["world_size"] for event in events if event["kind"] == "world_size" and event.get("world_size")]
    found: dict[str, Any] = {"processes": float(sizes[-1]) if sizes else 1.0}
    rows, micro = settings.batch_rows, settings.micro_batch_rows
    if rows and micro:
        found["accumulation_steps"] = float(math.ceil(math.ceil(rows / found["processes"]) / micro))
    origin = dict.fromkeys(found, "events.jsonl")
    return settings.updated(TrainingSettings(**found, origin=origin))


def _rolled_back(folder: Path) -> list[str]:
    """What roll-backs and a new beginning took out of the events, in sentences."""
    notes = []
    for file in sorted(folder.glob("events.rolled_back.*.jsonl")):
        count = file.read_bytes().count(b"\n")
        notes.append(f"A roll-back took {count:,} events back: they are in {file.name} and not read here.")
    if (folder / "events.started_over.jsonl").is_file():
        notes.append("The stage was started over: events of before are in events.started_over.jsonl and not read here.")
    if (folder / DAMAGED_FILE).is_file():
        notes.append(f"Lines that were no events when the run was resumed are in {DAMAGED_FILE}.")
    return notes
