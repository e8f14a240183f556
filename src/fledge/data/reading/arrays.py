"""Rows of a .json file, the elements of an array, read in constant memory.

The text is split at the commas of the array and each element is parsed on its own. So an invalid element is one broken row; but
after a missing bracket or quote the elements cannot be told apart, and reading stops with an error that names the line.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import orjson

from fledge.data.reading.blocks import DamagedFile
from fledge.data.reading.encodings import utf8_blocks
from fledge.data.reading.formats import ROW_LIMIT, TOO_LARGE, Blocks, Record, json_record, lines_of
from fledge.errors import FledgeError

Shape = Literal["array", "object", "lines"]
STRING_BODY = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)  # up to the closing quote
# Up to the next mark outside of strings: a comma or bracket between rows, a bracket inside a row; or up to an open string.
BETWEEN_ROWS, INSIDE_ROW = (
    re.compile(rb'[^"%b]*+(?:"%b"[^"%b]*+)*+' % (marks, STRING_BODY.pattern, marks), re.DOTALL)
    for marks in (rb"\[\]{},", rb"\[\]{}")
)
QUOTE, BACKSLASH, COMMA, OPEN, CLOSE, OPEN_OBJECT = b'"\\,[]{'
NOT_AN_ARRAY = "expected a JSON array of rows"
HINT_SEVERAL_LISTS = "write the list of rows into a separate file"
HINT_JSON_LINES = "if the file has one object per line, name it .jsonl"


def shape_of(file: Path, encoding: str) -> Shape:
    """The shape of a .json file: an array, an object, or lines of objects. Raises FledgeError for anything else."""
    with suppress(DamagedFile):  # reported when the rows are read
        for block in utf8_blocks(file, encoding):
            if start := block.lstrip()[:1]:
                if start not in (b"[", b"{"):
                    raise FledgeError(
                        f"{NOT_AN_ARRAY}; the file begins with {start!r}", where=f"{file}:1", hint=HINT_JSON_LINES
                    )
                return "array" if start == b"[" else "lines" if _is_lines(file, encoding) else "object"
    return "array"


def _is_lines(file: Path, encoding: str) -> bool:
    """Whether the first two lines begin with a brace and one of them is a complete object."""
    with suppress(DamagedFile):
        texts = (line for _, line in lines_of(utf8_blocks(file, encoding)) if line is None or line.strip())
        first_two = list(islice(texts, 2))
        if len(first_two) == 2 and all(line is not None and line.lstrip().startswith(b"{") for line in first_two):
            return any(_is_json(line) for line in first_two if line is not None)
    return False


def _is_json(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True


def json_array(blocks: Blocks, file: Path, shape: Shape, encoding: str) -> Iterator[Record]:
    """The elements of the file's array, or of the only list of objects in its object, numbered from 0.

    Raises FledgeError if the array does not end, if something follows it, or if an object holds no list of objects or several.
    """
    splitter = _ArraySplitter(file=file, level=1 if shape == "array" else 2)
    index = 0
    for block in blocks:
        for line, content in splitter.split(block):
            record = json_record(index, content, encoding) if content is not None else Record(index, broken=TOO_LARGE)
            yield replace(record, detail=f"line {line}: {record.detail}") if record.broken else record
            index += 1
    splitter.finish()


@dataclass(kw_only=True)
class _ArraySplitter:
    """Splits an array at its commas, block by block. The rows are at bracket depth `level`."""

    file: Path
    level: int
    depth: int = 0
    in_list: bool = False  # inside a list at this level
    num_lists: int = 0  # lists with rows, so far
    at_first_row: bool = False  # no row of this list was read yet
    quoted: bool = False
    escaped: bool = False  # the last block ended with a backslash inside a string
    ended: bool = False
    line: int = 1
    row_line: int = 1  # line of the current row
    buffered: list[bytes] = field(default_factory=list)  # bytes of the current row
    size: int = 0

    def split(self, block: bytes) -> Iterator[tuple[int, bytes | None]]:
        """The rows that end in this block, each with its line; None for a row larger than ROW_LIMIT."""
        start = position = 0
        while position < len(block) and not self.ended:
            if self.quoted:
                position = self._skip_string(block, position)
                continue
            between_rows = self.in_list and self.depth == self.level
            match = (BETWEEN_ROWS if between_rows else INSIDE_ROW).match(block, position)
            position = match.end() if match else len(block)
            if position == len(block):
                break
            mark = block[position]
            position += 1
            if mark == QUOTE:
                self.quoted = True
            elif mark in (OPEN, OPEN_OBJECT):
                self.depth += 1
                if mark == OPEN and self.depth == self.level:
                    self._count_lines(block[start:position])
                    start, self.in_list, self.at_first_row = position, True, True
            elif not between_rows:
                self.depth -= 1
            elif mark in (COMMA, CLOSE):
                self._buffer(block[start : position - 1])
                start = position
                yield from self._end_row(mark == CLOSE)
                if mark == CLOSE:
                    self.in_list, self.depth = False, self.depth - 1
            self.ended = self.depth == 0
        self._end_block(block[start:], block[position:])

    def finish(self) -> None:
        """Raise FledgeError if the text is not a complete array."""
        if self.in_list:
            raise FledgeError(
                "the array does not end: a quote or bracket is missing in the row that begins here, or the end of the file",
                where=f"{self.file}:{self.row_line}",
            )
        if not self.ended and self.depth:
            raise FledgeError("the object does not end", where=f"{self.file}:{self.line}")
        if self.level == 2 and not self.num_lists:
            raise FledgeError(f"{NOT_AN_ARRAY}, or an object that holds one", where=str(self.file), hint=HINT_JSON_LINES)

    def _skip_string(self, block: bytes, position: int) -> int:
        """The position after the string that continues at `position`: after its quote, or the end of the block."""
        match = STRING_BODY.match(block, position + self.escaped)
        end = match.end() if match else len(block)
        self.escaped = end < len(block) and block[end] == BACKSLASH
        self.quoted = end == len(block) or self.escaped
        return len(block) if self.quoted else end + 1

    def _count_lines(self, text: bytes) -> None:
        self.line += text.count(b"\n")

    def _buffer(self, text: bytes) -> None:
        """Append to the current row; a row that is too large is not kept."""
        if not self.size:
            text = self._strip_left(text)
            self.row_line = self.line
        self.line += text.count(b"\n")
        self.size += len(text)
        if self.size <= ROW_LIMIT:
            self.buffered.append(text)
        else:
            self.buffered.clear()

    def _strip_left(self, text: bytes) -> bytes:
        rest = text.lstrip()
        self._count_lines(text[: len(text) - len(rest)])
        return rest

    def _end_row(self, last: bool) -> Iterator[tuple[int, bytes | None]]:
        """The row that has just ended; nothing if the list is empty or is not a list of objects."""
        content = b"".join(self.buffered) if self.size <= ROW_LIMIT else None
        empty_list = self.at_first_row and last and content == b""
        other_list = self.at_first_row and self.level == 2 and content is not None and not content.startswith(b"{")
        self.buffered, self.size = [], 0
        if empty_list or other_list:
            self.in_list = False
            return
        self.num_lists += self.at_first_row
        self.at_first_row = False
        if self.num_lists > 1:
            raise FledgeError(
                "the object holds several lists of rows", where=f"{self.file}:{self.row_line}", hint=HINT_SEVERAL_LISTS
            )
        yield self.row_line, content

    def _end_block(self, row: bytes, unread: bytes) -> None:
        """Process the rest of a block: the beginning of a row, or text outside of the array."""
        if self.in_list:
            self._buffer(row)
        elif self.ended and unread.strip():
            self._count_lines(row[: len(row) - len(unread)])
            self._strip_left(unread)
            raise FledgeError("something follows the end of the array", where=f"{self.file}:{self.line}", hint=HINT_JSON_LINES)
        else:
            self._count_lines(row)
