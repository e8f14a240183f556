"""Finding one row by its place, FILE:LINE or FILE#INDEX, in the builds of stages."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from fledge.data.build.directory import BuildDirectory
from fledge.data.build.phase_output import read_result
from fledge.data.build.plan import PlannedSource, Shard
from fledge.data.build.shard_items import ShardItems
from fledge.data.reading.records import row_location
from fledge.data.row_events import read_row_events
from fledge.errors import FledgeError
from fledge.inspect.target import OpenBuild

_PLACE = re.compile(r"(?P<file>.+?)(?:(?P<sign>[:#])(?P<number>[0-9]+))?", re.DOTALL)


@dataclass(frozen=True)
class Place:
    """A file (its name, or the end of its path) and the number of a row in it; 0 alone is a file that is one row."""

    file: str
    number: int
    sign: str | None = None  # ":" or "#", as it was written

    def is_in(self, file: str) -> bool:
        """Whether this may be a place in a file."""
        wanted, there = PurePath(self.file).parts, PurePath(file).parts
        return file == self.file or there[-len(wanted) :] == wanted or Path(file).absolute() == Path(self.file).absolute()


@dataclass(frozen=True, kw_only=True)
class FoundRow:
    """A row of a build: its shard, the number of the row and of its file in the shard; `item` is its number among the
    rows that were recognised, None where it was not."""

    source: PlannedSource
    shard: Shard
    row: int
    file: int
    number: int
    where: str
    item: int | None


def parse_place(text: str) -> Place:
    """`file:line` or `file#index`."""
    found = _PLACE.fullmatch(text)
    if found is None:
        raise FledgeError(f"'{text}' is no place of a row", where="--row", hint="say FILE:LINE, or FILE#INDEX")
    return Place(found["file"], int(found["number"] or 0), found["sign"])


def find_rows(opened: OpenBuild, wanted: Place) -> Iterator[FoundRow]:
    """The rows of a stage at a place: none, one, or one for each source that reads the file."""
    for shard in opened.plan.shards:
        files = read_result(opened.build.rows(shard))["files"]
        for index, file in enumerate(files):
            if wanted.is_in(file) and _written_right(wanted, file):
                found = _in_shard(opened, shard, index, row_location(file, wanted.number), wanted.number)
                if found is not None:
                    yield found
                    break


def _written_right(wanted: Place, file: str) -> bool:
    """FledgeError for the line of a file of indices, an index of a file of lines, or no number at all."""
    right = row_location(file, wanted.number)
    sign = right[len(file) :][:1] or None
    if wanted.sign != sign:
        form = "FILE:LINE, counted from 1" if row_location(file, 1)[len(file)] == ":" else "FILE#INDEX, counted from 0"
        raise FledgeError(f"rows of '{file}' are named {form}", where="--row")
    return True


def _in_shard(opened: OpenBuild, shard: Shard, file: int, where: str, number: int) -> FoundRow | None:
    items = ShardItems.of(opened.build, shard)
    indices = np.flatnonzero((items.arrays["file"] == file) & (items.arrays["number"] == number)).tolist()
    if indices:
        row, item = items.row(indices[0]), indices[0]
    else:
        read_events = read_row_events(opened.build.event_files(shard)[0])
        dropped = (event["row"] for event in read_events if event["state"] == "dropped" and event["where"] == where)
        row, item = next(dropped, None), None
    if row is None:
        return None
    return FoundRow(source=opened.plan.source_of(shard), shard=shard, row=row, file=file, number=number, where=where, item=item)


def events_of(build: BuildDirectory, shard: Shard) -> list[dict[str, Any]]:
    """All events about the rows of a shard, in the order of the rows and, for each, of the phases."""
    events = [event for file in build.event_files(shard) for event in read_row_events(file)]
    return sorted(events, key=lambda event: event["row"])
