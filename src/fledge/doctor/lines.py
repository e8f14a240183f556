"""Lines of text that fit a terminal: translated sentence by sentence, then wrapped."""

from collections.abc import Iterable
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells

from fledge.escaping import escaped_line
from fledge.localization import localized


@dataclass(frozen=True)
class Line:
    """One line before it is wrapped. `text`: whole sentences, or data where `verbatim`, which is neither translated nor
    wrapped. `indent`: columns before it. `mark`: what stands before its first words; the lines that it is wrapped into stand
    below these."""

    text: str
    indent: int = 0
    mark: str = ""
    verbatim: bool = False


def rendered(lines: Iterable[Line], width: int) -> list[str]:
    """The lines in the language of the process, none wider than `width` columns but for data."""
    return [row for line in lines for row in _rows(line, width)]


def _rows(line: Line, width: int) -> list[str]:
    before = " " * line.indent + line.mark
    if line.verbatim:
        return [before + escaped_line(line.text)]
    text = escaped_line(localized(line.text))
    below = " " * cell_len(before)
    rows = _wrapped(text, max(20, width - cell_len(before)))
    return [(below if number else before) + row for number, row in enumerate(rows)] or [before.rstrip()]


def _wrapped(text: str, width: int) -> list[str]:
    """The text in rows of at most `width` columns, broken at spaces; a word that is wider, such as a Chinese sentence,
    anywhere."""
    rows, row = [], ""
    for word in text.split(" "):
        candidate = f"{row} {word}" if row else word
        if cell_len(candidate) <= width:
            row = candidate
            continue
        if cell_len(word) <= width and word.isascii():
            rows.append(row)
            row = word
            continue
        *full, row = chop_cells(candidate, width)
        rows += full
    return [one for one in (*rows, row) if one]
