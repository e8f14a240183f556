"""The rows of a .json file: the elements of an array, in constant memory however long it is.

The text is cut at the commas of the array, and each part is parsed on its own. So a part that is no JSON is one broken row,
while a missing bracket or quote, after which nothing can be told apart, stops the reading with its line.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import orjson

from fledge.data.reading.blocks import Damaged
from fledge.data.reading.encodings import utf8_blocks
from fledge.data.reading.formats import ROW_LIMIT, TOO_LARGE, Blocks, Record, json_record, lines_of
from fledge.errors import FledgeError

Shape = Literal["array", "object", "lines"]
STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)  # up to the quote that ends it
# Up to the next mark outside of strings: a comma or bracket between the rows, a bracket inside them; or to an open string.
BETWEEN, INSIDE = (
    re.compile(rb'[^"%b]*+(?:"%b"[^"%b]*+)*+' % (marks, STRING.pattern, marks), re.DOTALL)
    for marks in (rb"\[\]{},", rb"\[\]{}")
)
QUOTE, BACKSLASH, COMMA, OPEN, CLOSE, OPEN_OBJECT = b'"\\,[]{'
NO_ARRAY = "expected a JSON array of rows"
SEVERAL = "write the list that is meant into a file of its own"
HINT = "one object a line? then name the file .jsonl"


def shape_of(file: Path, encoding: str) -> Shape:
    """What a .json file holds: an array, an object, or an object a line. FledgeError if it is something else."""
    with suppress(Damaged):  # told when the rows are read
        for block in utf8_blocks(file, encoding):
            if start := block.lstrip()[:1]:
                if start not in (b"[", b"{"):
                    raise FledgeError(f"{NO_ARRAY}; the file begins with {start!r}", where=f"{file}:1", hint=HINT)
                return "array" if start == b"[" else "lines" if _is_lines(file, encoding) else "object"
    return "array"


def _is_lines(file: Path, encoding: str) -> bool:
    """Whether the first two lines begin with a bracket, and one of them is a whole object."""
    with suppress(Damaged):
        texts = (line for _, line in lines_of(utf8_blocks(file, encoding)) if line is None or line.strip())
        two = list(islice(texts, 2))
        if len(two) == 2 and all(line is not None and line.lstrip().startswith(b"{") for line in two):
            return any(_is_json(line) for line in two if line is not None)
    return False


def _is_json(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True


def json_array(blocks: Blocks, file: Path, shape: Shape, encoding: str) -> Iterator[Record]:
    """The elements of the array that the file is, or of the one list of objects that its object holds, counted from 0.

    FledgeError where the array does not end, something follows it, or an object holds no list of objects or several.
    """
    cutter = _Cutter(file, level=1 if shape == "array" else 2)
    index = 0
    for block in blocks:
        for line, part in cutter.cut(block):
            record = json_record(index, part, encoding) if part is not None else Record(index, broken=TOO_LARGE)
            yield replace(record, detail=f"line {line}: {record.detail}") if record.broken else record
            index += 1
    cutter.finish()


@dataclass
class _Cutter:
    """Cuts an array at its commas, block by block. The rows stand inside `level` brackets."""

    file: Path
    level: int
    depth: int = 0
    inside: bool = False  # of a list at this level
    lists: int = 0  # that hold rows
    fresh: bool = False  # before the first row of a list
    quoted: bool = False
    escaped: bool = False  # the last block ended with a backslash
    ended: bool = False
    line: int = 1
    begin: int = 1  # line of the row at hand
    held: list[bytes] = field(default_factory=list)  # what is known of it
    size: int = 0

    def cut(self, block: bytes) -> Iterator[tuple[int, bytes | None]]:
        """The rows that end in this block, each with its line; None is one larger than ROW_LIMIT."""
        start = position = 0
        while position < len(block) and not self.ended:
            if self.quoted:
                position = self._string(block, position)
                continue
            between = self.inside and self.depth == self.level
            found = (BETWEEN if between else INSIDE).match(block, position)
            position = found.end() if found else len(block)
            if position == len(block):
                break
            mark = block[position]
            position += 1
            if mark == QUOTE:
                self.quoted = True
            elif mark in (OPEN, OPEN_OBJECT):
                self.depth += 1
                if mark == OPEN and self.depth == self.level:
                    self._pass_over(block[start:position])
                    start, self.inside, self.fresh = position, True, True
            elif not between:
                self.depth -= 1
            elif mark in (COMMA, CLOSE):
                self._hold(block[start : position - 1])
                start = position
                yield from self._row(mark == CLOSE)
                if mark == CLOSE:
                    self.inside, self.depth = False, self.depth - 1
            self.ended = self.depth == 0
        self._keep_rest(block[start:], block[position:])

    def finish(self) -> None:
        """FledgeError if the text was no whole array."""
        if self.inside:
            raise FledgeError(
                "the array does not end: a quote or bracket is missing in the row that begins here, or the rest of the file",
                where=f"{self.file}:{self.begin}",
            )
        if not self.ended and self.depth:
            raise FledgeError("the object does not end", where=f"{self.file}:{self.line}")
        if self.level == 2 and not self.lists:
            raise FledgeError(f"{NO_ARRAY}, or an object that holds one", where=str(self.file), hint=HINT)

    def _string(self, block: bytes, position: int) -> int:
        """Where the string ends that goes on at `position`: behind its quote, or at the end of the block."""
        found = STRING.match(block, position + self.escaped)
        end = found.end() if found else len(block)
        self.escaped = end < len(block) and block[end] == BACKSLASH
        self.quoted = end == len(block) or self.escaped
        return len(block) if self.quoted else end + 1

    def _pass_over(self, text: bytes) -> None:
        self.line += text.count(b"\n")

    def _hold(self, text: bytes) -> None:
        """Text of the row at hand; nothing is held of one that is too large."""
        if not self.size:
            text = self._without_space_before(text)
            self.begin = self.line
        self.line += text.count(b"\n")
        self.size += len(text)
        if self.size <= ROW_LIMIT:
            self.held.append(text)
        else:
            self.held.clear()

    def _without_space_before(self, text: bytes) -> bytes:
        rest = text.lstrip()
        self._pass_over(text[: len(text) - len(rest)])
        return rest

    def _row(self, last: bool) -> Iterator[tuple[int, bytes | None]]:
        """The row that has just ended, if it is one."""
        part = b"".join(self.held) if self.size <= ROW_LIMIT else None
        empty_list = self.fresh and last and part == b""
        others = self.fresh and self.level == 2 and part is not None and not part.startswith(b"{")
        self.held, self.size = [], 0
        if empty_list or others:
            self.inside = False
            return
        self.lists += self.fresh
        self.fresh = False
        if self.lists > 1:
            raise FledgeError("the object holds several lists of rows", where=f"{self.file}:{self.begin}", hint=SEVERAL)
        yield self.begin, part

    def _keep_rest(self, row: bytes, unread: bytes) -> None:
        """What is left of a block: the beginning of a row, or what stands outside of the array."""
        if self.inside:
            self._hold(row)
        elif self.ended and unread.strip():
            self._pass_over(row[: len(row) - len(unread)])
            self._without_space_before(unread)
            raise FledgeError("something follows the end of the array", where=f"{self.file}:{self.line}", hint=HINT)
        else:
            self._pass_over(row)
