"""Logs with columns: JSON lines, JSON, CSV and TSV, with any names."""

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.errors import FledgeError
from fledge.training_log.assemble import Origin, assemble
from fledge.training_log.decimal_commas import decimal_columns, with_point
from fledge.training_log.given import Given
from fledge.training_log.names import resolve
from fledge.training_log.numbers import parse_number
from fledge.training_log.records import TrainingLog
from fledge.training_log.rows import Rows
from fledge.training_log.text_file import LOG_HINT, read_text, without_colours

CHUNK = 2_000  # lines of JSON that are parsed together
SAMPLE = 20  # lines that are looked at to tell what a file is
DELIMITERS = (",", "\t", ";")
WANDB_EXPORT = re.compile(r"^(?P<run>.+?) - (?P<figure>.+?)(?:__(?P<edge>MIN|MAX))?$")
QUOTED_COMMA = re.compile(r"\"\s*[-+]?[\d.]*,\d")
FIRST_NUMBER = re.compile(r"^\s*[-+]?\d")


# -- what a file is -----------------------------------------------------------------------------------------------------


def looks_like_json_lines(text: str) -> bool:
    """Whether most of the first lines are JSON objects."""
    lines = [line.strip() for line in text[:200_000].split("\n") if line.strip()][:SAMPLE]
    if len(lines) == 1:
        only = _object(lines[0])
        return only is not None and any(type(value) in (int, float) for value in only.values())
    return bool(lines) and sum(_object(line) is not None for line in lines) * 2 >= len(lines)


def looks_like_json(text: str) -> bool:
    """Whether the text is one JSON document."""
    if text.lstrip("\ufeff \t\r\n")[:1] not in ("{", "["):
        return False
    try:
        json.loads(text.lstrip("\ufeff"))
    except (ValueError, RecursionError):
        return False
    return True


def delimiter_of(text: str) -> str | None:
    """What divides the columns of a table whose first line names them; None if this is no such table."""
    lines = [line for line in text[:200_000].splitlines() if line.strip()][:SAMPLE]
    if len(lines) < 2 or FIRST_NUMBER.match(lines[0]):
        return None
    return next((delimiter for delimiter in DELIMITERS if _is_table(lines, delimiter)), None)


def _is_table(lines: list[str], delimiter: str) -> bool:
    """Whether nearly all lines have as many cells as the first one, which holds names, and the second one numbers."""
    try:
        head, *rows = list(csv.reader(lines, delimiter=delimiter))
    except csv.Error:
        return False
    whole = rows[:-1] or rows  # the last line may be cut off
    if len(head) < 2 or not rows or sum(len(row) == len(head) for row in whole) * 10 < 9 * len(whole):
        return False
    named = [cell for cell in head if cell.strip()]
    return any(parse_number(cell) for cell in rows[0]) and not any(parse_number(cell) for cell in named)


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


# -- JSON ---------------------------------------------------------------------------------------------------------------


def read_json_lines(path: Path, given: Given, source: str = "JSON lines") -> list[TrainingLog]:
    """The log in a file with one JSON object a line. Lines that are none are counted."""
    rows = Rows()
    for number, record in json_objects(read_text(path), rows):
        add_record(rows, number, record)
    return [assembled(rows, path, source, given)]


def json_objects(text: str, rows: Rows) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every JSON object of a text with its line; other lines are counted in `rows`, and a torn last line is told."""
    lines = text.split("\n")
    for start in range(0, len(lines), CHUNK):
        chunk = lines[start : start + CHUNK]
        filled = [(number, line) for number, line in enumerate(chunk, start + 1) if line.strip()]
        records = _parsed_together([line for _, line in filled])
        if records is not None:
            for (number, _), record in zip(filled, records, strict=True):
                if isinstance(record, dict):
                    yield number, record
                else:
                    rows.unread["lines that are no JSON objects"] += 1
            continue
        for number, line in filled:
            record = _object(line)
            if record is not None:
                yield number, record
            elif number == len(lines):
                rows.notes.append(f"Line {number:,}, the last one, is cut off and left out.")
                rows.unread["a last line that is cut off"] += 1
            else:
                rows.unread["lines that are no JSON objects"] += 1


def _parsed_together(lines: list[str]) -> list[Any] | None:
    """The values of these lines, parsed as one list; None if one of them is no JSON value of its own."""
    try:
        values = json.loads("[" + ",".join(lines) + "]")
    except (ValueError, RecursionError):
        return None
    return values if len(values) == len(lines) else None


def add_record(rows: Rows, line: int, record: Mapping[str, Any]) -> None:
    """Add the numbers of a record as a row; inner mappings are named `outer/inner`. What is no number is counted."""
    values: dict[str, float] = {}
    for name, value in record.items():
        kind = type(value)
        if kind is float or kind is int:
            values[name] = value
        elif kind is dict:
            values.update(_inner(rows, name, value))
        elif value is not None and (number := _number(rows, name, value)) is not None:
            values[name] = number
    if values:
        rows.add(line, values)


def _inner(rows: Rows, name: str, value: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for key, one in value.items():
        full = f"{name}/{key}"
        if isinstance(one, dict):
            yield from _inner(rows, full, one)
        elif isinstance(one, int | float) and not isinstance(one, bool):
            yield full, float(one)
        elif one is not None and (number := _number(rows, full, one)) is not None:
            yield full, number


def _number(rows: Rows, name: str, value: Any) -> float | None:
    """The number that a text holds; what is none is counted."""
    number = parse_number(value) if isinstance(value, str) else None
    if number is None:
        rows.unread[f"column {name}: not numbers"] += 1
        return None
    if number.measures:
        rows.measures[name] = number.measures
    return number.value


def read_json_document(path: Path, given: Given) -> list[TrainingLog]:
    """The log in a JSON document: a list of records, or lists of numbers by name (such as the history of Keras)."""
    try:
        tree = json.loads(read_text(path))
    except (ValueError, RecursionError):
        raise FledgeError("this is neither JSON nor JSON lines", where=str(path), hint=LOG_HINT) from None
    rows = Rows()
    records = _records_in(tree)
    if records is None:
        raise FledgeError(
            "no list of records is in this JSON document",
            where=str(path),
            hint="write one JSON object a line, with a step each",
        )
    for number, record in enumerate(records, 1):
        if isinstance(record, dict):
            add_record(rows, number, record)
        else:
            rows.unread["values that are no records"] += 1
    return [assembled(rows, path, "JSON", given)]


def _records_in(tree: Any) -> list[Any] | None:
    """The longest list of records in a document, or its lists of numbers as records."""
    if isinstance(tree, list):
        return tree if any(isinstance(one, dict) for one in tree) else None
    if not isinstance(tree, dict):
        return None
    lists = {name: value for name, value in tree.items() if isinstance(value, list) and value}
    tables = [value for value in lists.values() if isinstance(value[0], dict)]
    if tables:
        return max(tables, key=len)
    numbers = {name: value for name, value in lists.items() if isinstance(value[0], int | float | None)}
    length = max((len(value) for value in numbers.values()), default=0)
    if not length:
        inner = [found for value in tree.values() if isinstance(value, dict) and (found := _records_in(value))]
        return max(inner, key=len) if inner else None
    return [{name: value[row] for name, value in numbers.items() if row < len(value)} for row in range(length)]


# -- CSV ----------------------------------------------------------------------------------------------------------------


def read_csv(path: Path, given: Given, delimiter: str | None = None) -> list[TrainingLog]:
    """The logs in a table with a line of names: one, or one for each run of an export of Weights & Biases."""
    text = without_colours(read_text(path))
    found = delimiter or delimiter_of(text)
    if found is None:
        raise FledgeError("this is no table: its first line must name the columns", where=str(path), hint=LOG_HINT)
    lines = _cells(text.lstrip("\ufeff"), found, path)
    head = [name.strip() for name in next(lines)]
    commas = _commas(text, found, head, path)
    runs = _exported_runs(head)
    if not runs:
        rows = Rows()
        _add_cells(rows, enumerate(lines, 2), _names(path, head), commas)
        return [assembled(rows, path, "CSV" if found != "\t" else "TSV", given)]
    table = _Table(head, list(enumerate(lines, 2)), commas)
    return [_of_export(path, table, run, given) for run in given.stages(runs, path)]


def _cells(text: str, delimiter: str, path: Path) -> Iterator[list[str]]:
    """The cells of each line. Raises FledgeError where the table is damaged."""
    try:
        yield from csv.reader(io.StringIO(text, newline=None), delimiter=delimiter)
    except csv.Error as error:
        raise FledgeError(f"this table is damaged: {error}", where=str(path), hint=LOG_HINT) from None


def _commas(text: str, delimiter: str, head: list[str], path: Path) -> list[bool]:
    """For each column, whether the commas of its numbers are decimal ones."""
    if not (QUOTED_COMMA.search(text) if delimiter == "," else "," in text):
        return [False] * len(head)
    named = [match["figure"] if (match := WANDB_EXPORT.match(name)) else name for name in head]
    rows = _cells(text.lstrip("\ufeff"), delimiter, path)
    next(rows)
    return decimal_columns(named, rows, otherwise=delimiter == ";")


@dataclass(frozen=True)
class _Table:
    """The cells of a table: names of columns, rows with their lines, and which columns have decimal commas."""

    head: list[str]
    body: list[tuple[int, list[str]]]
    commas: list[bool]


TENSORBOARD_EXPORT = ["wall time", "step", "value"]


def _names(path: Path, head: list[str]) -> Sequence[str | None]:
    """The names of columns. TensorBoard's export of one curve has its name in the name of the file only."""
    if [name.lower() for name in head] != TENSORBOARD_EXPORT:
        return head
    _, mark, tag = path.stem.partition("-tag-")
    return [None, "step", tag if mark else "Value"]


def _add_cells(rows: Rows, lines: Any, names: Sequence[str | None], commas: Sequence[bool]) -> None:
    """Add the cells of a table; `names`: of its columns, None for one that is left out; `commas`: whether those of a column
    are decimal ones."""
    for number, cells in lines:
        values: dict[str, float] = {}
        for name, cell, decimal_comma in zip(names, cells, commas, strict=False):
            if not cell or name is None:
                continue
            try:
                values[name] = float(cell)
            except ValueError:
                _add_text(rows, values, name, with_point(cell) if decimal_comma else cell)
        if len(cells) != len(names) and cells:
            rows.unread["lines with another number of cells"] += 1
            if len(cells) < len(names) and len(values) < 2:
                continue
        if values:
            rows.add(number, values)


def _add_text(rows: Rows, values: dict[str, float], name: str, cell: str) -> None:
    if cell.strip() and (number := _number(rows, name, cell)) is not None:
        values[name] = number


def _exported_runs(head: list[str]) -> list[str]:
    """The runs of an export of Weights & Biases, whose columns are named `run - figure`; empty for other tables."""
    runs = [match["run"] for name in head if (match := WANDB_EXPORT.match(name))]
    named = [name for name in head if resolve(name) is not None and not WANDB_EXPORT.match(name)]
    return list(dict.fromkeys(runs)) if runs and len(runs) + len(named) + 2 >= len(head) else []


def _of_export(path: Path, table: _Table, run: str, given: Given) -> TrainingLog:
    """The log of one run of an export of Weights & Biases."""
    rows = Rows()
    names: list[str | None] = []
    edges = 0
    for name in table.head:
        match = WANDB_EXPORT.match(name)
        edges += bool(match and match["run"] == run and match["edge"])
        names.append(name if match is None else match["figure"] if match["run"] == run and not match["edge"] else None)
    _add_cells(rows, table.body, names, table.commas)
    rows = _with_figures(rows)
    if edges:
        rows.unread["columns __MIN and __MAX, the limits of smoothed points"] += edges
    return assembled(rows, path, "Weights & Biases CSV export", given, stage=run)


def _with_figures(rows: Rows) -> Rows:
    """The rows that hold more than a step: those of other runs have nothing else."""
    figures = [name for name in rows.names if (known := resolve(name)) is None or not known.is_axis]
    kept = Rows()
    kept.unread, kept.notes, kept.measures = rows.unread, rows.notes, rows.measures
    spread = {name: rows.spread(name) for name in rows.names}
    for row, line in enumerate(rows.lines):
        values = {name: float(column[row]) for name, column in spread.items() if column is not None}
        if any(not math.isnan(values[name]) for name in figures):
            kept.add(line, {name: value for name, value in values.items() if not math.isnan(value)})
    return kept


def assembled(rows: Rows, path: Path, source: str, given: Given, stage: str = "") -> TrainingLog:
    """The log of a table. Raises FledgeError if a named column is not there, or no column is a figure."""
    chosen = set(given.chosen(rows.names, str(path)).values())
    known = [name for name in rows.names if name in chosen or ((one := resolve(name)) and not one.is_axis)]
    if not known:
        listed = ", ".join(rows.names[:20]) or "none with numbers"
        raise FledgeError(
            f"no column is known as a figure of training; there are: {listed}",
            where=str(path),
            hint="name them with --columns, such as --columns train/loss=my_column step=my_step",
        )
    return assemble(rows, Origin(source=source, path=str(path), stage=stage), given)
