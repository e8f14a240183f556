"""The terminal output of a run: a live progress bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from fledge.escaping import escaped_line
from fledge.localization import localized

BAR_WIDTH = 24
PLAIN_SECONDS = 10.0  # between progress lines without a terminal
Log = Callable[[str], None]
"""A function that shows one line of text to a person."""


def silent(text: str) -> None:
    """Show nothing: a `Log` for callers without a console."""


def duration(seconds: float) -> str:
    """Seconds as text: `45 s`, `1 min 15 s`, `2 h 5 min`."""
    seconds = int(seconds + 0.5)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def step_line(values: Mapping[str, Any]) -> str:
    """The figures of a training step as one line, with units."""
    figures = [f"loss {values['loss']:.3f}"]
    if "accuracy" in values:
        figures.append(f"pairs right {values['accuracy']:.0%}")
    elif values.get("reward") is not None:
        figures.append(f"reward {values['reward']:.3f}")
    else:
        figures.append(f"ppl {min(values['perplexity'], 99_999):.4g}")
    figures += [
        f"lr {values['train/lr']:.2g}",
        f"{values['system/tokens_per_second']:,.0f} tok/s",
        f"{values['system/memory_bytes'] / 2**30:.1f} GiB",
        f"{duration(values['system/eta_seconds'])} left",
    ]
    return " · ".join(figures)


class Console:
    """Lines and progress for a person, on standard error. A quiet console shows nothing; errors are shown elsewhere.

    A console that can no longer be written, such as a pipe whose reader has ended, becomes quiet: it ends no run.
    """

    def __init__(self, quiet: bool = False, live: bool | None = None) -> None:
        self.quiet = quiet
        self.live = sys.stderr.isatty() if live is None else live
        self._rich: Any = None

    def _terminal(self) -> Any:
        if self._rich is None:
            from fledge.run.terminal import Terminal

            self._rich = Terminal(stderr=True, soft_wrap=True)
        return self._rich

    def log(self, text: str = "", style: str | None = None) -> None:
        """Show one line, a message in English that is shown in the language of the process."""
        self._print(localized(text), style=style)

    def title(self, text: str) -> None:
        """Show the title of a section."""
        self.log()
        self._print(f"── {localized(text)} ", style="bold")

    def show(self, renderable: Any) -> None:
        """Show a rich table or panel, or a text as it is."""
        self._print(renderable)

    def _print(self, renderable: Any, style: str | None = None) -> None:
        if self.quiet:
            return
        try:
            self._terminal().print(renderable, style=style)
        except OSError:
            self.quiet = True

    @contextmanager
    def progress(self, label: str, total: int, done: int = 0, every: int = 1) -> Iterator["Progress"]:
        """Show progress over `total` units. Without a terminal, a line appears at most every `every` units and 10 seconds."""
        if self.quiet or not self.live:
            yield _Plain(self, label, total, every)
            return
        bar = progress_bar(self._terminal())
        task = bar.add_task(escaped_line(localized(label)), total=total, completed=done, text="")
        with suppress(OSError):
            bar.start()
        try:
            yield _Live(bar, task)
        finally:
            with suppress(OSError):
                bar.stop()


def progress_bar(terminal: Any) -> Any:
    """A bar of rich's, with label, bar, counter and current figures. On a narrow terminal the figures are cut first."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    figures = Column(ratio=1, no_wrap=True, overflow="ellipsis")  # takes what the other columns leave
    return Bar(
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
        BarColumn(min(BAR_WIDTH, terminal.width // 4)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[text]}", markup=False, table_column=figures),
        console=terminal,
        refresh_per_second=4,
        expand=True,
    )


class Progress:
    """The progress of a long task."""

    def update(self, done: int, text: str = "") -> None:
        """Show that `done` units are finished; `text` holds current figures."""
        raise NotImplementedError


class _Live(Progress):
    """A progress bar."""

    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task = bar, task

    def update(self, done: int, text: str = "") -> None:
        self._bar.update(self._task, completed=done, text=escaped_line(localized(text)))


class _Plain(Progress):
    """A line from time to time, and a line for the last unit."""

    def __init__(self, console: Console, label: str, total: int, every: int) -> None:
        self._console, self._label, self._total, self._every = console, label, total, every
        self._last_line = time.monotonic()

    def update(self, done: int, text: str = "") -> None:
        now = time.monotonic()
        if done == self._total or (done % self._every == 0 and now - self._last_line >= PLAIN_SECONDS):
            self._last_line = now
            self._console.show(f"{localized(self._label)} {done:,}/{self._total:,} {localized(text)}")
