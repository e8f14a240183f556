"""Finding one row by its location, FILE:LINE or FILE#INDEX, in the builds of stages."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from fledge.data.build.directory import BuildDirectory
from fledge.data.build.phase_output import read_rows_result
from fledge.data.build.plan import PlannedSource, Shard
from fledge.data.build.shard_items import ShardItems
from fledge.data.reading.records import row_location
from fledge.data.row_events import read_row_events
from fledge.errors import FledgeError
from fledge.inspect.builds import OpenBuild

_LOCATION = re.compile(r"(?P<file>.+?)(?:(?P<sign>[:#])(?P<number>[0-9]+))?", re.DOTALL)


@dataclass(frozen=True)
class RowLocation:
    """A file (its name, or the end of its path) and the number of a row in the file; 0 alone for a file that is one row."""

    file: str
    number: int
    sign: str | None = None  # ":" or "#", as it was written

    def matches_file(self, file: str) -> bool:
        """Whether the location may lie in this file."""
        own_components, components = PurePath(self.file).parts, PurePath(file).parts
        ends_alike = components[-len(own_components) :] == own_components
        return file == self.file or ends_alike or Path(file).absolute() == Path(self.file).absolute()


@dataclass(frozen=True, kw_only=True)
class LocatedRow:
    """A row of a build.

    `row` is its number in the shard, `file` the number of its file in the shard, `number` its number in the file.
    `item` is its number among the rows with a known format, None when its format is not known.
    """

    source: PlannedSource
    shard: Shard
    row: int
    file: int
    number: int
    location: str
    item: int | None


def parse_row_location(text: str) -> RowLocation:
    """Parse `FILE:LINE` or `FILE#INDEX`. Raises FledgeError for other texts."""
    match = _LOCATION.fullmatch(text)
    if match is None:
        raise FledgeError(f"'{text}' is not the location of a row", where="--row", hint="write FILE:LINE or FILE#INDEX")
    return RowLocation(match["file"], int(match["number"] or 0), match["sign"])


def find_rows(build: OpenBuild, location: RowLocation) -> Iterator[LocatedRow]:
    """The rows of a stage at a location: none, one, or one for each source that reads the file."""
    for shard in build.plan.shards:
        files = read_rows_result(build.directory.rows(shard))["files"]
        for index, file in enumerate(files):
            if location.matches_file(file):
                _check_sign(location, file)
                row = _in_shard(build, shard, index, row_location(file, location.number), location.number)
                if row is not None:
                    yield row
                    break


def _check_sign(location: RowLocation, file: str) -> None:
    """Raises FledgeError when the location has a line of a file of indices, an index of a file of lines, or no number."""
    expected = row_location(file, location.number)[len(file) :][:1] or None
    if location.sign != expected:
        form = "FILE:LINE, counted from 1" if row_location(file, 1)[len(file)] == ":" else "FILE#INDEX, counted from 0"
        raise FledgeError(f"rows of '{file}' are named {form}", where="--row")


def _in_shard(build: OpenBuild, shard: Shard, file: int, location: str, number: int) -> LocatedRow | None:
    source, items = build.plan.source_of(shard), ShardItems.of(build.directory, shard)
    indices = np.flatnonzero((items.arrays["file"] == file) & (items.arrays["number"] == number)).tolist()
    if indices:
        row, item = items.row(indices[0]), indices[0]
        return LocatedRow(source=source, shard=shard, row=row, file=file, number=number, location=location, item=item)
    for event in read_row_events(build.directory.event_files(shard)[0]):
        if event["state"] == "dropped" and event["where"] == location:
            row = event["row"]
            return LocatedRow(source=source, shard=shard, row=row, file=file, number=number, location=location, item=None)
    return None


def row_events_of(build: BuildDirectory, shard: Shard) -> list[dict[str, Any]]:
    """All recorded events of the rows of a shard, ordered by row and, for each row, by phase."""
    events = [event for file in build.event_files(shard) for event in read_row_events(file)]
    return sorted(events, key=lambda event: event["row"])
