"""Reading files: which files a source names, parts of them that can be read on their own, and every row with its number."""

import glob
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fledge.data.reading.arrays import json_array, shape_of
from fledge.data.reading.blocks import BLOCK, UNPACK, Damaged
from fledge.data.reading.encodings import checked, encoding_of, utf8_blocks
from fledge.data.reading.formats import Record, json_lines, text_lines, text_paragraphs, text_whole
from fledge.data.reading.tables import csv_rows, parquet_file, parquet_rows
from fledge.errors import FledgeError
from fledge.recipe.schema import Source

__all__ = ["FileRange", "Record", "file_notices", "files_of", "ignored_files", "read", "row_location", "spans_of"]

FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet")
BY_LINE = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt")
DIVISIBLE = ("utf-8", "ascii", "gb18030", "gbk", "gb2312", "big5", "cp950", "cp1252", "iso8859-1")  # a byte 10 ends a line
SHAPES = {"lines": ["one object a line: read like .jsonl"], "object": ["rows taken from the list inside an object"]}


@dataclass(frozen=True)
class FileRange:
    """A part of a file that can be read on its own.

    `start` and `stop` are bytes, or row groups of a .parquet file; None is the end. `first` is the number of the first row.
    """

    file: str
    start: int
    stop: int | None
    first: int


def format_of(file: Path) -> str | None:
    """The ending that says how a file is read, in lower case and without that of a compression; None if it is none of ours."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in UNPACK:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


def row_location(file: str, number: int) -> str:
    """Where a row stands: a.jsonl:12 for the line of a file, counted from 1; a.json#3 for an index, counted from 0.

    The number 0 of a file of lines is the whole file.
    """
    if format_of(Path(file)) in BY_LINE:
        return f"{file}:{number}" if number else file
    return f"{file}#{number}"


def files_of(source: Source, key: str) -> list[Path]:
    """The files that `source.path` names: itself, the readable files of a folder, or what a glob matches, sorted.

    FledgeError names the recipe key where there are none, one is of no known format, or the source's encoding is unknown.
    """
    if source.encoding.lower() != "auto":
        checked(source.encoding, f"{key}.encoding")
    try:
        path = Path(source.path or "").expanduser()
        if path.is_dir():
            found = [item for item in path.iterdir() if _is_read(item)]
        elif path.exists():
            found = [path]
        else:
            found = [file for name in glob.glob(str(path), recursive=True) if (file := Path(name)).is_file()]
    except (OSError, ValueError, RuntimeError) as error:  # no rights, a null character, an unknown home directory
        raise FledgeError(f"cannot look for '{source.path}': {error}", where=key) from None
    if not found:
        raise FledgeError(f"there is no file '{source.path}'", where=key, hint=f"looked in {Path.cwd()}")
    for file in found:
        _check(file, key)
    return sorted(found)


def _is_read(item: Path) -> bool:
    """Whether a file in a folder is one of rows; hidden ones, such as macOS writes beside each file, are not."""
    return format_of(item) is not None and item.is_file() and not item.name.startswith(".")


def _check(file: Path, key: str) -> None:
    try:
        str(file).encode()
    except UnicodeEncodeError:
        raise FledgeError(f"the name {str(file)!a} is not UTF-8", where=key, hint="rename the file") from None
    if format_of(file) is None:
        endings = f"{', '.join(FORMATS)}, also with {' or '.join(UNPACK)} behind it"
        raise FledgeError(f"cannot read '{file}': its ending is not one of {endings}", where=key, hint="convert or rename it")
    if not file.is_file():
        raise FledgeError(f"'{file}' is not a regular file", where=key)


def ignored_files(source: Source) -> list[Path]:
    """What lies in a folder source and is not read: sub-folders, hidden files, and those whose ending says no rows."""
    try:
        path = Path(source.path or "").expanduser()
        return sorted(item for item in path.iterdir() if not _is_read(item)) if path.is_dir() else []
    except (OSError, ValueError, RuntimeError):
        return []  # files_of says why


def file_notices(file: Path, source: Source) -> list[str]:
    """What the user should be told about how a file is read: an encoding that was recognised, a .json that is no array."""
    ending = format_of(file)
    if ending == ".parquet":
        return []
    encoding = encoding_of(file, source)
    said = [f"read as {encoding}"] if encoding != "utf-8" and source.encoding.lower() == "auto" else []
    shape = shape_of(file, encoding) if ending == ".json" else "array"
    return said + SHAPES.get(shape, [])


def spans_of(files: Sequence[Path], source: Source, target_bytes: int) -> list[FileRange]:
    """All files in parts of about `target_bytes`, in order; together the parts hold each row once. Empty files have none.

    Divided are plain .jsonl and .txt of one document a line, at line ends, and .parquet between row groups. Only line ends are
    read for that.
    """
    return [span for file in files for span in _spans(file, source, target_bytes)]


def _spans(file: Path, source: Source, target_bytes: int) -> list[FileRange]:
    ending, compressed = format_of(file), file.suffix.lower() in UNPACK
    try:
        size = file.stat().st_size
        if size == 0:
            return []
        if ending == ".parquet" and not compressed:
            return _row_group_spans(file, target_bytes)
        lines = ending in (".jsonl", ".ndjson") or (ending == ".txt" and source.documents == "line")
        if lines and not compressed and size > target_bytes and encoding_of(file, source) in DIVISIBLE:
            return list(_line_spans(file, size, target_bytes))
    except OSError as error:
        raise FledgeError(f"cannot read it: {error.strerror or error}", where=str(file)) from None
    by_index = ending in (".json", ".parquet") or (ending == ".txt" and source.documents == "file")
    return [FileRange(str(file), 0, None, 0 if by_index else 1)]


def _row_group_spans(file: Path, target_bytes: int) -> list[FileRange]:
    spans, start, size, first, row = [], 0, 0, 0, 0
    with parquet_file(file) as table:
        for group in range(table.num_row_groups):
            size += table.metadata.row_group(group).total_byte_size
            row += table.metadata.row_group(group).num_rows
            if size >= target_bytes or group == table.num_row_groups - 1:
                spans.append(FileRange(str(file), start, group + 1, first))
                start, size, first = group + 1, 0, row
    return spans


def _line_spans(file: Path, size: int, target_bytes: int) -> Iterator[FileRange]:
    start, number = 0, 1
    with file.open("rb") as handle:
        while start < size:
            first, left = number, target_bytes
            while left > 0 and (block := handle.read(min(BLOCK, left))):
                number, left = number + block.count(b"\n"), left - len(block)
            while (rest := handle.readline(BLOCK)) and not rest.endswith(b"\n"):
                pass
            number += rest.endswith(b"\n")
            stop = min(handle.tell(), size)
            yield FileRange(str(file), start, stop, first)
            start = stop


def read(span: FileRange, source: Source) -> Iterator[Record]:
    """The rows of a part of a file, in order and in constant memory. Blank rows are skipped, and no others.

    Where compressed data are damaged, the rows before are read and one broken record stands for the rest. FledgeError names the
    file, and the line where there is one, if it cannot be opened or is not what its name says.
    """
    number = span.first
    try:
        for record in _rows(span, source):
            yield record
            number = record.number + 1
    except Damaged as damage:
        yield Record(number, broken="damaged file", detail=f"{damage}; what follows is lost")


def _rows(span: FileRange, source: Source) -> Iterator[Record]:
    file = Path(span.file)
    ending = format_of(file)
    if ending == ".parquet":
        return parquet_rows(file, span.start, span.stop, span.first)
    encoding = encoding_of(file, source)
    blocks = utf8_blocks(file, encoding, span.start, span.stop)
    if ending == ".json" and (shape := shape_of(file, encoding)) != "lines":
        return json_array(blocks, file, shape, encoding)
    if ending in (".csv", ".tsv"):
        return csv_rows(blocks, file, encoding, "\t" if ending == ".tsv" else None)
    if ending == ".txt":
        return DOCUMENTS[source.documents](blocks, span.first, encoding)
    return json_lines(blocks, span.first, encoding)


DOCUMENTS: dict[str, Callable[..., Iterator[Record]]] = {
    "line": text_lines,
    "paragraph": text_paragraphs,
    "file": text_whole,
}
