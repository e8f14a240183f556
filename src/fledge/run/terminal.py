"""The terminal as all commands write to it: rich's, with escaped text."""

import errno
import os
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.rule import Rule
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from fledge.escaping import escaped
from fledge.localization import language, localized, localized_head, localized_message

PIPED_WIDTH = 150  # columns where the output is no terminal


class Verbatim(Text):
    """A text of data, such as a row or an answer, which is never translated."""


def localized_text(text: Text) -> Text:
    """The text in the language of the process, each part of a style for itself."""
    bounds = sorted({0, len(text), *(offset for span in text.spans for offset in (span.start, span.end))})
    result = Text(style=text.style, justify=text.justify, overflow=text.overflow, no_wrap=text.no_wrap)
    for part in text.divide(bounds[1:-1]):
        words = localized(part.plain)
        result.append_text(part if words == part.plain else Text(words, style=part.spans[0].style if part.spans else ""))
    return result


def _localized_cell(cell: Any) -> Any:
    """The cell of a table in the language of the process: cells hold data too, so only complete messages are translated."""
    if isinstance(cell, str):
        return localized_message(cell)
    if type(cell) is Text and (words := localized_message(cell.plain)) != cell.plain:
        return Text(words, style=cell.style or (cell.spans[0].style if cell.spans else ""))
    return cell


def _localized_head(head: Any) -> Any:
    """The head of a column in the language of the process; a name of data stays if it is `Verbatim`."""
    if isinstance(head, str):
        return localized_head(head)
    return Text(words, style=head.style) if type(head) is Text and (words := localized_head(head.plain)) != head.plain else head


def _localized_words(words: Any) -> Any:
    return localized(words) if isinstance(words, str) else localized_renderable(words)


def localized_renderable(shown: Any) -> Any:
    """A text or the words of a table in the language of the process; anything else as it is."""
    if type(shown) is Text:
        return localized_text(shown)
    if isinstance(shown, Rule):
        shown.title = _localized_words(shown.title)
    elif isinstance(shown, Table):
        shown.title, shown.caption = _localized_words(shown.title), _localized_words(shown.caption)
        for column in shown.columns:
            column.header = _localized_head(column.header)
            column._cells = [_localized_cell(cell) for cell in column._cells]
    return shown


class Terminal(RichConsole):
    """A rich console on which no text from data can control the terminal. Takes the arguments of rich's `Console`.

    A text is shown as it is: rich's markup, emoji codes and highlighting are off.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"highlight": False, "markup": False, "emoji": False, **options})

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, where rich would end the process: a reader such as `head` has enough."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def print(self, *objects: Any, **options: Any) -> None:
        """Print texts and tables in the language of the process; a string as it is."""
        super().print(*(objects if language() == "en" else map(localized_renderable, objects)), **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as rich's text. Escaped here too: rich's `Text` leaves some control characters out without a trace."""
        return super().render_str(escaped(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable; those of text are escaped."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(escaped(segment.text), segment.style)


def output_terminal(piped_width: int = PIPED_WIDTH) -> Terminal:
    """The terminal on standard output; `piped_width` columns wide where that is none."""
    return Terminal(width=None if sys.stdout.isatty() else piped_width)
