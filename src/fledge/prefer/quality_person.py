"""`fledge rate ask`: a person rates answers in the terminal, one at a time, without a word about where they come from."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from fledge.errors import FledgeError
from fledge.prefer.dialogue import Dialogue, show
from fledge.prefer.evaluated import read_rated
from fledge.prefer.journal import JournalWriter, Line
from fledge.prefer.quality import DIMENSIONS, HIGHEST, ITEM, LOWEST, QUALITY, Item, items_of
from fledge.run import Console
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
    answers = read_rated(paths)
    items = items_of(answers, seed, rater)
    if not items:
        raise FledgeError("there is no answer to rate", where=", ".join(paths))
    folder = os.path.realpath(out.parent)
    header = {
        "about": {"answers": [os.path.relpath(path, folder) for path in answers.hashes]},
        "rater": rater,
        "seed": seed,
        "answers": list(answers.hashes.values()),
    }
    dialogue = Dialogue(
        total=len(items),
        show=lambda terminal, number: _show(terminal, items[number], f"{number + 1:,} of {len(items):,}"),
        line=lambda number, word: _line(items[number], word),
        question=ASK,
        words=WORDS,
        kept=lambda done: f"{done:,} ratings are kept",
        ask=ask,
    )
    with JournalWriter.open(out, QUALITY, header, console.log) as writer:
        done = dialogue.hold(writer, console)
    rest = len(items) - done
    return [
        f"{out}: {done:,} ratings; " + (f"{rest:,} answers are left: the same command goes on" if rest else "all are rated")
    ]


def _show(terminal: Terminal, item: Item, title: str) -> None:
    show(terminal, title, item.asked.prompt, {"": item.answer.text})


def _line(item: Item, word: str) -> Line | None:
    if word == "s":
        return {ITEM: item.id, "skip": True}
    scores = _scores(word)
    return None if scores is None else {ITEM: item.id, "scores": scores}


def _scores(word: str) -> list[int] | None:
    """The four scores of a line such as `5443` or `5 4 4 3`; None for anything else."""
    digits = [character for character in word if character not in " ,;/"]
    if len(digits) != len(DIMENSIONS) or not all(digit in "12345" for digit in digits):
        return None
    return [int(digit) for digit in digits]
