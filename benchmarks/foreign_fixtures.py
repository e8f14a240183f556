"""Keeps logs of foreign_logs.py as fixtures of tests: small, and with a table of what must be said about each."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from foreign_cases import ForeignCase

MOST_BYTES = 40_000  # of a file
DIGITS = 5
CLOSE = (",", ":")  # of JSON, without spaces
KEPT = ("trainer_state.json", "config.json", "adapter_config.json", "README.md", "trainer_log.jsonl", "all_results.json")
TABLE = "table.json"
NAMES = ("name", "trainer", "wrong", "right", "must", "also", "log")


def keep(cases: Sequence[ForeignCase], work: Path, to: Path) -> None:
    """Copy the logs of cases to a folder, and write the table; `every`: which rows are kept, 1 for all."""
    table = []
    for case in cases:
        source, folder = work / case.name, to / case.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        every = 1
        for file in [source / name for name in KEPT] if case.log == "." else [source / case.log]:
            if file.is_dir():
                shutil.copytree(file, folder / file.name)
            elif file.is_file():
                every = max(every, _write_small(file, folder / file.name))
        table.append({**{name: getattr(case, name) for name in NAMES}, "every": every})
    (to / TABLE).write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_small(file: Path, to: Path) -> int:
    """Write the content of a file so that it is small enough; returns which rows are kept."""
    form = FORMS.get(file.name, _text)
    for every in range(1, 100):
        content = form(file.read_text(encoding="utf-8"), every)
        if len(content.encode()) <= MOST_BYTES:
            to.write_text(content, encoding="utf-8")
            return every
    raise ValueError(f"{file} is too large for a fixture")


def _short(value: Any) -> Any:
    """The same with numbers of a few digits."""
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_short(one) for one in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _state(text: str, every: int) -> str:
    """A trainer_state.json with a record a line, and only every so many of its training records."""
    state = _short(json.loads(text))
    history = state.pop("log_history")
    losses = [record for record in history if "loss" in record]
    left_out = {id(record) for number, record in enumerate(losses) if number % every}
    lines = ",\n".join(json.dumps(record, separators=CLOSE) for record in history if id(record) not in left_out)
    return json.dumps(state, separators=CLOSE)[:-1] + ',"log_history":[\n' + lines + "\n]}\n"


def _json(text: str, every: int) -> str:
    return json.dumps(_short(json.loads(text)), separators=CLOSE) + "\n"


def _card(text: str, every: int) -> str:
    """The sentences of a model card that say how the model was trained."""
    return "\n".join(line for line in text.split("\n") if "trained" in line and "pipeline" not in line) + "\n"


def _text(text: str, every: int) -> str:
    """The lines that a trainer printed, without comments that it printed out of its own files."""
    lines = [re.sub(r"(^|\s)#.*", r"\1# …", line) for line in text.split("\n")]
    figures = [number for number, line in enumerate(lines) if re.search(r"\bloss\b", line)]
    left_out = {number for place, number in enumerate(figures) if place % every}
    return "\n".join(line for number, line in enumerate(lines) if number not in left_out)


FORMS: dict[str, Callable[[str, int], str]] = {
    "trainer_state.json": _state,
    "config.json": _json,
    "adapter_config.json": _json,
    "all_results.json": _json,
    "README.md": _card,
}
"""Name of a file → how it is made small, from its text and which rows are kept; others are lines of text."""
