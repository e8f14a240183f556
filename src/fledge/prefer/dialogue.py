"""A person in the terminal, who is asked about one thing after another: with undo, help, and an end at any moment."""

import signal
import unicodedata
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from rich.rule import Rule
from rich.text import Text

from fledge.data.parsing.prompts import Prompt
from fledge.localization import localized
from fledge.prefer.journal import JournalWriter, Line
from fledge.prefer.prompts import shown_turns
from fledge.prefer.ratings import replayed
from fledge.run import Console
from fledge.run.stopping import Interrupted
from fledge.run.terminal import Terminal, Verbatim

UNDO, QUIT, HELP = ("u", "undo", "/undo"), ("q", "quit", "exit", "/quit", "/exit"), ("?", "h", "help", "/help")


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """What a person is asked about `total` things.

    `show`: shows the one with a number from 0. `line`: what is written for a word about it; None for a word that says nothing.
    `question`: before what is typed; `words`: the help. `kept`: says that a number of ratings is kept. `ask`: shows a question
    and returns the line that is typed, EOFError at the end."""

    total: int
    show: Callable[[Terminal, int], None]
    line: Callable[[int, str], Line | None]
    question: str
    words: str
    kept: Callable[[int], str]
    ask: Callable[[str], str] = input

    def hold(self, writer: JournalWriter, console: Console) -> int:
        """Ask until all are rated or the person quits; each rating is on the disk before the next question. Returns how many
        there are. Raises Interrupted for Ctrl-C."""
        with suppress(ImportError):
            import readline  # noqa: F401 - `input` edits the line once it is loaded
        terminal, done = Terminal(), len(replayed(writer.lines))
        if done:
            console.log(f"{done:,} ratings are there already; it goes on behind them")
        try:
            while done < self.total:
                done += self._rate_one(terminal, done, writer)
        except EOFError:
            print()
        except KeyboardInterrupt:
            raise Interrupted(signal.SIGINT, f"{self.kept(done)}; the same command goes on") from None
        return done

    def _rate_one(self, terminal: Terminal, done: int, writer: JournalWriter) -> int:
        """Show one and write what the person says; returns by how many ratings the file has grown: 1, or -1 for an undo. Raises
        EOFError when the person quits."""
        self.show(terminal, done)
        while True:
            word = unicodedata.normalize("NFKC", self.ask(localized(self.question))).strip().casefold()
            if (line := self.line(done, word)) is not None:
                writer.append([line])
                return 1
            if word in QUIT:
                raise EOFError
            if word in UNDO and done:
                writer.append([{"undo": 1}])
                return -1
            if word in HELP:
                terminal.print(localized(self.words))
            elif word:
                problem = "there is nothing to undo" if word in UNDO else f"'{word[:20]}' is no answer; ? explains them"
                terminal.print(localized(problem))


def show(terminal: Terminal, title: str, prompt: Prompt, answers: Mapping[str, str]) -> None:
    """Show a prompt and texts of answers by their headings: of an answer only that, and that it was cut, which can be seen
    anyway."""
    terminal.print()
    terminal.print(Rule(Text(title), align="left", style="bold"))
    for who, text in shown_turns(prompt):
        terminal.print(Text(f"{who}: ", style="bold"), Verbatim(text), sep="")
    for heading, text in answers.items():
        terminal.print(Rule(Text(heading), align="left", style="cyan"))
        terminal.print(Verbatim(text) if text else Text("(empty)"))
    terminal.print(Rule(style="dim"))
