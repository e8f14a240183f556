"""The rows of a file as items of an evaluation set; rows that are none are counted and told."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from fledge.data.parsing.columns import RowError
from fledge.data.parsing.left_out import Counts
from fledge.data.reading.records import files_of, records_of, row_location
from fledge.errors import FledgeError
from fledge.recipe import Source
from fledge.recipe.sections.evaluation_sets import FIELD

Item = TypeVar("Item")
Parse = Callable[[str, str, Any], Item]
Take = Callable[[int, Item], None]


def read_items(
    source: Source,
    key: str,
    parse: Parse[Item],
    needed: str,
    *,
    most: int | None = None,
    seen: Callable[[Item], None] = lambda item: None,
) -> tuple[list[Item], list[str]]:
    """What `parse(file, location, row)` makes of the rows of a source, in their order, at most `most` of them (None: all),
    spread evenly; and a sentence for each reason why rows are none, with their number and the first of them. `seen` receives
    all items. Of more than `most` items only the chosen ones are in memory: then the files are read twice.

    `parse` raises RowError for a row that is none. `needed`: what a row must be, for the error. Raises FledgeError, with `key`
    or the path, for a path that leads to no file of rows, and for files without a usable row."""
    items: list[Item] = []

    def take(number: int, item: Item) -> None:
        seen(item)
        if most is None or number < most:
            items.append(item)

    count, problems = each_item(source, key, parse, needed, take)
    if most is None or count <= most:
        return items, problems
    items.clear()
    wanted = set(places(count, most))
    again, _ = each_item(source, key, parse, needed, lambda number, item: items.append(item) if number in wanted else None)
    if again != count:
        what = f"the files were changed while they were read: {count:,} rows could be used, and then {again:,}"
        raise FledgeError(what, where=str(source.path), hint="try again when nothing writes them")
    return items, problems


def each_item(source: Source, key: str, parse: Parse[Item], needed: str, take: Take[Item]) -> tuple[int, list[str]]:
    """Give each item of a source with its number, from 0, to `take`. Returns the number of items, and the sentences of
    `read_items`; parameters and errors as there."""
    count, left_out = 0, Counts()
    for file, record in records_of(files_of(source, key), source):
        where = row_location(file, record.number)
        item = left_out.parsed(record, where, partial(parse, file, where))
        if item is not None:
            take(count, item)
            count += 1
    problems = left_out.lines()
    if not count:
        what = f"no row can be used: {'; '.join(problems) or 'there are no rows'}"
        raise FledgeError(what, where=str(source.path), hint=f"{needed}, see docs/evaluation.md")
    return count, problems


def places(count: int, most: int) -> list[int]:
    """The numbers of at most `most` of `count` items, from 0, spread evenly over all of them."""
    return list(range(count)) if count <= most else [(2 * number + 1) * count // (2 * most) for number in range(most)]


def spread(items: Sequence[Item], most: int | None) -> list[Item]:
    """At most `most` items (None: all), spread evenly over all of them."""
    return list(items) if most is None else [items[place] for place in places(len(items), most)]


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
    """The template with the values of the row's columns: {NAME} stands for the column NAME; what names no column and could be
    no plain name, such as {1, 2}, stays as it is. Raises RowError for a plain name that is no column of the row, and for a row
    none of whose columns the template names."""
    used = 0

    def value(match: re.Match[str]) -> str:
        nonlocal used
        name = match[1]
        if (isinstance(row, dict) and name in row) or name.isidentifier():
            used += 1
            return text_of(row, name)
        return match[0]

    text = FIELD.sub(value, template)
    if not used:
        raise RowError("template names no column of the row", _described(row))
    return text


def _described(row: Any) -> str:
    return f"its columns are {', '.join(map(str, row))}" if isinstance(row, dict) else "the row is no object"
