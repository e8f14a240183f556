"""Logs of TensorBoard: event files of any trainer.

The files are records of TensorFlow (https://www.tensorflow.org/tutorials/load_data/tfrecord): length, checksum, content,
checksum. The contents are messages `Event` (tensorflow/core/util/event.proto). The package tensorboard is not needed.
"""

import json
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fledge.errors import FledgeError
from fledge.training_log.assemble import Origin, assemble
from fledge.training_log.given import Given
from fledge.training_log.names import resolve
from fledge.training_log.protobuf import fields, messages
from fledge.training_log.records import TrainingLog, TrainingSettings
from fledge.training_log.rows import Rows
from fledge.training_log.setting_names import flat
from fledge.training_log.settings_map import settings_from
from fledge.training_log.text_file import read_bytes

PATTERN = "events.out.tfevents*"
SECONDS, NUMBERS = re.compile(r"tfevents\.(\d{6,})(?!\d)"), re.compile(r"\d{1,18}")
SPLITS = {
    "train": "train", "training": "train", "validation": "eval", "val": "eval", "eval": "eval", "valid": "eval", "test": "eval",
}  # fmt: skip
"""Names of folders in which a trainer writes the figures of training and of evaluation apart."""
EPOCH_PREFIX = "epoch_"  # of Keras
ARGUMENTS = ("args/text_summary", "model_config/text_summary")  # of Hugging Face: JSON as text
WALL_TIME, STEP, SUMMARY, VALUE = 1, 2, 5, 1  # fields of an event and of its summary
TAG, SIMPLE_VALUE, TENSOR = 1, 2, 8  # fields of a value
CONTENT, FLOATS, DOUBLES, TEXTS = 4, 5, 6, 8  # fields of a tensor
DATA_TYPE, FLOAT, DOUBLE = 1, 1, 2
FORMATS = {FLOAT: "<f", DOUBLE: "<d"}
HEADER, FOOTER = 12, 4  # length and checksum before a record, checksum behind it
LARGEST_FIRST = 2**20  # bytes of the first event, which holds little more than its time


@dataclass
class EventFiles:
    """What event files of one folder hold. `points`: name → steps and values. `texts`: name → the last text. `again`: points
    that a resumed run wrote again. `torn`: files that end inside a record. `others`: name → values that are no numbers."""

    points: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)
    again: int = 0
    torn: int = 0


def event_folders(target: Path) -> dict[Path, list[Path]]:
    """The folders below a path that hold event files, with their files, those that were begun first before others."""
    files = [target] if target.is_file() else [file for file in target.rglob(PATTERN) if file.is_file()]
    folders: dict[Path, list[Path]] = {}
    for file in sorted(files, key=written_at):
        folders.setdefault(file.parent, []).append(file)
    return dict(sorted(folders.items()))


def written_at(file: Path) -> tuple[float, list[int], str]:
    """What orders event files by the time at which they were begun: the seconds in the name, else those of the first event,
    else those of the file, which a copy may have lost; of one second, the numbers in the name."""
    name = SECONDS.search(file.name)
    seconds = float(name[1]) if name else _first_time(file)
    numbers = [int(one) for one in NUMBERS.findall(file.name)]
    return (file.stat().st_mtime if seconds is None else seconds), numbers, file.name


def _first_time(file: Path) -> float | None:
    """The seconds at which the first event of a file was written; None where they cannot be read."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(HEADER)[:8])
            event = opened.read(min(length, LARGEST_FIRST))
        written = next((value for number, value in fields(event) if number == WALL_TIME and isinstance(value, bytes)), b"")
        (seconds,) = struct.unpack("<d", written)
    except (OSError, ValueError, struct.error):
        return None
    return seconds if math.isfinite(seconds) else None


def read_tensorboard(target: Path, given: Given) -> list[TrainingLog]:
    """A log for each folder of event files; folders `train` and `validation` beside each other are one. Raises FledgeError if
    there are no scalars."""
    runs: dict[Path, list[tuple[str, list[Path]]]] = {}
    for folder, files in event_folders(target).items():
        split = SPLITS.get(folder.name.lower(), "") if target.is_dir() and folder != target else ""
        runs.setdefault(folder.parent if split else folder, []).append((split, files))
    stages = {run: str(run.relative_to(target)) if len(runs) > 1 and run != target else "" for run in runs}
    chosen = given.stages(list(stages.values()), target)
    read = [_read_run(run, parts, stages[run], given) for run, parts in runs.items() if stages[run] in chosen]
    logs = [log for log in read if log is not None]
    if not logs:
        raise FledgeError("these event files of TensorBoard hold no scalars", where=str(target), hint="log figures as scalars")
    return logs


def _read_run(run: Path, parts: list[tuple[str, list[Path]]], stage: str, given: Given) -> TrainingLog | None:
    table: dict[float, dict[str, float]] = {}
    rows, settings = Rows(), TrainingSettings()
    for split, files in parts:
        found = read_event_files(files)
        settings = settings.updated(settings_of_texts(found))
        _tell(found, rows)
        for name, points in found.points.items():
            known = resolve(name)
            if known is not None and known.name == "axis/step":
                continue
            full = f"{split}/{name.removeprefix(EPOCH_PREFIX)}" if split else name
            for step, value in points:
                table.setdefault(step, {})[full] = value
    if not table:
        return None
    for line, step in enumerate(sorted(table), 1):
        rows.add(line, {"axis/step": step, **table[step]})
    origin = Origin(source="TensorBoard event files", path=str(run), stage=stage, settings=settings)
    return assemble(rows, origin, given)


def _tell(found: EventFiles, rows: Rows) -> None:
    for name, count in found.others.items():
        if name not in ARGUMENTS:
            rows.unread[f"{name}: text or other values that are no numbers"] += count
    if found.torn:
        rows.notes.append("A file ends inside a record: the run goes on or was killed.")
    if found.again:
        rows.notes.append(f"{found.again:,} points were trained again after a resume: the later ones count.")


# -- the files ----------------------------------------------------------------------------------------------------------


def read_event_files(files: list[Path]) -> EventFiles:
    """The scalars and texts of event files of one folder, in the order in which they were written."""
    found = EventFiles()
    for file in files:
        for event in _records(read_bytes(file), found):
            try:
                _take(found, event)
            except (ValueError, struct.error):
                found.torn += 1
    return found


def _records(content: bytes, found: EventFiles) -> Iterator[bytes]:
    place = 0
    while place + HEADER <= len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        start = place + HEADER
        if start + length + FOOTER > len(content):
            found.torn += 1
            return
        yield content[start : start + length]
        place = start + length + FOOTER


def _take(found: EventFiles, event: bytes) -> None:
    parts = list(fields(event))
    step = next((value for number, value in parts if number == STEP and isinstance(value, int)), 0)
    for number, summary in parts:
        if number != SUMMARY or not isinstance(summary, bytes):
            continue
        for value in messages(summary, VALUE):
            inside = dict(fields(value))
            tag = inside.get(TAG)
            if isinstance(tag, bytes):
                _take_value(found, tag.decode("utf-8", errors="replace"), float(step), inside)


def _take_value(found: EventFiles, name: str, step: float, inside: dict[int, int | bytes]) -> None:
    simple, tensor = inside.get(SIMPLE_VALUE), inside.get(TENSOR)
    value = struct.unpack("<f", simple)[0] if isinstance(simple, bytes) and len(simple) == 4 else None
    if value is None and isinstance(tensor, bytes):
        value = _number(tensor)
        if value is None and (text := next(messages(tensor, TEXTS), None)) is not None:
            found.texts[name] = text.decode("utf-8", errors="replace")
    if value is None:
        found.others[name] = found.others.get(name, 0) + 1
        return
    points = found.points.setdefault(name, [])
    while points and points[-1][0] >= step:
        found.again += points.pop()[0] > step  # at one step the last value counts
    points.append((step, value))


def _number(tensor: bytes) -> float | None:
    """The only number of a tensor; None for texts and larger ones."""
    inside = dict(fields(tensor))
    layout = FORMATS.get(inside.get(DATA_TYPE, 0))  # type: ignore[arg-type]
    if layout is None:
        return None
    for place in (CONTENT, FLOATS, DOUBLES):
        content = inside.get(place)
        if isinstance(content, bytes) and len(content) == struct.calcsize(layout):
            return struct.unpack(layout, content)[0]
    return None


def settings_of_texts(found: EventFiles) -> TrainingSettings:
    """The settings that Hugging Face's trainer wrote as text: its arguments and the configuration of the model."""
    settings = TrainingSettings()
    for name in ARGUMENTS:
        try:
            tree: Any = json.loads(found.texts.get(name, "null"))
        except (ValueError, RecursionError):
            continue
        if isinstance(tree, dict):
            from fledge.training_log.huggingface import facts_of_model

            place = f"TensorBoard, {name.partition('/')[0]}"
            settings = settings.updated(
                settings_from(flat(tree), place) if name == ARGUMENTS[0] else facts_of_model(tree, place)
            )
    return settings
