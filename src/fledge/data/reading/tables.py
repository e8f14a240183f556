"""The rows of tables: .csv and .tsv as dicts of texts, .parquet as dicts of Python values."""

import csv
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from fledge.data.reading.blocks import BLOCK, UNPACK, Damaged, blocks_of
from fledge.data.reading.encodings import why_undecodable
from fledge.data.reading.formats import ROW_LIMIT, TOO_LARGE, Blocks, Record, lines_of
from fledge.errors import FledgeError, missing_extra

if TYPE_CHECKING:
    from pyarrow import RecordBatch
    from pyarrow.parquet import ParquetFile

DELIMITERS = ",;\t"
SNIFFED = 50  # lines from which the delimiter is judged
SNIFFED_SIZE = 1 << 20  # characters
BATCH = 256  # rows of a Parquet file made Python values at once


@dataclass(frozen=True)
class _Line:
    number: int
    text: str
    broken: str | None = None
    detail: str = ""


@dataclass
class _Lines:
    """The lines of a table. Those of the row at hand are remembered, so that they can be read again."""

    source: Iterator[_Line]
    taken: list[_Line] = field(default_factory=list)
    again: deque[_Line] = field(default_factory=deque)
    size: int = 0  # of what is taken
    over: bool = False  # asked for more lines than there are
    damage: Damaged | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            line = self.again.popleft() if self.again else next(self.source)
        except Damaged as damage:
            self.damage, self.over = damage, True
            raise StopIteration from None
        except StopIteration:
            self.over = True
            raise
        self.taken.append(line)
        self.size += len(line.text)
        if self.size > ROW_LIMIT:
            raise csv.Error(f"a quote is not closed within {ROW_LIMIT >> 20} MiB")
        return line.text

    def next_row(self) -> None:
        self.taken, self.size, self.over = [], 0, False

    def give_back(self, lines: list[_Line]) -> None:
        self.again.extendleft(reversed(lines))


def _decoded(blocks: Blocks, encoding: str) -> Iterator[_Line]:
    for number, line in lines_of(blocks):
        if line is None:
            yield _Line(number, "\n", TOO_LARGE)
        elif detail := why_undecodable(line, encoding):
            yield _Line(number, line.decode(errors="replace") + "\n", "undecodable", detail)
        else:
            yield _Line(number, line.decode() + "\n")


def csv_rows(blocks: Blocks, file: Path, encoding: str, delimiter: str | None = None) -> Iterator[Record]:
    """A dict of texts a row, after the header. A row may span lines inside quotes; its number is that of its first line.

    Without `delimiter`, the first lines decide between comma, semicolon and tab. A row with another number of fields than the
    header is broken, and so is a line whose quotes do not fit: reading goes on with the line after it. FledgeError for a
    header that is none.
    """
    csv.field_size_limit(ROW_LIMIT)
    lines = _Lines(_decoded(blocks, encoding))
    header: list[str] | None = None
    for number, fields in _parsed(lines, delimiter or _delimiter(lines)):
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


def _parsed(lines: _Lines, delimiter: str) -> Iterator[tuple[int, list[str] | Record]]:
    """The fields of each row that is not blank, or why it has none."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.next_row()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if lines.over and lines.damage:
                return
            first, *rest = lines.taken
            yield first.number, Record(first.number, broken=first.broken or "invalid CSV", detail=first.detail or _why(error))
            lines.give_back(rest)
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            continue
        number = lines.taken[0].number
        if flaw := next((line for line in lines.taken if line.broken), None):
            yield number, Record(number, broken=flaw.broken, detail=flaw.detail)
        elif len(fields) > 1 or any(part.strip() for part in fields):
            yield number, fields


def _why(error: csv.Error) -> str:
    said = str(error)
    if said.startswith("new-line"):
        return "a carriage return without a line feed, outside of quotes"
    return "a quote is not closed" if said == "unexpected end of data" else said


def _header(fields: list[str] | Record, file: Path, number: int) -> list[str]:
    where = f"{file}:{number}"
    if isinstance(fields, Record):
        raise FledgeError(f"the header cannot be read: {fields.broken} {fields.detail}", where=where)
    names = [name.strip() or f"column {index}" for index, name in enumerate(fields, 1)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise FledgeError(f"the header has two columns '{twice}'", where=where, hint="the first row names the columns")
    return names


def _delimiter(lines: _Lines) -> str:
    """The one with which most of the first rows are as wide as the header; of several, with which the header is widest."""
    with suppress(csv.Error):
        for _ in islice(lines, SNIFFED):
            if lines.size > SNIFFED_SIZE:
                break
    sample = [line.text for line in lines.taken]
    lines.give_back(lines.taken)

    def fit(delimiter: str) -> tuple[bool, float, int]:
        try:
            widths = [len(row) for row in csv.reader(sample, delimiter=delimiter) if row]
        except csv.Error:
            return False, 0, 0
        return (widths[0] > 1, widths.count(widths[0]) / len(widths), widths[0]) if widths else (False, 0, 0)

    return max(DELIMITERS, key=fit)


def _parquet_errors() -> tuple[type[Exception], ...]:
    """What pyarrow raises for damaged data, and for values that have no equal in Python."""
    from pyarrow import ArrowException

    return ArrowException, OSError, ValueError, ArithmeticError, LookupError, RuntimeError, TypeError, MemoryError


@contextmanager
def parquet_file(file: Path) -> Iterator["ParquetFile"]:
    """The opened table; a compressed file is unpacked to a temporary one first. FledgeError if it cannot be read."""
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise missing_extra("pyarrow", "parquet", f"reading {file}") from None
    with tempfile.TemporaryFile() as unpacked:
        try:
            if file.suffix.lower() in UNPACK:
                unpacked.writelines(blocks_of(file))
                unpacked.seek(0)
            table = parquet.ParquetFile(unpacked if file.suffix.lower() in UNPACK else file, buffer_size=BLOCK)
        except (*_parquet_errors(), Damaged) as error:
            raise FledgeError(f"not a readable Parquet file: {error}", where=str(file)) from None
        with table:
            groups = sum(table.metadata.row_group(group).num_rows for group in range(table.num_row_groups))
            if groups != table.metadata.num_rows:
                raise FledgeError("not a readable Parquet file: its numbers of rows contradict each other", where=str(file))
            yield table


def parquet_rows(file: Path, start: int, stop: int | None, first: int) -> Iterator[Record]:
    """The rows of the row groups from `start` to `stop`, as dicts of Python values; nested columns are lists and dicts.

    A row with a value that Python cannot hold is broken. Where a row group is damaged, the rest of its rows are.
    """
    with parquet_file(file) as table:
        for group in range(start, table.num_row_groups if stop is None else stop):
            end, detail = first + table.metadata.row_group(group).num_rows, "it ends early"
            try:
                for batch in table.iter_batches(batch_size=BATCH, row_groups=[group], use_threads=False):
                    yield from _batch_rows(batch, first)
                    first += batch.num_rows
            except _parquet_errors() as error:
                detail = str(error)
            for number in range(first, end):
                yield Record(number, broken="damaged file", detail=f"row group {group}: {detail}")
            first = end


def _batch_rows(batch: "RecordBatch", first: int) -> Iterator[Record]:
    """The rows of a batch; one by one where Python cannot hold a value of one."""
    try:
        for number, row in enumerate(batch.to_pylist(), first):
            yield Record(number, row)
    except _parquet_errors() as error:
        if batch.num_rows == 1:
            reason = "undecodable" if isinstance(error, UnicodeDecodeError) else "unreadable value"
            yield Record(first, broken=reason, detail=str(error))
            return
        for index in range(batch.num_rows):
            yield from _batch_rows(batch.slice(index, 1), first + index)
