"""Reading of a source's files: which files, how they are split into ranges, and every row with its number."""

import difflib
import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePath

from fledge.data.reading.arrays import json_array
from fledge.data.reading.blocks import BLOCK, DECOMPRESSORS, DamagedFile
from fledge.data.reading.columnar import arrow_rows, parquet_file, parquet_rows
from fledge.data.reading.encodings import canonical_encoding, encoding_of, utf8_blocks
from fledge.data.reading.formats import Record, json_lines, text_file, text_lines, text_paragraphs
from fledge.data.reading.json_shapes import JSON_LINES, Shape, shape_of
from fledge.data.reading.saved_datasets import DESCRIPTIONS, saved_dataset_files
from fledge.data.reading.tables import csv_rows
from fledge.data.reading.values import json_values
from fledge.errors import FledgeError
from fledge.recipe.mistyped import bare
from fledge.recipe.schema import Source
from fledge.run.file_kinds import kind_of_folder, kind_of_name
from fledge.run.input_files import check_input_file, looks_like_hub_name, lookup_hint

__all__ = [
    "SHARD_BYTES",
    "FileRange",
    "Record",
    "file_notices",
    "files_of",
    "ignored_files",
    "read",
    "records_of",
    "row_location",
    "spans_of",
]

SHARD_BYTES = 16 * 2**20  # of a file that are read at a time
EXTENSIONS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow")
NUMBERED_BY_LINE = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt")
SPLITTABLE_ENCODINGS = (
    "utf-8",
    "ascii",
    "gb18030",
    "gbk",
    "gb2312",
    "big5",
    "cp950",
    "cp1252",
    "iso8859-1",
)  # in these, a byte 10 always ends a line
SHAPE_NOTICES = {  # (extension is that of lines, shape) -> how the file is read, where its name promises something else
    (False, "lines"): "one object per line: read like .jsonl",
    (False, "object"): "rows are read from the list inside an object",
    (False, "values"): "one object after another: each is a row",
    (True, "array"): "a JSON array: each element is a row",
    (True, "values"): "objects over several lines: each is a row",
}
JSON = (".json", *JSON_LINES)
COLUMNAR = (".parquet", ".arrow")


@dataclass(frozen=True)
class FileRange:
    """A part of a file that can be read on its own.

    `start` and `stop`: bytes, or row groups of a .parquet file; None is the end. `first`: the number of the first row.
    """

    file: str
    start: int
    stop: int | None
    first: int


def format_of(file: Path) -> str | None:
    """The extension that determines the format, in lower case and without a compression suffix; None if unknown."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in DECOMPRESSORS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in EXTENSIONS else None


def row_location(file: str, number: int) -> str:
    """The location of a row: a.jsonl:12 for a line (from 1), a.json#3 for an index (from 0).

    The number 0 of a file of lines denotes the whole file.
    """
    if format_of(Path(file)) in NUMBERED_BY_LINE:
        return f"{file}:{number}" if number else file
    return f"{file}#{number}"


def files_of(source: Source, key: str) -> list[Path]:
    """The files of `source.path`: a file, the files of a saved dataset, the readable files of a folder, or the matches of a
    glob, sorted.

    Raises FledgeError with the recipe key if there are none, if one cannot be read, has an unknown format or is a Git LFS
    pointer, or if the source's encoding is unknown.
    """
    if source.encoding.lower() != "auto":
        canonical_encoding(source.encoding, f"{key}.encoding")
    try:
        path = Path(source.path or "").expanduser()
        if path.is_dir():
            _check_folder(path, source, key)
            files = saved_dataset_files(path, key) or sorted(item for item in path.iterdir() if _is_read(item))
        elif path.exists():
            files = [path]
        else:
            files = sorted(file for name in glob.glob(str(path), recursive=True) if (file := Path(name)).is_file())
    except (OSError, ValueError, RuntimeError) as error:  # missing permission, a null character, an unknown home directory
        raise FledgeError(f"cannot search for '{source.path}': {error}", where=key) from None
    if not files:
        raise _no_files(path, source, key)
    for file in files:
        _check_file(file, key)
    return files


def _no_files(path: Path, source: Source, key: str) -> FledgeError:
    """The error for a path that leads to no file of rows, with its cause."""
    if path.is_dir():
        names = ", ".join(sorted(item.name for item in path.iterdir())[:5]) or "nothing"
        hint = f"it holds {names}; subfolders are read by a glob, such as {path}/**/*.jsonl"
        return FledgeError(f"the folder '{source.path}' has no file of rows", where=key, hint=hint)
    try:
        path.lstat()
    except PermissionError as error:
        return FledgeError(f"cannot read '{source.path}': {error.strerror}", where=key)
    except (OSError, ValueError):
        pass
    return FledgeError(f"there is no file '{source.path}'", where=key, hint=_way_to_file(str(source.path), path))


def _way_to_file(text: str, path: Path) -> str:
    """What to do about a path at which nothing is: what was probably meant, where that can be seen."""
    if "://" in text:
        return "data are not downloaded: download the file and name it here, or write {hub: NAME} for a dataset of the hub"
    plain = bare(text)
    for meant in (plain, text.replace("\\", "/"), plain.replace("\\", "/")):
        if Path(meant).exists():
            return f"did you mean '{meant}'?"
    if not glob.has_magic(text) and path.parent.is_dir():
        similar = difflib.get_close_matches(path.name, sorted(item.name for item in path.parent.iterdir()), 1, 0.75)
        if similar:
            return f"did you mean '{path.parent / similar[0]}'?"
    if looks_like_hub_name(path) and format_of(path) is None:
        return f"for a dataset of the Hugging Face hub, write {{hub: {text}}}; for a file, its path: looked in {Path.cwd()}"
    return lookup_hint(path)


def _check_folder(path: Path, source: Source, key: str) -> None:
    """FledgeError for a folder that holds a run, a checkpoint or a model instead of rows."""
    if kind := kind_of_folder(path):
        way = "name a file of rows, or a folder of such files; a model is named in init_from or model.path"
        raise FledgeError(f"'{source.path}' is the folder of {kind}: it holds no rows", where=key, hint=way)


def _is_read(item: Path) -> bool:
    """Whether a file in a folder is one of rows; hidden ones, such as macOS writes beside each file, are not."""
    hidden = item.name.startswith(".") or item.name in DESCRIPTIONS
    return format_of(item) is not None and item.is_file() and not hidden


def _check_file(file: Path, key: str) -> None:
    try:
        str(file).encode()
    except UnicodeEncodeError:
        raise FledgeError(f"the name {str(file)!a} is not UTF-8", where=key, hint="rename the file") from None
    if format_of(file) is None:
        if kind := kind_of_name(file):
            raise FledgeError(f"cannot read '{file}': this is {kind.description}", where=key, hint=kind.way)
        extensions = f"{', '.join(EXTENSIONS)}, optionally followed by {' or '.join(DECOMPRESSORS)}"
        raise FledgeError(
            f"cannot read '{file}': its extension is not one of {extensions}", where=key, hint="convert or rename it"
        )
    check_input_file(file, key)


def ignored_files(source: Source) -> list[Path]:
    """Items of a source's folder that are not read: subfolders, hidden files, and files with an unknown extension."""
    try:
        path = Path(source.path or "").expanduser()
        return sorted(item for item in path.iterdir() if not _is_read(item)) if path.is_dir() else []
    except (OSError, ValueError, RuntimeError):
        return []  # files_of reports it


def file_notices(file: Path, source: Source) -> list[str]:
    """Notices for the user about how a file is read: a detected encoding, a .json file that is not an array."""
    extension = format_of(file)
    if extension in COLUMNAR:
        return []
    encoding = encoding_of(file, source)
    notices = [f"read as {encoding}"] if encoding != "utf-8" and source.encoding.lower() == "auto" else []
    if extension in JSON:
        notice = SHAPE_NOTICES.get((extension in JSON_LINES, _shape(file, encoding, source)))
        notices += [notice] if notice else []
    return notices


def _shape(file: Path, encoding: str, source: Source) -> Shape:
    return shape_of(file, encoding, format_of(file) or "", source.turns.get("role"))


def spans_of(files: Sequence[Path], source: Source, target_bytes: int) -> list[FileRange]:
    """All files in ranges of about `target_bytes`, in order; together they cover each row once. Empty files have none.

    Only line ends are read for this. Plain .jsonl files and .txt files with one document per line are split at line ends,
    and .parquet files between row groups; other files are one range."""
    return [span for file in files for span in _spans(file, source, target_bytes)]


def _spans(file: Path, source: Source, target_bytes: int) -> list[FileRange]:
    extension, compressed = format_of(file), file.suffix.lower() in DECOMPRESSORS
    try:
        size = file.stat().st_size
        if size == 0:
            return []
        if extension == ".parquet" and not compressed:
            return _row_group_spans(file, target_bytes)
        if not compressed and size > target_bytes and _has_lines(file, extension, source):
            return list(_line_spans(file, size, target_bytes))
    except OSError as error:
        raise FledgeError(f"cannot read it: {error.strerror or error}", where=str(file)) from None
    by_index = extension in (".json", *COLUMNAR) or (extension == ".txt" and source.documents == "file")
    return [FileRange(str(file), 0, None, 0 if by_index else 1)]


def _has_lines(file: Path, extension: str | None, source: Source) -> bool:
    """Whether a file can be split at its line ends."""
    if extension == ".txt" and source.documents != "line":
        return False
    encoding = encoding_of(file, source)
    if extension not in (*JSON_LINES, ".txt") or encoding not in SPLITTABLE_ENCODINGS:
        return False
    return extension == ".txt" or _shape(file, encoding, source) == "lines"


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
            first, remaining = number, target_bytes
            while remaining > 0 and (block := handle.read(min(BLOCK, remaining))):
                number, remaining = number + block.count(b"\n"), remaining - len(block)
            while (line_rest := handle.readline(BLOCK)) and not line_rest.endswith(b"\n"):
                pass
            number += line_rest.endswith(b"\n")
            stop = min(handle.tell(), size)
            yield FileRange(str(file), start, stop, first)
            start = stop


def records_of(files: Sequence[Path], source: Source) -> Iterator[tuple[str, Record]]:
    """The rows of files in order, each with its file. Errors as `read` raises them."""
    for span in spans_of(files, source, SHARD_BYTES):
        for record in read(span, source):
            yield span.file, record


def read(span: FileRange, source: Source) -> Iterator[Record]:
    """The rows of a range in order, in constant memory. Only blank rows are skipped.

    If compressed data are damaged, the rows before the damage are read, and one broken record stands for the rest. Raises
    FledgeError with the file (and line) if it cannot be opened or does not have the format of its extension.
    """
    number = span.first
    try:
        for record in _rows(span, source):
            yield record
            number = record.number + 1
    except DamagedFile as damage:
        yield Record(number, broken="damaged file", detail=f"{damage}; the rest of the file is lost")


def _rows(span: FileRange, source: Source) -> Iterator[Record]:
    file = Path(span.file)
    extension = format_of(file)
    if extension == ".parquet":
        return parquet_rows(file, span.start, span.stop, span.first)
    if extension == ".arrow":
        return arrow_rows(file)
    encoding = encoding_of(file, source)
    blocks = utf8_blocks(file, encoding, span.start, span.stop)
    if extension in JSON and span.start == 0 and span.stop is None:
        shape, by_line = _shape(file, encoding, source), extension in JSON_LINES
        if shape == "values":
            return json_values(blocks, file, encoding, by_line)
        if shape != "lines":
            return json_array(blocks, file, shape, encoding, by_line)
    if extension in (".csv", ".tsv"):
        return csv_rows(blocks, file, encoding, "\t" if extension == ".tsv" else None)
    if extension == ".txt":
        return DOCUMENTS[source.documents](blocks, span.first, encoding)
    return json_lines(blocks, span.first, encoding)


DOCUMENTS: dict[str, Callable[..., Iterator[Record]]] = {
    "line": text_lines,
    "paragraph": text_paragraphs,
    "file": text_file,
}


def is_among(out: Path, path: str) -> bool:
    """Whether a file is, or would be once it is there, among those that a path of rows names: a file, a folder or a glob."""
    wanted, named = Path(path).expanduser(), os.path.realpath(out)
    if wanted.is_dir():
        folders = (os.path.dirname(named), os.path.realpath(out.parent))  # they differ for a link
        return os.path.realpath(wanted) in folders and format_of(out) is not None
    if not glob.has_magic(str(wanted)) or wanted.exists():
        return named == os.path.realpath(wanted)
    pattern = os.path.abspath(wanted)
    if "**" in pattern:
        return any(fnmatch(os.path.abspath(out), one) for one in (pattern, pattern.replace("**/", "")))
    return PurePath(os.path.abspath(out)).match(pattern)
