"""Rows of .csv and .tsv tables as dicts of texts."""

import csv
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from fledge.data.reading.blocks import DamagedFile
from fledge.data.reading.encodings import undecodable_detail
from fledge.data.reading.formats import ROW_LIMIT, TOO_LARGE, Blocks, Record, lines_of
from fledge.errors import FledgeError

DELIMITERS = ",;\t"
SAMPLE_LINES = 50  # lines used to detect the delimiter
SAMPLE_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class _Line:
    number: int
    text: str
    broken: str | None = None
    detail: str = ""


@dataclass(kw_only=True)
class _LineReader:
    """The lines of a table. Lines of the current row are remembered, so that they can be read again."""

    source: Iterator[_Line]
    row_lines: list[_Line] = field(default_factory=list)
    pushed_back: deque[_Line] = field(default_factory=deque)
    size: int = 0  # characters of the current row
    exhausted: bool = False  # the end of the file was reached
    damage: DamagedFile | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            line = self.pushed_back.popleft() if self.pushed_back else next(self.source)
        except DamagedFile as damage:
            self.damage, self.exhausted = damage, True
            raise StopIteration from None
        except StopIteration:
            self.exhausted = True
            raise
        self.row_lines.append(line)
        self.size += len(line.text)
        if self.size > ROW_LIMIT:
            raise csv.Error(f"a quote is not closed within {ROW_LIMIT >> 20} MiB")
        return line.text

    def start_row(self) -> None:
        self.row_lines, self.size, self.exhausted = [], 0, False

    def push_back(self, lines: list[_Line]) -> None:
        self.pushed_back.extendleft(reversed(lines))


def _decode_lines(blocks: Blocks, encoding: str) -> Iterator[_Line]:
    for number, line in lines_of(blocks):
        if line is None:
            yield _Line(number, "\n", TOO_LARGE)
        elif detail := undecodable_detail(line, encoding):
            yield _Line(number, line.decode(errors="replace") + "\n", "undecodable", detail)
        else:
            yield _Line(number, line.decode() + "\n")


def csv_rows(blocks: Blocks, file: Path, encoding: str, delimiter: str | None = None) -> Iterator[Record]:
    """Rows after the header as dicts of texts. A quoted field may span lines; a row's number is the number of its first line.

    `delimiter`: None to detect comma, semicolon or tab from the first lines. A row whose number of fields differs from the
    header is broken, and so is a line with inconsistent quotes; reading continues with the next line. Raises FledgeError for
    an invalid header."""
    csv.field_size_limit(ROW_LIMIT)
    lines = _LineReader(source=_decode_lines(blocks, encoding))
    header: list[str] | None = None
    for number, fields in _parse_rows(lines, delimiter or _detect_delimiter(lines)):
        if header is None:
            header = _header(fields, file, number)
        elif isinstance(fields, Record):
            yield fields
        elif len(fields) != len(header):
            detail = f"{len(fields)} fields, the header has {len(header)}"
            yield Record(number, broken="wrong number of fields", detail=detail)
        else:
            yield Record(number, dict(zip(header, fields, strict=True)))
    if lines.damage:
        raise lines.damage


def _parse_rows(lines: _LineReader, delimiter: str) -> Iterator[tuple[int, list[str] | Record]]:
    """The fields of each row that is not blank, or the broken record of the row."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.start_row()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if lines.exhausted and lines.damage:
                return
            first, *following = lines.row_lines
            yield (
                first.number,
                Record(first.number, broken=first.broken or "invalid CSV", detail=first.detail or _csv_problem(error)),
            )
            lines.push_back(following)
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            continue
        number = lines.row_lines[0].number
        if broken_line := next((line for line in lines.row_lines if line.broken), None):
            yield number, Record(number, broken=broken_line.broken, detail=broken_line.detail)
        elif len(fields) > 1 or any(field_text.strip() for field_text in fields):
            yield number, fields


def _csv_problem(error: csv.Error) -> str:
    message = str(error)
    if message.startswith("new-line"):
        return "a carriage return without a line feed, outside of quotes"
    return "a quote is not closed" if message == "unexpected end of data" else message


def _header(fields: list[str] | Record, file: Path, number: int) -> list[str]:
    location = f"{file}:{number}"
    if isinstance(fields, Record):
        raise FledgeError(f"the header cannot be read: {fields.broken} {fields.detail}", where=location)
    names = [name.strip() or f"column {index}" for index, name in enumerate(fields, 1)]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise FledgeError(f"the header has two columns '{repeated}'", where=location, hint="the first row names the columns")
    return names


def _detect_delimiter(lines: _LineReader) -> str:
    """The delimiter with which most of the first rows are as wide as the header; among several, the one with the widest
    header."""
    with suppress(csv.Error):
        for _ in islice(lines, SAMPLE_LINES):
            if lines.size > SAMPLE_CHARACTERS:
                break
    sample = [line.text for line in lines.row_lines]
    lines.push_back(lines.row_lines)

    def fit(delimiter: str) -> tuple[bool, float, int]:
        try:
            widths = [len(row) for row in csv.reader(sample, delimiter=delimiter) if row]
        except csv.Error:
            return False, 0, 0
        return (widths[0] > 1, widths.count(widths[0]) / len(widths), widths[0]) if widths else (False, 0, 0)

    return max(DELIMITERS, key=fit)
