"""The kinds of stages that rows are meant for."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from fledge.data.formats import kind_for
from fledge.data.parsing.columns import RowError
from fledge.data.parsing.detection import detect_item_type
from fledge.data.reading.records import Record, row_location
from fledge.recipe.schema import Source


def kinds_of(records: Iterable[tuple[str | Path, Record]], source: Source) -> tuple[Counter[str], list[tuple[str, RowError]]]:
    """How many rows are meant for each kind of stage, and the place of each row that is for none, with the reason."""
    kinds: Counter[str] = Counter()
    problems: list[tuple[str, RowError]] = []
    for file, record in records:
        try:
            if record.broken:
                raise RowError(record.broken, record.detail)
            kinds[kind_for(detect_item_type(record.value, source))] += 1
        except RowError as error:
            problems.append((row_location(str(file), record.number), error))
    return kinds, problems
