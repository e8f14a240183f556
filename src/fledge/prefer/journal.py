"""Files of JSON lines that only grow: a header, then a line for each thing that was done. A kill at any moment loses at most
the line that was being written; the next process drops it, says so, and does it again."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import orjson

from fledge.errors import FledgeError
from fledge.run import Log, exclusive_lock
from fledge.run.input_files import check_input_file

FORMAT, VERSION = "fledge", "version"  # keys of a header: the kind of file, and the version of its layout
NOT_COMPARED = "about"  # a key of a header whose values may differ when a file goes on
CURRENT = 1
COMMANDS = {
    "answers": "prefer sample",
    "ratings": "prefer rank",
    "quality": "rate ask",
}  # kind of file -> the command that writes it
BEGINNING, HEAD_BYTES = b'{"fledge":', 1 << 20
SHOWN = 40  # characters of a value in a message
Line = dict[str, Any]


@dataclass
class Journal:
    """The content of a file: header, lines, and the byte behind the header and behind each line. `torn`: bytes at its end that
    were cut in the middle of a line."""

    path: Path
    header: Line
    lines: list[Line]
    ends: list[int]
    torn: int = 0

    def location(self, number: int) -> str:
        """The place of the line with a number from 0, as FILE:LINE."""
        return f"{self.path}:{number + 2}"


def read_journal(path: Path, kind: str) -> Journal:
    """The file of a kind. A last line that was cut by a kill is left out. Raises FledgeError for a file that is missing,
    damaged, of another kind or of another version, with the line."""
    check_input_file(path)
    content = path.read_bytes()
    *pieces, rest = content.split(b"\n")
    values, ends, place = list[Line](), list[int](), 0
    for number, piece in enumerate(pieces, 1):
        place += len(piece) + 1
        values.append(_parsed(piece, f"{path}:{number}"))
        ends.append(place)
    if not values:
        raise FledgeError(f"a file of {kind} is needed here, and this has no header", where=str(path), hint=_way(kind))
    _check_header(values[0], path, kind)
    return Journal(path, values[0], values[1:], ends, len(rest))


def _parsed(piece: bytes, where: str) -> Line:
    try:
        value = orjson.loads(piece)
    except orjson.JSONDecodeError as error:
        raise FledgeError(f"damaged: {error}", where=where, hint="put back a copy, or write a new file") from None
    if not isinstance(value, dict):
        raise FledgeError("damaged: not a JSON object", where=where, hint="put back a copy, or write a new file")
    return value


def _check_header(header: Line, path: Path, kind: str) -> None:
    if header.get(FORMAT) != kind:
        found = f"a file of {header[FORMAT]}" if isinstance(header.get(FORMAT), str) else "no such file"
        raise FledgeError(f"a file of {kind} is needed here, and this is {found}", where=str(path), hint=_way(kind))
    if header.get(VERSION) != CURRENT:
        raise FledgeError(
            f"its layout has version {header.get(VERSION)}, and this fledge reads version {CURRENT}",
            where=str(path),
            hint="use the fledge that wrote it, or make it again",
        )


def _way(kind: str) -> str:
    return f"`fledge {COMMANDS[kind]}` writes files of {kind}"


@dataclass
class JournalWriter:
    """A file that is being written. `lines` are those that it has; `append` adds some and returns when the disk has them."""

    journal: Journal
    _file: Any = field(repr=False)

    @property
    def lines(self) -> list[Line]:
        """All lines of the file."""
        return self.journal.lines

    def append(self, lines: Sequence[Line]) -> None:
        """Add lines at once. Raises FledgeError if the disk refuses them; the next writer drops what it took of them."""
        self._write([orjson.dumps(line) + b"\n" for line in lines])
        self.lines.extend(lines)

    def _write(self, written: Sequence[bytes]) -> None:
        rest = b"".join(written)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise FledgeError(
                f"cannot write: {error.strerror}",
                where=str(self.journal.path),
                hint="free some space, and run it again",
            ) from None
        for text in written:
            self.journal.ends.append(self._end + len(text))

    @property
    def _end(self) -> int:
        return self.journal.ends[-1] if self.journal.ends else 0

    def keep_chunks(self, size: int, total: int) -> int:
        """Drop the lines behind the last whole chunk of `size` lines, unless all `total` lines are there; returns how many
        stay. What is computed together is then computed together again, and gives equal bytes."""
        count = len(self.lines)
        self.keep(count if count == total else count // size * size)
        return len(self.lines)

    def keep(self, count: int) -> None:
        """Drop all lines behind the first `count`."""
        del self.lines[count:], self.journal.ends[count + 1 :]
        self._file.seek(self._end)
        self._file.truncate()

    @classmethod
    @contextmanager
    def open(cls, path: Path, kind: str, header: Mapping[str, Any], log: Log) -> Iterator[Self]:
        """Begin a file of a kind, or go on with one that has the same header. Only one process writes it at a time.

        Raises FledgeError if it is another file, names the settings that differ, or if it cannot be written."""
        full = {FORMAT: kind, VERSION: CURRENT, **header}
        with exclusive_lock(path):
            journal = _existing(path, kind)
            if journal is not None and (different := _differences(journal.header, full)):
                raise FledgeError(
                    f"it was made with another {', '.join(different)}", where=str(path),
                    hint="name another file with --out, or remove this one",
                )  # fmt: skip
            try:
                file = path.open("wb" if journal is None else "r+b", buffering=0)  # what is refused stays in no buffer
            except OSError as error:
                raise FledgeError(f"cannot write: {error.strerror}", where=str(path)) from None
            with file:
                if journal is None:
                    writer = cls(Journal(path, full, [], []), file)
                    writer._write([orjson.dumps(full) + b"\n"])
                else:
                    if journal.torn:
                        log(f"{path}: its last line was cut in the middle; it is dropped and done again")
                    writer = cls(journal, file)
                    writer.keep(len(journal.lines))
                yield writer


def _existing(path: Path, kind: str) -> Journal | None:
    """The file; None if it is not there, or if a kill has left only the beginning of its header."""
    if not path.exists():
        return None
    check_input_file(path)
    with path.open("rb") as file:
        head = file.readline(HEAD_BYTES)
    if not head.endswith(b"\n") and (head.startswith(BEGINNING) or BEGINNING.startswith(head)):
        return None
    return read_journal(path, kind)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], before: str = "") -> list[str]:
    """Words for the keys whose values differ, with old and new value where these are short."""
    found: list[str] = []
    for key in sorted({*old, *new} - {NOT_COMPARED}):
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            found += _differences(was, now, f"{before}{key} ")
        elif was != now:
            shown = [orjson.dumps(value).decode() for value in (was, now)]
            values = f" ({shown[0]} instead of {shown[1]})" if max(map(len, shown)) <= SHOWN else ""
            found.append(f"{before}{key}{values}")
    return found
