"""`fledge rate ask`: a person rates answers in the terminal, one at a time, without a word about where they come from."""

import os
import signal
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from rich.rule import Rule
from rich.text import Text

from fledge.errors import FledgeError
from fledge.prefer.answers import read_answers
from fledge.prefer.journal import JournalWriter
from fledge.prefer.person import HELP, QUIT, UNDO
from fledge.prefer.prompts import shown_turns
from fledge.prefer.quality import DIMENSIONS, HIGHEST, ITEM, LOWEST, QUALITY, Item, items_of
from fledge.prefer.ratings import replayed
from fledge.run import Console
from fledge.run.stopping import Interrupted
from fledge.run.terminal import Terminal

ASK = f"{' '.join(DIMENSIONS)}, {LOWEST}-{HIGHEST} each · s skip · u undo · ? help · q quit › "
WORDS = f"""Four digits from {LOWEST} (bad) to {HIGHEST} (good), such as 5 4 4 3:
  relevance      does it answer what was asked?
  accuracy       is what it says right?
  fluency        is it written well?
  completeness   does it leave nothing out that was asked for?
s     skip: you cannot say
u     undo the rating before; may be repeated
q     quit; so do Ctrl-C and the end of the input. Every rating is kept: the same command goes on"""


def rate(
    paths: Sequence[str], out: Path, *, rater: str, seed: int, console: Console, ask: Callable[[str], str] = input
) -> list[str]:
    """Ask until all answers are rated or the person quits; each rating is on the disk before the next question. Returns a
    summary in lines. Raises Interrupted for Ctrl-C, and FledgeError if there is no answer."""
    answers = read_answers(paths)
    items = items_of(answers, seed, rater)
    if not items:
        raise FledgeError("there is no answer to rate", where=", ".join(paths))
    with suppress(ImportError):
        import readline  # noqa: F401 - `input` edits the line once it is loaded
    folder = os.path.realpath(out.parent)
    header = {
        "about": {"answers": [os.path.relpath(path, folder) for path in answers.hashes]},
        "rater": rater,
        "seed": seed,
        "answers": list(answers.hashes.values()),
    }
    with JournalWriter.open(out, QUALITY, header, console.log) as writer:
        terminal, done = Terminal(), len(replayed(writer.lines))
        if done:
            console.log(f"{done:,} ratings are there already; it goes on behind them")
        try:
            while done < len(items):
                done += _rate_one(terminal, items, done, writer, ask)
        except EOFError:
            print()
        except KeyboardInterrupt:
            raise Interrupted(signal.SIGINT, f"{done:,} ratings are kept; the same command goes on") from None
    rest = len(items) - done
    return [
        f"{out}: {done:,} ratings; " + (f"{rest:,} answers are left: the same command goes on" if rest else "all are rated")
    ]


def _rate_one(terminal: Terminal, items: Sequence[Item], done: int, writer: JournalWriter, ask: Callable[[str], str]) -> int:
    """Show an answer and write what the person says; returns by how many ratings the file has grown: 1, or -1 for an undo.
    Raises EOFError when the person quits."""
    item = items[done]
    terminal.print()
    terminal.print(Rule(Text(f"{done + 1:,} of {len(items):,}"), align="left", style="bold"))
    for who, text in shown_turns(item.asked.prompt):
        terminal.print(Text.assemble((f"{who}: ", "bold"), text))
    terminal.print(Rule(style="cyan"))
    terminal.print(Text(item.answer.text or "(empty)"))
    terminal.print(Rule(style="dim"))
    while True:
        word = unicodedata.normalize("NFKC", ask(ASK)).strip().casefold()
        if (scores := _scores(word)) is not None:
            writer.append([{ITEM: item.id, "scores": scores}])
            return 1
        if word == "s":
            writer.append([{ITEM: item.id, "skip": True}])
            return 1
        if word in QUIT:
            raise EOFError
        if word in UNDO and done:
            writer.append([{"undo": 1}])
            return -1
        if word in HELP:
            terminal.print(WORDS)
        elif word:
            terminal.print("there is nothing to undo" if word in UNDO else f"'{word[:20]}' is no answer; ? explains them")


def _scores(word: str) -> list[int] | None:
    """The four scores of a line such as `5443` or `5 4 4 3`; None for anything else."""
    digits = [character for character in word if character not in " ,;/"]
    if len(digits) != len(DIMENSIONS) or not all(digit in "12345" for digit in digits):
        return None
    return [int(digit) for digit in digits]
