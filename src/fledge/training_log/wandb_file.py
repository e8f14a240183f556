"""Offline runs of Weights & Biases: the records of a .wandb file, and the files beside it.

The file is a log in LevelDB's format (https://github.com/google/leveldb/blob/main/doc/log_format.md) behind a header of 7
bytes; its records are messages of Protocol Buffers. Only the fields that are needed are read, and not by the package wandb.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fledge.errors import FledgeError
from fledge.run.text_files import read_json
from fledge.training_log.assemble import Origin, assemble
from fledge.training_log.given import Given
from fledge.training_log.plain_text import lines_of, read_rows, with_decimal_points
from fledge.training_log.protobuf import fields
from fledge.training_log.records import TrainingLog, TrainingSettings
from fledge.training_log.rows import Rows
from fledge.training_log.setting_names import flat
from fledge.training_log.settings_map import settings_from
from fledge.training_log.tables import add_record
from fledge.training_log.text_file import read_bytes, read_text

HEADER = b":W&B"
HEADER_SIZE, BLOCK, RECORD_HEADER = 7, 32_768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
HISTORY, CONFIG, RUN, EXIT = 2, 5, 17, 18  # fields of a record
ITEM, STEP, UPDATE, RUN_CONFIG, DISPLAY_NAME = 1, 2, 1, 4, 8
KEY, NESTED_KEY, INTEGER, NUMBER, TEXT, JSON, VALUE_JSON = 1, 2, 5, 6, 7, 8, 16  # fields of an item
OWN = ("_runtime", "_timestamp", "_wandb")


@dataclass
class OfflineRun:
    """What a .wandb file holds. `config`: settings by name. `history`: records. `exit_code`: None while the run goes on.
    `torn`: whether the file ends inside a record, as that of a run that goes on or was killed."""

    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None
    torn: bool = False


def wandb_files(target: Path) -> list[Path]:
    """The .wandb files of a path: itself, those of an offline run, or of a folder of runs, without links to the latest."""
    if target.is_file():
        return [target] if target.suffix == ".wandb" else []
    found = [*target.glob("*.wandb"), *target.glob("*run-*/*.wandb"), *target.glob("wandb/*run-*/*.wandb")]
    return sorted({file.resolve(): file for file in found if file.parent.name != "latest-run"}.values())


def read_wandb(target: Path, given: Given) -> list[TrainingLog]:
    """The logs of offline runs, one each."""
    files = wandb_files(target)
    stages = [file.parent.name if len(files) > 1 else "" for file in files]
    chosen = given.stages(stages, target)
    return [_read_run(file, given, stage) for file, stage in zip(files, stages, strict=True) if stage in chosen]


def _read_run(file: Path, given: Given, stage: str) -> TrainingLog:
    try:
        run = read_offline_run(file)
    except FledgeError as error:
        return _read_beside(file, error, given, stage)
    rows = Rows()
    for number, record in enumerate(run.history, 1):
        values = {name: value for name, value in record.items() if name not in OWN}
        add_record(rows, number, values)
    if run.torn:
        rows.notes.append("The file ends inside a record: the run goes on or was killed.")
    if not any(not name.startswith("_") for name in rows.names):
        raise FledgeError("this offline run of Weights & Biases holds no figures", where=str(file))
    settings = settings_from(flat(run.config), file.name)
    ended = None if run.exit_code is None else True
    if run.exit_code:
        rows.events.append({"kind": "crash", "cause": "error", "text": f"the process ended with code {run.exit_code}"})
    origin = Origin(source="Weights & Biases offline run", path=str(file), stage=stage, settings=settings, ended=ended)
    return assemble(rows, origin, given)


# -- the file -----------------------------------------------------------------------------------------------------------


def read_offline_run(file: Path) -> OfflineRun:
    """The records of a .wandb file. Raises FledgeError if it is none."""
    content = read_bytes(file)
    if content[:4] != HEADER:
        raise FledgeError("this is no offline file of Weights & Biases", where=str(file))
    run = OfflineRun()
    for record in _records(content, run):
        try:
            _take(run, record)
        except (ValueError, IndexError, struct.error):
            run.torn = True
    return run


def _records(content: bytes, run: OfflineRun) -> Iterator[bytes]:
    """The records of the file, put together from their pieces in blocks of 32 KiB."""
    place, parts = HEADER_SIZE, bytearray()
    while place + RECORD_HEADER <= len(content):
        left = BLOCK - place % BLOCK
        if left < RECORD_HEADER:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        start = place + RECORD_HEADER
        if kind == 0 and length == 0:
            place += left
            continue
        if kind not in (FULL, FIRST, MIDDLE, LAST) or start + length > len(content):
            run.torn = True
            return
        if kind in (FULL, FIRST):
            parts.clear()
        parts += content[start : start + length]
        place = start + length
        if kind in (FULL, LAST):
            yield bytes(parts)


def _take(run: OfflineRun, record: bytes) -> None:
    for number, value in fields(record):
        if not isinstance(value, bytes):
            continue
        if number == HISTORY:
            values = _items(value, ITEM)
            for inner, step in fields(value):
                if inner == STEP and isinstance(step, bytes):
                    values.setdefault("_step", next((float(one) for _, one in fields(step) if isinstance(one, int)), 0.0))
            run.history.append(values)
        elif number == CONFIG:
            run.config.update(_items(value, UPDATE))
        elif number == RUN:
            for inner, part in fields(value):
                if inner == RUN_CONFIG and isinstance(part, bytes):
                    run.config.update(_items(part, UPDATE))
                elif inner == DISPLAY_NAME and isinstance(part, bytes):
                    run.name = part.decode("utf-8", errors="replace")
        elif number == EXIT:
            run.exit_code = next((one for inner, one in fields(value) if inner == 1 and isinstance(one, int)), 0)


def _items(message: bytes, wanted: int) -> dict[str, Any]:
    """The items of a message by name: numbers, texts and JSON values."""
    values: dict[str, Any] = {}
    for number, item in fields(message):
        if number != wanted or not isinstance(item, bytes):
            continue
        name, nested, value = "", [], None
        for inner, part in fields(item):
            if inner == KEY and isinstance(part, bytes):
                name = part.decode("utf-8", errors="replace")
            elif inner == NESTED_KEY and isinstance(part, bytes):
                nested.append(part.decode("utf-8", errors="replace"))
            elif inner in ITEM_VALUES:
                value = ITEM_VALUES[inner](part)
        if value is not None and (name or nested):
            values[name or "/".join(nested)] = value
    return values


def _double(part: Any) -> float | None:
    return struct.unpack("<d", part)[0] if isinstance(part, bytes) and len(part) == 8 else None


def _zigzag(part: Any) -> int | None:
    return (part >> 1) ^ -(part & 1) if isinstance(part, int) else None


def _json(part: Any) -> Any:
    value = json.loads(part) if isinstance(part, bytes) else None
    return (
        {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}.get(value, value)
        if isinstance(value, str)
        else value
    )


ITEM_VALUES = {
    INTEGER: _zigzag,
    NUMBER: _double,
    TEXT: lambda part: part.decode("utf-8", errors="replace") if isinstance(part, bytes) else None,
    JSON: _json,
    VALUE_JSON: _json,
}


# -- the files beside it ------------------------------------------------------------------------------------------------


def _read_beside(file: Path, error: FledgeError, given: Given, stage: str) -> TrainingLog:
    """The run from output.log, config.yaml and wandb-summary.json, where its .wandb file cannot be read."""
    folder = file.parent / "files"
    rows = Rows()
    if (folder / "output.log").is_file():
        rows = read_rows(with_decimal_points(list(lines_of(read_text(folder / "output.log")))), given)
    if not rows.names:
        summary = folder / "wandb-summary.json"
        if not summary.is_file():
            raise error
        values = read_json(summary)
        add_record(rows, 1, {name: value for name, value in values.items() if name not in OWN})
    rows.notes.append(f"{file.name} cannot be read ({error.what}): the files beside it are.")
    settings = _config(folder / "config.yaml")
    origin = Origin(source="Weights & Biases files", path=str(folder), stage=stage, settings=settings)
    return assemble(rows, origin, given)


def _config(file: Path) -> TrainingSettings:
    if not file.is_file():
        return TrainingSettings()
    from fledge.training_log.settings import yaml_tree

    tree = yaml_tree(file)
    plain = {name: one["value"] if isinstance(one, dict) and "value" in one else one for name, one in tree.items()}
    return settings_from(flat(plain), file.name)
