"""Reading files: every row of a source with its place, and every row that cannot be read with the reason."""

import glob
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from fledge.errors import FledgeError
from fledge.recipe.schema import Source


@dataclass(frozen=True)
class Record:
    """One row: its value, or the reason why it has none. `where` is file:line, or file#index inside an array."""

    where: str
    value: Any = None
    broken: str | None = None
    detail: str = ""


def files_of(source: Source, key: str) -> list[Path]:
    """The files a source names: itself, the readable files of a folder, or what a glob matches, sorted."""
    path = Path(source.path).expanduser()
    if path.is_dir():
        found = sorted(item for item in path.iterdir() if item.suffix in READERS)
    elif path.exists():
        found = [path]
    else:
        found = sorted(Path(item) for item in glob.glob(str(path), recursive=True) if Path(item).is_file())
    if not found:
        raise FledgeError(f"there is no file '{source.path}'", where=key, hint=f"looked in {Path.cwd()}")
    for file in found:
        if file.suffix not in READERS:
            raise FledgeError(
                f"cannot read '{file}': its ending is not one of {', '.join(READERS)}", where=key, hint="convert or rename it"
            )
    return found


def passed_over(source: Source) -> list[Path]:
    """What lies in a folder source and is not read: sub-folders, and files whose ending says that they hold no rows."""
    path = Path(source.path).expanduser()
    return sorted(item for item in path.iterdir() if item.suffix not in READERS) if path.is_dir() else []


def read(source: Source, key: str) -> Iterator[Record]:
    """All rows of a source, in order. `key` is the recipe key that errors name."""
    count = 0
    for file in files_of(source, key):
        try:
            for record in READERS[file.suffix](file, source):
                yield record
                count += 1
                if source.max_rows is not None and count >= source.max_rows:
                    return
        except OSError as error:
            raise FledgeError(f"cannot read '{file}': {error.strerror or error}", where=key) from None
    if count == 0:
        raise FledgeError(f"'{source.path}' holds no rows: the file is empty", where=key)


def _jsonl(file: Path, source: Source) -> Iterator[Record]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{file}:{number}"
            try:
                yield Record(where, orjson.loads(line))
            except orjson.JSONDecodeError as error:
                yield Record(where, broken=_why_broken(line), detail=str(error)[:120])


def _why_broken(line: bytes) -> str:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return "not UTF-8"
    return "invalid JSON"


def _json(file: Path, source: Source) -> Iterator[Record]:
    content = file.read_bytes()
    if not content.strip():
        return
    try:
        rows = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        hint = "one object a line? then name the file .jsonl" if content.lstrip()[:1] == b"{" else None
        raise FledgeError(f"not valid JSON: {error}", where=f"{file}:{error.lineno}", hint=hint) from None
    if not isinstance(rows, list):
        raise FledgeError("expected a JSON array of rows", where=str(file), hint="one object a line belongs into .jsonl")
    for index, row in enumerate(rows):
        yield Record(f"{file}#{index}", row)


def _txt(file: Path, source: Source) -> Iterator[Record]:
    def text(raw: bytes, where: str) -> Record:
        try:
            return Record(where, {"text": raw.decode("utf-8").strip("\r\n")})
        except UnicodeDecodeError as error:
            return Record(where, broken="not UTF-8", detail=f"byte {error.start}: {error.reason}")

    if source.documents == "file":
        raw = file.read_bytes()
        if raw.strip():
            yield text(raw, str(file))
        return
    with file.open("rb") as lines:
        paragraph, first = b"", 1
        for number, line in enumerate(lines, 1):
            if source.documents == "line":
                if line.strip():
                    yield text(line, f"{file}:{number}")
            elif line.strip():
                first = first if paragraph else number
                paragraph += line
            elif paragraph:
                yield text(paragraph, f"{file}:{first}")
                paragraph = b""
        if paragraph:
            yield text(paragraph, f"{file}:{first}")


def _parquet(file: Path, source: Source) -> Iterator[Record]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        from fledge.errors import missing_extra

        raise missing_extra("pyarrow", "parquet", f"reading {file}") from None
    if file.stat().st_size == 0:
        return
    try:
        table = parquet.ParquetFile(file)
        index = 0
        for batch in table.iter_batches(batch_size=4096):
            for row in batch.to_pylist():
                yield Record(f"{file}#{index}", row)
                index += 1
    except pyarrow.ArrowException as error:
        raise FledgeError(f"not a readable Parquet file: {error}", where=str(file)) from None


READERS: dict[str, Callable[[Path, Source], Iterator[Record]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".txt": _txt,
    ".parquet": _parquet,
}
