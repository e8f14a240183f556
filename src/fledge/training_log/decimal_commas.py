"""What a comma in a number means: it parts thousands, or stands where English has the decimal point. A whole column decides."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from fledge.training_log.names import EPOCH, resolve

LEADING = re.compile(r"\s*[-+]?(?P<number>[\d.,]*\d)")
THOUSANDS = re.compile(r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")
DECIMAL = re.compile(r"(?:\d*|\d{1,3}(?:\.\d{3})+),\d+")
COUNTS = frozenset(("tokens", "target_tokens", "consumed_samples", "tokens_per_second", "memory_bytes"))
"""Figures beside steps that are whole numbers, or so large that a comma in them parts thousands."""
NUMBERS = re.compile(
    r"(?P<name>[^\W\d][\w/.]*)(?P<between>[\"'\])]*\s*[:=：＝]?\s*[\"'\[(]?\s*[-+]?)(?P<number>\d[\d.]*,\d+|\d+\.\d+)"
    r"(?![\d.]*,\d|\.\d)"
)
WITH_COMMA = re.compile(
    r"(?:(?P<name>[^\W\d][\w/.]*)(?P<between>[\"'\])]*\s*[:=：＝]?\s*[\"'\[(]?\s*[-+]?))?(?<![\d,.])(?P<number>\d[\d.]*,\d+)"
    r"(?![\d.]*,\d|\.\d)"
)
ANY_COMMA = re.compile(r"\d,\d")
MOST_LOOKED_AT = 4_000  # lines of a text that decide


@dataclass
class CommaColumn:
    """What the cells of a column tell about its commas. `name`: of the column. `decimal`, `thousands`: cells that can only be
    the one or the other. `hundreds`: whether a whole number from 100 to 999 stands there without a comma."""

    name: str
    decimal: int = 0
    thousands: int = 0
    hundreds: bool = False

    def look_at(self, cell: str) -> None:
        """Take what one cell tells."""
        match = LEADING.match(cell)
        if match is None:
            return
        if "," in match["number"]:
            meaning = comma_of(match["number"])
            self.decimal += meaning is True
            self.thousands += meaning is False
        elif len(match["number"]) == 3 and match["number"].isdigit():
            self.hundreds = True

    def is_decimal(self, otherwise: bool) -> bool:
        """Whether its commas are decimal ones; `otherwise`: what they are where neither the cells nor the name tell."""
        if self.decimal != self.thousands:
            return self.decimal > self.thousands
        known = resolve(self.name)
        counts = known is not None and ((known.is_axis and known.name != EPOCH) or known.name.rpartition("/")[2] in COUNTS)
        return otherwise and not counts and not self.hundreds


def comma_of(number: str) -> bool | None:
    """Whether the comma of a number without sign and unit is a decimal one, by its digits alone; None where it may be both."""
    decimal, thousands = DECIMAL.fullmatch(number) is not None, THOUSANDS.fullmatch(number) is not None
    return None if decimal == thousands else decimal


def with_point(number: str) -> str:
    """A number with a decimal comma as English writes it: `1.234,5` is `1234.5`."""
    return number.replace(".", "").replace(",", ".") if "," in number else number


def decimal_columns(names: Sequence[str], rows: Iterable[Sequence[str]], otherwise: bool) -> list[bool]:
    """For each column of a table, whether its commas are decimal ones. `otherwise`: what the commas of the table usually are;
    a column that has decimal ones for certain makes them so."""
    columns = [CommaColumn(name) for name in names]
    for cells in rows:
        for column, cell in zip(columns, cells, strict=False):
            column.look_at(cell)
    otherwise = otherwise or any(column.decimal > column.thousands for column in columns)
    return [column.is_decimal(otherwise) for column in columns]


@dataclass
class _Text:
    """What the numbers of a text tell. `points`, `commas`: known figures with a decimal point, and with a certain decimal
    comma. `columns`: by the word before a number."""

    points: int = 0
    commas: int = 0
    columns: dict[str, CommaColumn] = field(default_factory=dict)

    def look_at(self, line: str) -> None:
        for match in NUMBERS.finditer(line):
            name, number = match["name"], match["number"]
            known = resolve(name)
            is_figure = known is not None and not known.is_axis
            if "," in number:
                self.columns.setdefault(name, CommaColumn(name)).look_at(number)
                self.commas += is_figure and comma_of(number) is True
            else:
                self.points += is_figure


def point_for_comma(lines: Sequence[str]) -> Callable[[str], str] | None:
    """What writes a line of these with decimal points; None for a text whose figures have no decimal commas. Lines all over
    the text are looked at."""
    seen = _Text()
    for line in lines[:: max(1, len(lines) // MOST_LOOKED_AT)]:
        if ANY_COMMA.search(line) or "." in line:
            seen.look_at(line)
    if seen.commas <= seen.points:
        return None
    decimal = {name for name, column in seen.columns.items() if column.is_decimal(resolve(name) is not None)}

    def rewrite(match: re.Match[str]) -> str:
        meaning = comma_of(match["number"])
        is_decimal = match["name"] in decimal if meaning is None else meaning
        before = (match["name"] or "") + (match["between"] or "")
        return before + (with_point(match["number"]) if is_decimal else match["number"])

    return lambda line: WITH_COMMA.sub(rewrite, line) if ANY_COMMA.search(line) else line
