"""The terminal as all commands write to it: rich's, with escaped text."""

import errno
import os
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from fledge.escaping import escaped

PIPED_WIDTH = 150  # columns where the output is no terminal


class Terminal(RichConsole):
    """A rich console on which no text from data can control the terminal. Takes the arguments of rich's `Console`.

    A text is shown as it is: rich's markup, emoji codes and highlighting are off.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"highlight": False, "markup": False, "emoji": False, **options})

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, where rich would end the process: a reader such as `head` has enough."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

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
