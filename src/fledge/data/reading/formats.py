"""The rows of .jsonl and .txt. What is no row has a reason and a number, and its neighbours are kept.

All readers take the text as UTF-8 in blocks (`encodings.utf8_blocks`), the number of the first row, and the encoding that the
file had, for messages.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from fledge.data.reading.encodings import why_undecodable

ROW_LIMIT = 64 << 20  # bytes of one row
TOO_LARGE = f"row larger than {ROW_LIMIT >> 20} MiB"
NESTING = 250  # brackets within brackets: what orjson can write again, and what no recursion in Python trips over
Blocks = Iterable[bytes]


@dataclass(frozen=True)
class Record:
    """One row: its value, or a short reason why it has none.

    `number` is the line, counted from 1, or the index in an array or table, counted from 0.
    """

    number: int
    value: Any = None
    broken: str | None = None
    detail: str = ""


def line_batches(blocks: Blocks, first: int = 1) -> Iterator[tuple[int, list[bytes | None]]]:
    """Lines without their newline, many at a time, with the number of the first; None is a line larger than ROW_LIMIT."""
    held, size = [b""], 0
    for block in blocks:
        lines: list[bytes | None] = [*block.split(b"\n")]
        rest = lines.pop() or b""
        if not lines:
            size += len(rest)
            held = [*held, rest] if size <= ROW_LIMIT else []
            continue
        size += len(lines[0] or b"")
        lines[0] = b"".join([*held, lines[0] or b""]) if size <= ROW_LIMIT else None
        yield first, lines
        first += len(lines)
        held, size = [rest], len(rest)
    if size:
        yield first, [b"".join(held) if size <= ROW_LIMIT else None]


def lines_of(blocks: Blocks, first: int = 1) -> Iterator[tuple[int, bytes | None]]:
    """Every line with its number; None as above."""
    for begin, lines in line_batches(blocks, first):
        yield from enumerate(lines, begin)


def json_lines(blocks: Blocks, first: int, encoding: str) -> Iterator[Record]:
    """A JSON value a line; blank lines are skipped."""
    for begin, lines in line_batches(blocks, first):
        for number, line in enumerate(lines, begin):
            if line is None:
                yield Record(number, broken=TOO_LARGE)
            elif line and not line.isspace():
                yield json_record(number, line, encoding)


def json_record(number: int, raw: bytes, encoding: str) -> Record:
    """One JSON value. Of a key that is written twice, the last value holds."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return _second_look(number, raw, encoding, error)
    if raw.count(b"[") + raw.count(b"{") > NESTING and _is_deep(value):
        return _too_deep(number)
    return Record(number, value)


def _second_look(number: int, raw: bytes, encoding: str, error: orjson.JSONDecodeError) -> Record:
    """What orjson refuses. NaN and Infinity, which Python writes, and a byte order mark before the value are accepted."""
    if detail := why_undecodable(raw, encoding):
        return Record(number, broken="undecodable", detail=detail)
    try:
        value = json.loads(raw.decode().removeprefix("\ufeff"), parse_int=_integer)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        return _too_deep(number)
    except UnicodeEncodeError as lone:
        code = ord(lone.object[lone.start])
        return Record(number, broken="undecodable", detail=f"\\u{code:04x} is half of a surrogate pair, no character")
    except ValueError:
        at = f"{error.msg} (character {error.pos:,} of the row)"
        return Record(number, broken="invalid JSON", detail=f"empty: {at}" if raw.isspace() or not raw else at)
    return _too_deep(number) if _is_deep(value) else Record(number, value)


def _too_deep(number: int) -> Record:
    return Record(number, broken="nested too deeply", detail=f"more than {NESTING} levels of brackets")


def _is_deep(value: Any) -> bool:
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError:
        return True
    return False


def _integer(digits: str) -> int | float:
    """As orjson reads integers: those beyond 64 bits become floats."""
    return int(digits) if len(digits) < 20 else float(digits)


def text_lines(blocks: Blocks, first: int, encoding: str) -> Iterator[Record]:
    """A document a line; blank lines are skipped."""
    for number, line in lines_of(blocks, first):
        if line is None or line.strip():
            yield _document(number, line, encoding)


def text_paragraphs(blocks: Blocks, first: int, encoding: str) -> Iterator[Record]:
    """A document for all lines up to a blank one, with the number of its first line."""
    held: list[bytes] = []
    begin = size = 0
    for number, line in lines_of(blocks, first):
        if line is None or line.strip():
            begin = begin if size else number
            size += ROW_LIMIT + 1 if line is None else len(line) + 1
            if line is not None and size <= ROW_LIMIT:
                held.append(line)
            else:
                held.clear()
        elif size:
            yield _document(begin, b"\n".join(held) if size <= ROW_LIMIT else None, encoding)
            held, size = [], 0
    if size:
        yield _document(begin, b"\n".join(held) if size <= ROW_LIMIT else None, encoding)


def text_whole(blocks: Blocks, first: int, encoding: str) -> Iterator[Record]:
    """The file as one document, with the number 0; nothing if it is blank."""
    held: list[bytes] = []
    size = 0
    for block in blocks:
        size += len(block)
        held = [*held, block] if size <= ROW_LIMIT else []
    text = b"".join(held) if size <= ROW_LIMIT else None
    if text is None or text.strip():
        yield _document(0, text, encoding)


def _document(number: int, raw: bytes | None, encoding: str) -> Record:
    if raw is None:
        return Record(number, broken=TOO_LARGE)
    if detail := why_undecodable(raw, encoding):
        return Record(number, broken="undecodable", detail=detail)
    return Record(number, {"text": raw.decode().strip("\r\n")})
