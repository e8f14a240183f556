"""Rows of .parquet and .arrow tables as dicts of Python values, in bounded memory.

A few hundred bytes of Parquet can stand for gigabytes: values are compressed, and one value of a dictionary may stand in every
row. So the sizes that the file states are looked at before a row group is read, and the size of a row before it becomes Python
values.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fledge.data.reading.blocks import BLOCK, DECOMPRESSORS, DamagedFile, blocks_of
from fledge.data.reading.formats import ROW_LIMIT, TOO_LARGE, ColumnarRow, Record
from fledge.errors import FledgeError, first_line, missing_extra

if TYPE_CHECKING:
    from pyarrow import RecordBatch
    from pyarrow.parquet import ParquetFile, RowGroupMetaData

BATCH_ROWS = 256  # rows converted to Python values at a time
BATCH_BYTES = 1 << 29  # of a batch, where each row may hold each value of the row group
FEW_ROWS = 10_000  # a row group with so few rows is read in batches that cannot exceed BATCH_BYTES, whatever it holds
USUAL_EXPANSION = 100  # bytes of values for one byte of the file; beyond it, batches cannot exceed BATCH_BYTES
MAX_EXPANSION = 500  # beyond it, a row group of more than MAX_GROUP bytes is not read
MAX_GROUP = 4 * ROW_LIMIT
EXPANDS = "row group that expands too much"
ARROW_FILE = b"ARROW1"


def _arrow_errors() -> tuple[type[Exception], ...]:
    """What pyarrow raises for damaged data and for values without an equivalent in Python."""
    from pyarrow import ArrowException

    return ArrowException, OSError, ValueError, ArithmeticError, LookupError, RuntimeError, TypeError, MemoryError


@contextmanager
def parquet_file(file: Path) -> Iterator["ParquetFile"]:
    """The opened table; a compressed file is first decompressed to a temporary file. Raises FledgeError if it cannot be
    read."""
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise missing_extra("pyarrow", "parquet", f"reading {file}") from None
    with tempfile.TemporaryFile() as decompressed:
        try:
            if file.suffix.lower() in DECOMPRESSORS:
                decompressed.writelines(blocks_of(file))
                decompressed.seek(0)
            table = parquet.ParquetFile(decompressed if file.suffix.lower() in DECOMPRESSORS else file, buffer_size=BLOCK)
        except PermissionError as error:
            raise FledgeError(f"cannot read it: {error.strerror}", where=str(file)) from None
        except (*_arrow_errors(), DamagedFile) as error:
            raise FledgeError(f"not a readable Parquet file: {error}", where=str(file)) from None
        with table:
            groups = sum(table.metadata.row_group(group).num_rows for group in range(table.num_row_groups))
            if groups != table.metadata.num_rows:
                raise FledgeError("not a readable Parquet file: its numbers of rows contradict each other", where=str(file))
            yield table


def parquet_rows(file: Path, start: int, stop: int | None, first: int) -> Iterator[Record]:
    """Rows of the row groups from `start` to `stop` as dicts of Python values; nested columns are lists and dicts.

    A row that is larger than ROW_LIMIT, or has a value that Python cannot represent, is broken. If a row group is damaged, or
    stands for far more data than the file holds, its remaining rows are broken.
    """
    with parquet_file(file) as table:
        for group in range(start, table.num_row_groups if stop is None else stop):
            metadata = table.metadata.row_group(group)
            end, reason, detail = first + metadata.num_rows, "damaged file", "it ends early"
            try:
                if expansion := _expansion(metadata):
                    reason, detail = EXPANDS, expansion
                else:
                    for batch in table.iter_batches(_batch_rows(metadata), row_groups=[group], use_threads=False):
                        yield from _records(batch, first)
                        first += batch.num_rows
            except _arrow_errors() as error:
                detail = str(error)
            for number in range(first, end):
                yield Record(number, broken=reason, detail=f"row group {group}: {detail}")
            first = end


def _sizes(group: "RowGroupMetaData") -> list[tuple[int, int, int]]:
    """(bytes of the values, bytes in the file, number of values) of each column of a row group."""
    columns = [group.column(index) for index in range(group.num_columns)]
    return [(column.total_uncompressed_size, column.total_compressed_size, column.num_values) for column in columns]


def _expansion(group: "RowGroupMetaData") -> str:
    """How much more a row group stands for than the file holds, if that is too much to be data; else an empty text."""
    for values, stored, count in _sizes(group):
        in_rows = values * count if count > group.num_rows else values  # lists may hold the largest value many times
        if values > MAX_EXPANSION * stored and values > BLOCK and in_rows > MAX_GROUP:
            return f"{stored:,} bytes of a column stand for {max(values, in_rows) >> 20:,} MiB"
    return ""


def _batch_rows(group: "RowGroupMetaData") -> int:
    """The number of rows to convert at a time."""
    sizes = _sizes(group)
    values, stored = sum(size for size, _, _ in sizes), sum(size for _, size, _ in sizes)
    if values > USUAL_EXPANSION * stored or group.num_rows <= FEW_ROWS:
        return max(1, min(BATCH_ROWS, BATCH_BYTES // max(values, 1)))
    return BATCH_ROWS


def _python_bytes(batch: "RecordBatch") -> int:
    """The most bytes that the values of a batch can have; each row may hold all values of a dictionary."""
    has_dictionary = any("dictionary<" in str(column.type) for column in batch.schema)
    return batch.nbytes * batch.num_rows if has_dictionary else batch.nbytes


def _records(batch: "RecordBatch", first: int) -> Iterator[Record]:
    """The rows of a batch; converted one by one if one is too large, or if Python cannot represent a value."""
    large = _python_bytes(batch) > ROW_LIMIT
    if large and batch.num_rows == 1:
        yield Record(first, broken=TOO_LARGE, detail=f"{batch.nbytes >> 20:,} MiB")
        return
    try:
        if not large:
            for number, row in enumerate(batch.to_pylist(), first):
                yield Record(number, ColumnarRow(row))
            return
    except _arrow_errors() as error:
        if batch.num_rows == 1:
            reason = "undecodable" if isinstance(error, UnicodeDecodeError) else "unreadable value"
            yield Record(first, broken=reason, detail=str(error))
            return
    for index in range(batch.num_rows):
        yield from _records(batch.slice(index, 1), first + index)


def arrow_rows(file: Path) -> Iterator[Record]:
    """Rows of an Arrow stream or file, such as the library `datasets` writes, as dicts of Python values.

    If a batch is damaged, one broken record stands for the rest. Raises FledgeError if the file cannot be read at all."""
    try:
        import pyarrow
        from pyarrow import ipc
    except ImportError:
        raise missing_extra("pyarrow", "parquet", f"reading {file}") from None
    number = 0
    try:
        with pyarrow.memory_map(str(file)) as source:
            if file.stat().st_size and source.read(len(ARROW_FILE)) == ARROW_FILE:
                opened = ipc.open_file(source)
                batches = (opened.get_batch(index) for index in range(opened.num_record_batches))
            else:
                source.seek(0)
                batches = iter(ipc.open_stream(source))
            for batch in batches:
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    part = batch.slice(start, BATCH_ROWS)
                    yield from _records(part, number)
                    number += part.num_rows
    except PermissionError as error:
        raise FledgeError(f"cannot read it: {error.strerror}", where=str(file)) from None
    except _arrow_errors() as error:
        if number == 0:
            raise FledgeError(f"not a readable Arrow file: {first_line(error)}", where=str(file)) from None
        yield Record(number, broken="damaged file", detail=f"{first_line(error)}; the rest of the file is lost")
