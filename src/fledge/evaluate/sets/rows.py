"""The rows of a file as items of an evaluation set; rows that are none are counted and told."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fledge.data.build.plan import SHARD_BYTES
from fledge.data.parsing.columns import RowError
from fledge.data.reading.records import files_of, read, row_location, spans_of
from fledge.errors import FledgeError
from fledge.recipe import Source

Item = TypeVar("Item")
FIELD = re.compile(r"\{(\w+)\}")


def read_items(source: Source, key: str, parse: Callable[[str, str, Any], Item], needed: str) -> tuple[list[Item], list[str]]:
    """What `parse(file, location, row)` makes of the rows of a source, in their order; and a sentence for each reason why rows
    are none, with their number and the first of them.

    `parse` raises RowError for a row that is none. `needed`: what a row must be, for the error. Raises FledgeError, with `key`
    or the path, for a path that leads to no file of rows, and for files without a usable row."""
    items: list[Item] = []
    dropped: Counter[str] = Counter()
    first: dict[str, str] = {}
    for span in spans_of(files_of(source, key), source, SHARD_BYTES):
        for record in read(span, source):
            where = row_location(span.file, record.number)
            try:
                if record.broken:
                    raise RowError(record.broken, record.detail)
                items.append(parse(span.file, where, record.value))
            except RowError as error:
                dropped[error.reason] += 1
                first.setdefault(error.reason, f"{where}: {error.detail}" if error.detail else where)
    problems = [f"{count:,} × {reason}, first at {first[reason]}" for reason, count in dropped.most_common()]
    if not items:
        what = f"no row can be used: {'; '.join(problems) or 'there are no rows'}"
        raise FledgeError(what, where=str(source.path), hint=f"{needed}, see docs/evaluation.md")
    return items, problems


def spread(items: Sequence[Item], most: int | None) -> list[Item]:
    """At most `most` items (None: all), spread evenly over all of them."""
    if most is None or len(items) <= most:
        return list(items)
    return [items[(2 * number + 1) * len(items) // (2 * most)] for number in range(most)]


def text_of(row: Any, column: str) -> str:
    """The text in a column of a row; a number as its text. Raises RowError if there is none."""
    value = row.get(column) if isinstance(row, dict) else None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowError(f"no text in column {column}", _described(row))
    text = str(value)
    if not text.strip():
        raise RowError(f"column {column} is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RowError("undecodable", "the text holds half a surrogate pair, which UTF-8 cannot say") from None
    return text


def group_of(row: Any, column: str) -> str:
    """The group of a row, "" without one."""
    value = row.get(column) if isinstance(row, dict) else None
    return "" if value is None else str(value)


def filled(template: str, row: Any) -> str:
    """The template with the values of the row's columns. Raises RowError for a column that the row does not have."""
    return FIELD.sub(lambda match: text_of(row, match[1]), template)


def _described(row: Any) -> str:
    return f"its columns are {', '.join(map(str, row))}" if isinstance(row, dict) else "the row is no object"
