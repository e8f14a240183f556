"""Rows of .jsonl and .txt files. An invalid row has a number and a reason; other rows are not affected.

All readers take UTF-8 text in blocks (`encodings.utf8_blocks`), the number of the first row, and the file's encoding (for
messages).
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from fledge.data.reading.encodings import undecodable_detail

ROW_LIMIT = 64 << 20  # bytes of one row
TOO_LARGE = f"row larger than {ROW_LIMIT >> 20} MiB"
MAX_NESTING = 250  # depth of brackets that orjson can write and that is safe for recursive code
PYTHON_REPR = re.compile(rb"\s*(?:[\[(]\s*)*(?:\{\s*)?'|.*[:\[,]\s*(?:None|True|False)\s*[,\]}]", re.DOTALL)
DETAIL_BYTES = 4096  # of a broken row, searched for its mistake
Blocks = Iterable[bytes]


class ColumnarRow(dict[str, Any]):
    """A row of a columnar file or data set. All objects in a column have the same keys there: those that an object lacks are
    null."""


@dataclass(frozen=True)
class Record:
    """One row: its value, or a short reason (`broken`) why it has none.

    `number`: the line, counted from 1, or the index in an array or table, counted from 0.
    """

    number: int
    value: Any = None
    broken: str | None = None
    detail: str = ""


def line_batches(blocks: Blocks, first: int = 1) -> Iterator[tuple[int, list[bytes | None]]]:
    """Batches of lines without line feed, each with the number of its first line; None for a line larger than ROW_LIMIT."""
    buffered, size = [b""], 0
    for block in blocks:
        lines: list[bytes | None] = [*block.split(b"\n")]
        last_line = lines.pop() or b""
        if not lines:
            size += len(last_line)
            buffered = [*buffered, last_line] if size <= ROW_LIMIT else []
            continue
        size += len(lines[0] or b"")
        lines[0] = b"".join([*buffered, lines[0] or b""]) if size <= ROW_LIMIT else None
        yield first, lines
        first += len(lines)
        buffered, size = [last_line], len(last_line)
    if size:
        yield first, [b"".join(buffered) if size <= ROW_LIMIT else None]


def lines_of(blocks: Blocks, first: int = 1) -> Iterator[tuple[int, bytes | None]]:
    """The lines, each with its number; None for a line larger than ROW_LIMIT."""
    for begin, lines in line_batches(blocks, first):
        yield from enumerate(lines, begin)


def json_lines(blocks: Blocks, first: int, encoding: str) -> Iterator[Record]:
    """The JSON values of a file with one value per line; blank lines are skipped."""
    for begin, lines in line_batches(blocks, first):
        for number, line in enumerate(lines, begin):
            if line is None:
                yield Record(number, broken=TOO_LARGE)
            elif line and not line.isspace():
                yield json_record(number, line, encoding)


def json_record(number: int, raw: bytes, encoding: str) -> Record:
    """The record of one JSON value. If an object repeats a key, the last value counts."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return _parse_leniently(number, raw, encoding, error)
    if raw.count(b"[") + raw.count(b"{") > MAX_NESTING and _is_deep(value):
        return _too_deep(number)
    return Record(number, value)


def _parse_leniently(number: int, raw: bytes, encoding: str, error: orjson.JSONDecodeError) -> Record:
    """Parse what orjson rejects: NaN and Infinity, which Python writes, and a leading byte order mark are accepted."""
    if detail := undecodable_detail(raw, encoding):
        return Record(number, broken="undecodable", detail=detail)
    try:
        value = json.loads(raw.decode().removeprefix("\ufeff"), parse_int=_integer)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        return _too_deep(number)
    except UnicodeEncodeError as surrogate_error:
        code = ord(surrogate_error.object[surrogate_error.start])
        return Record(number, broken="undecodable", detail=f"\\u{code:04x} is half of a surrogate pair, not a character")
    except ValueError:
        stripped = raw.rstrip().removesuffix(b",").rstrip()  # a line of an array
        if stripped[-1:] in (b"}", b"]") and len(stripped) < len(raw.rstrip()):
            return json_record(number, stripped, encoding)
        problem = _problem(raw, f"{error.msg} (character {error.pos:,} of the row)")
        return Record(number, broken="invalid JSON", detail=f"empty: {problem}" if raw.isspace() or not raw else problem)
    return _too_deep(number) if _is_deep(value) else Record(number, value)


def _problem(raw: bytes, message: str) -> str:
    """What is wrong with a row that is not JSON, in the words of the usual mistake."""
    if PYTHON_REPR.match(raw[:DETAIL_BYTES]):
        return f"this is how Python prints a value, not JSON: write rows with json.dumps; {message}"
    return message


def _too_deep(number: int) -> Record:
    return Record(number, broken="nested too deeply", detail=f"more than {MAX_NESTING} levels of brackets")


def _is_deep(value: Any) -> bool:
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError:
        return True
    return False


def _integer(digits: str) -> int | float:
    """An integer as orjson parses it: beyond 64 bits it becomes a float."""
    return int(digits) if len(digits) < 20 else float(digits)


def text_lines(blocks: Blocks, first: int, encoding: str) -> Iterator[Record]:
    """One document per line; blank lines are skipped."""
    for number, line in lines_of(blocks, first):
        if line is None or line.strip():
            yield _document(number, line, encoding)


def text_paragraphs(blocks: Blocks, first: int, encoding: str) -> Iterator[Record]:
    """One document per paragraph (lines up to a blank line), with the number of its first line."""
    lines: list[bytes] = []
    begin = size = 0
    for number, line in lines_of(blocks, first):
        if line is None or line.strip():
            begin = begin if size else number
            size += ROW_LIMIT + 1 if line is None else len(line) + 1
            if line is not None and size <= ROW_LIMIT:
                lines.append(line)
            else:
                lines.clear()
        elif size:
            yield _document(begin, b"\n".join(lines) if size <= ROW_LIMIT else None, encoding)
            lines, size = [], 0
    if size:
        yield _document(begin, b"\n".join(lines) if size <= ROW_LIMIT else None, encoding)


def text_file(blocks: Blocks, first: int, encoding: str) -> Iterator[Record]:
    """The file as one document with the number 0; nothing if the file is blank."""
    buffered: list[bytes] = []
    size = 0
    for block in blocks:
        size += len(block)
        buffered = [*buffered, block] if size <= ROW_LIMIT else []
    text = b"".join(buffered) if size <= ROW_LIMIT else None
    if text is None or text.strip():
        yield _document(0, text, encoding)


def _document(number: int, raw: bytes | None, encoding: str) -> Record:
    if raw is None:
        return Record(number, broken=TOO_LARGE)
    if detail := undecodable_detail(raw, encoding):
        return Record(number, broken="undecodable", detail=detail)
    return Record(number, {"text": raw.decode().strip("\r\n")})
