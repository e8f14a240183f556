"""Rows of a JSON file with one value after another, each over as many lines as it likes, in constant memory."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fledge.data.reading.formats import Blocks, Record
from fledge.data.reading.splitting import INSIDE_ROW, OPEN, OPEN_OBJECT, QUOTE, JsonSplitter, json_records
from fledge.errors import FledgeError

BETWEEN_VALUES = re.compile(rb"[\s,]*+")


@dataclass(kw_only=True)
class ValueSplitter(JsonSplitter):
    """Splits text into its objects and arrays. Commas between them are no part of them."""

    def split(self, block: bytes) -> Iterator[tuple[int, bytes | None]]:
        """The values that end in this block, each with its line; None for a value larger than ROW_LIMIT."""
        start = position = 0
        while position < len(block):
            if self.quoted:
                position = self.skip_string(block, position)
                continue
            if not self.depth:
                start = position = self._skip_to_value(block, position)
                if position == len(block):
                    return
            match = INSIDE_ROW.match(block, position)
            position = match.end() if match else len(block)
            if position == len(block):
                break
            mark = block[position]
            position += 1
            if mark == QUOTE:
                self.quoted = True
                continue
            self.depth += 1 if mark in (OPEN, OPEN_OBJECT) else -1
            if not self.depth:
                self.buffer(block[start:position])
                start = position
                yield self.row_line, self.take_row()
        self.buffer(block[start:])

    def finish(self) -> None:
        """Raise FledgeError if the last value does not end."""
        if self.depth:
            raise FledgeError(
                "the row that begins here does not end: a quote or bracket is missing in it, or the end of the file",
                where=f"{self.file}:{self.row_line}",
            )

    def _skip_to_value(self, block: bytes, position: int) -> int:
        match = BETWEEN_VALUES.match(block, position)
        end = match.end() if match else position
        self.count_lines(block[position:end])
        if end < len(block) and block[end] not in (OPEN, OPEN_OBJECT):
            raise FledgeError("expected a JSON object or array here", where=f"{self.file}:{self.line}")
        return end


def json_values(blocks: Blocks, file: Path, encoding: str, by_line: bool = False) -> Iterator[Record]:
    """The objects and arrays of a file. Raises FledgeError for other text between them, and for an end of the file inside
    one."""
    return json_records(_values(blocks, ValueSplitter(file=file)), encoding, by_line)


def _values(blocks: Blocks, splitter: ValueSplitter) -> Iterator[tuple[int, bytes | None]]:
    for block in blocks:
        yield from splitter.split(block)
    splitter.finish()


def first_value(head: bytes, limit: int | None = None) -> tuple[bytes, bytes] | None:
    """The first object or array of a text, and what follows it; None if the text does not begin with one that ends (within
    `limit` bytes)."""
    splitter = ValueSplitter(file=Path())
    try:
        for _, content in splitter.split(head[:limit]):
            begin = len(head) - len(head.lstrip())
            return (content, head[begin + len(content) :]) if content else None
    except FledgeError:
        pass
    return None
