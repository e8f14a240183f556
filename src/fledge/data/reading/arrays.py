"""Rows of a .json file, the elements of an array, read in constant memory.

The text is split at the commas of the array and each element is parsed on its own. So an invalid element is one broken row; but
after a missing bracket or quote the elements cannot be told apart, and reading stops with an error that names the line.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fledge.data.reading.formats import Blocks, Record
from fledge.data.reading.json_shapes import NOT_AN_ARRAY, Shape
from fledge.data.reading.splitting import (
    CLOSE,
    COMMA,
    INSIDE_ROW,
    OPEN,
    OPEN_OBJECT,
    QUOTE,
    JsonSplitter,
    json_records,
    next_mark,
)
from fledge.errors import FledgeError

BETWEEN_ROWS = next_mark(rb"\[\]{},")  # up to the next comma or bracket between rows
HINT_SEVERAL_LISTS = "write the list of rows into a separate file"
HINT_LIST = "write the rows as a list, or one object a line"


def json_array(blocks: Blocks, file: Path, shape: Shape, encoding: str, by_line: bool = False) -> Iterator[Record]:
    """The elements of the file's array, or of the only list of objects in its object (`shape`).

    Raises FledgeError if the array does not end, if something follows it, or if an object holds no list of objects or several.
    """
    return json_records(_elements(blocks, _ArraySplitter(file=file, level=2 if shape == "object" else 1)), encoding, by_line)


def _elements(blocks: Blocks, splitter: "_ArraySplitter") -> Iterator[tuple[int, bytes | None]]:
    for block in blocks:
        yield from splitter.split(block)
    splitter.finish()


@dataclass(kw_only=True)
class _ArraySplitter(JsonSplitter):
    """Splits an array at its commas, block by block. The rows are at bracket depth `level`."""

    level: int
    in_list: bool = False  # inside a list at this level
    num_lists: int = 0  # lists with rows, so far
    at_first_row: bool = False  # no row of this list was read yet
    ended: bool = False

    def split(self, block: bytes) -> Iterator[tuple[int, bytes | None]]:
        """The rows that end in this block, each with its line; None for a row larger than ROW_LIMIT."""
        start = position = 0
        while position < len(block) and not self.ended:
            if self.quoted:
                position = self.skip_string(block, position)
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
                    self.count_lines(block[start:position])
                    start, self.in_list, self.at_first_row = position, True, True
            elif not between_rows:
                self.depth -= 1
            elif mark in (COMMA, CLOSE):
                self.buffer(block[start : position - 1])
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
            raise FledgeError(f"{NOT_AN_ARRAY}, or an object that holds one", where=str(self.file), hint=HINT_LIST)

    def _end_row(self, last: bool) -> Iterator[tuple[int, bytes | None]]:
        """The row that has just ended; nothing if the list is empty or is not a list of objects."""
        content = self.take_row()
        empty_list = self.at_first_row and last and content == b""
        other_list = self.at_first_row and self.level == 2 and content is not None and not content.startswith(b"{")
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
            self.buffer(row)
        elif self.ended and unread.strip():
            self.count_lines(row[: len(row) - len(unread)])
            self.strip_left(unread)
            raise FledgeError("something follows the end of the array", where=f"{self.file}:{self.line}")
        else:
            self.count_lines(row)
