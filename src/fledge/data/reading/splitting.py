"""Splitting of JSON text into its values, block by block: strings, line numbers, and the bytes of the current row."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from fledge.data.reading.formats import ROW_LIMIT, TOO_LARGE, Record, json_record

STRING_BODY = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)  # up to the closing quote
QUOTE, BACKSLASH, COMMA, OPEN, CLOSE, OPEN_OBJECT = b'"\\,[]{'


def next_mark(marks: bytes) -> re.Pattern[bytes]:
    """A pattern up to the next of these bytes outside of strings, or up to the quote of a string that does not end."""
    return re.compile(rb'[^"%b]*+(?:"%b"[^"%b]*+)*+' % (marks, STRING_BODY.pattern, marks), re.DOTALL)


INSIDE_ROW = next_mark(rb"\[\]{}")


@dataclass(kw_only=True)
class JsonSplitter:
    """The state that all splitters keep from one block to the next."""

    file: Path
    depth: int = 0  # of brackets
    quoted: bool = False
    escaped: bool = False  # the last block ended with a backslash inside a string
    line: int = 1
    row_line: int = 1  # line of the current row
    buffered: list[bytes] = field(default_factory=list)  # bytes of the current row
    size: int = 0

    def skip_string(self, block: bytes, position: int) -> int:
        """The position after the string that continues at `position`: after its quote, or the end of the block."""
        match = STRING_BODY.match(block, position + self.escaped)
        end = match.end() if match else len(block)
        self.escaped = end < len(block) and block[end] == BACKSLASH
        self.quoted = end == len(block) or self.escaped
        return len(block) if self.quoted else end + 1

    def count_lines(self, text: bytes) -> None:
        """Count the lines of a text that belongs to no row."""
        self.line += text.count(b"\n")

    def strip_left(self, text: bytes) -> bytes:
        """The text without the white space before it, whose lines are counted."""
        rest = text.lstrip()
        self.count_lines(text[: len(text) - len(rest)])
        return rest

    def buffer(self, text: bytes) -> None:
        """Append to the current row; a row that is too large is not kept."""
        if not self.size:
            text = self.strip_left(text)
            self.row_line = self.line
        self.line += text.count(b"\n")
        self.size += len(text)
        if self.size <= ROW_LIMIT:
            self.buffered.append(text)
        else:
            self.buffered.clear()

    def take_row(self) -> bytes | None:
        """The bytes of the current row, which ends here; None if it is larger than ROW_LIMIT."""
        content = b"".join(self.buffered) if self.size <= ROW_LIMIT else None
        self.buffered, self.size = [], 0
        return content


def json_records(rows: Iterable[tuple[int, bytes | None]], encoding: str, by_line: bool) -> Iterator[Record]:
    """The records of rows that are given with their lines; None stands for a row larger than ROW_LIMIT.

    Their numbers count from 0. `by_line`: a number is the row's line instead, or one more than the number before if several
    rows stand on one line."""
    number = 0 if by_line else -1
    for line, content in rows:
        number = max(line, number + 1) if by_line else number + 1
        record = Record(number, broken=TOO_LARGE) if content is None else json_record(number, content, encoding)
        yield replace(record, detail=f"line {line}: {record.detail}") if record.broken else record
