"""A person as the rater, in the terminal: two answers at a time, without a word about where they come from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fledge.prefer.answers import AnswerSet
from fledge.prefer.comparisons import LAG, Comparison, plan_comparisons
from fledge.prefer.dialogue import Dialogue, show
from fledge.prefer.journal import JournalWriter, Line
from fledge.prefer.ratings import Verdict, replayed
from fledge.run import Console
from fledge.run.terminal import Terminal

PER_PROMPT = 1  # comparisons of a prompt, unless the user says otherwise
REPEAT = 0.1  # share of comparisons that come a second time
KEYS: dict[str, Verdict] = {"1": "first", "2": "second", "t": "tie", "b": "both_bad", "s": "skip"}
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
        planned = self._plan(answers)
        dialogue = Dialogue(
            total=len(planned),
            show=lambda terminal, number: _show(terminal, planned[number], f"{number + 1:,} of {len(planned):,}"),
            line=lambda number, word: _line(planned[number], KEYS[word]) if word in KEYS else None,
            question=ASK,
            words=WORDS,
            kept=_kept,
            ask=self.ask,
        )
        done = dialogue.hold(writer, console)
        rest = len(planned) - done
        ending = f"{rest:,} comparisons are left; the same command goes on" if rest else "all comparisons are rated"
        return [f"{_kept(done)}; {ending}", *summary(replayed(writer.lines))]


def _kept(done: int) -> str:
    return "1 rating is kept" if done == 1 else f"{done:,} ratings are kept"


def _line(comparison: Comparison, verdict: Verdict) -> Line:
    line: Line = {
        "prompt": comparison.asked.id,
        "first": comparison.first.id,
        "second": comparison.second.id,
        "verdict": verdict,
    }
    return {**line, "repeat": True} if comparison.is_repeat else line


def _show(terminal: Terminal, comparison: Comparison, title: str) -> None:
    show(terminal, title, comparison.asked.prompt, {"1": comparison.first.text, "2": comparison.second.text})


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
