"""A person as the rater, in the terminal: two answers at a time, without a word about where they come from."""

import signal
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rich.rule import Rule
from rich.text import Text

from fledge.prefer.answers import AnswerSet
from fledge.prefer.comparisons import LAG, Comparison, plan_comparisons
from fledge.prefer.journal import JournalWriter, Line
from fledge.prefer.prompts import shown_turns
from fledge.prefer.ratings import Verdict, replayed
from fledge.run import Console
from fledge.run.stopping import Interrupted
from fledge.run.terminal import Terminal

PER_PROMPT = 1  # comparisons of a prompt, unless the user says otherwise
REPEAT = 0.1  # share of comparisons that come a second time
KEYS: dict[str, Verdict] = {"1": "first", "2": "second", "t": "tie", "b": "both_bad", "s": "skip"}
UNDO, QUIT, HELP = ("u", "undo", "/undo"), ("q", "quit", "exit", "/quit", "/exit"), ("?", "h", "help", "/help")
ASK = "1 or 2 is better · t tie · b both bad · s skip · u undo · q quit › "
WORDS = """1, 2  this answer is better
t     tie: both are equally good
b     both are bad: neither should be learned from
s     skip: you cannot say
u     undo the rating before; may be repeated
q     quit; so do Ctrl-C and the end of the input. Every rating is kept: the same command goes on
Some comparisons come twice, to see how well you agree with yourself."""
SAME: dict[Verdict, Verdict] = {"first": "second", "second": "first"}  # of a comparison that is shown the other way


@dataclass(frozen=True, kw_only=True)
class Person:
    """A person who compares answers. `ask`: shows a question and returns the line that is typed, EOFError at the end."""

    rater: str
    per_prompt: int
    repeat: float
    seed: int
    ask: Callable[[str], str] = input

    @property
    def settings(self) -> dict[str, Any]:
        """What decides which comparisons come, as JSON values."""
        return {"comparisons": self.per_prompt, "repeat": self.repeat, "lag": LAG, "seed": self.seed}

    def planned(self, answers: AnswerSet) -> int:
        """A line for each comparison, those that come twice included."""
        return len(self._plan(answers))

    def _plan(self, answers: AnswerSet) -> list[Comparison]:
        return plan_comparisons(list(answers.prompts.values()), self.per_prompt, self.seed, self.rater, self.repeat)

    def rate(self, answers: AnswerSet, writer: JournalWriter, console: Console) -> list[str]:
        """Ask until all comparisons are rated or the person quits; each rating is on the disk before the next question. Returns
        a summary in lines. Raises Interrupted for Ctrl-C."""
        with suppress(ImportError):
            import readline  # noqa: F401 - `input` edits the line once it is loaded
        planned = self._plan(answers)
        terminal, done = Terminal(), len(replayed(writer.lines))
        if done:
            console.log(f"{done:,} ratings are there already; it goes on behind them")
        try:
            while done < len(planned):
                done += self._rate_one(terminal, planned, done, writer)
        except EOFError:
            print()
        except KeyboardInterrupt:
            raise Interrupted(signal.SIGINT, f"{self._kept(done)}; the same command goes on") from None
        rest = len(planned) - done
        ending = f"{rest:,} comparisons are left; the same command goes on" if rest else "all comparisons are rated"
        return [f"{self._kept(done)}; {ending}", *summary(replayed(writer.lines))]

    def _kept(self, done: int) -> str:
        return "1 rating is kept" if done == 1 else f"{done:,} ratings are kept"

    def _rate_one(self, terminal: Terminal, planned: Sequence[Comparison], done: int, writer: JournalWriter) -> int:
        """Show a comparison and write what the person says; returns by how many ratings the file has grown: 1, or -1 for an
        undo. Raises EOFError when the person quits."""
        _show(terminal, planned[done], f"{done + 1:,} of {len(planned):,}")
        while True:
            word = unicodedata.normalize("NFKC", self.ask(ASK)).strip().casefold()
            if word in KEYS:
                writer.append([_line(planned[done], KEYS[word])])
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


def _line(comparison: Comparison, verdict: Verdict) -> Line:
    line: Line = {
        "prompt": comparison.asked.id,
        "first": comparison.first.id,
        "second": comparison.second.id,
        "verdict": verdict,
    }
    return {**line, "repeat": True} if comparison.is_repeat else line


def _show(terminal: Terminal, comparison: Comparison, title: str) -> None:
    """Show the prompt and both answers; of an answer only its text, and that it was cut, which can be seen anyway."""
    terminal.print()
    terminal.print(Rule(Text(title), align="left", style="bold"))
    for who, text in shown_turns(comparison.asked.prompt):
        terminal.print(Text.assemble((f"{who}: ", "bold"), text))
    for number, answer in enumerate((comparison.first, comparison.second), 1):
        terminal.print(Rule(Text(str(number)), align="left", style="cyan"))
        terminal.print(Text(answer.text or "(empty)"))
    terminal.print(Rule(style="dim"))


def summary(lines: Sequence[Line]) -> list[str]:
    """How many comparisons have each verdict, and how often repeated ones have the same."""
    once = [line for line in lines if not line.get("repeat")]
    words = {"first": "the upper one", "second": "the lower one", "tie": "a tie", "both_bad": "both bad", "skip": "skipped"}
    counts = {word: sum(line["verdict"] == verdict for line in once) for verdict, word in words.items()}
    told = [", ".join(f"{count:,} × {word}" for word, count in counts.items() if count)] if once else []
    same, repeated = consistency(lines)
    if repeated:
        told.append(f"of {repeated:,} comparisons that came twice, {same:,} were rated alike")
    return told


def consistency(lines: Sequence[Line]) -> tuple[int, int]:
    """How many repeated comparisons have the verdict of the first time, and how many there are. Skipped ones do not count."""
    first = {(line["prompt"], line["second"], line["first"]): line["verdict"] for line in lines if not line.get("repeat")}
    pairs = [
        (first.get((line["prompt"], line["first"], line["second"])), line["verdict"]) for line in lines if line.get("repeat")
    ]
    seen = [(before, now) for before, now in pairs if before is not None and "skip" not in (before, now)]
    return sum(SAME.get(before, before) == now for before, now in seen), len(seen)
