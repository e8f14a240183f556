"""Solved rows before a question, and the prompt that they make with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fledge.errors import FledgeError
from fledge.evaluate.records import content_hash
from fledge.evaluate.sets.rows import read_items
from fledge.recipe import Source
from fledge.recipe.sections.evaluation_sets import EvaluationSetConfig
from fledge.tokenizer import Message, Tokenizer

BETWEEN = "\n\n"  # two rows of a prompt
BEFORE_ANSWER = " "


class Solved(NamedTuple):
    """A prompt with its right answer."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class FewShot:
    """The first `count` of `rows`; where `from_set`, they are the rows of the set, and a question is not among its own."""

    count: int
    rows: Sequence[Solved]
    from_set: bool
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: EvaluationSetConfig, key: str, own: Sequence[Solved], parse: Callable[[Any], Solved]) -> "FewShot":
        """The solved rows of a set with the rows `own`; `parse` reads those of `few_shot_path`. Raises FledgeError if there are
        too few."""
        if not config.few_shot:
            return cls(0, (), False)
        if config.few_shot_path is None:
            rows, notes, needed = own, [], config.few_shot + 1
        else:
            source = Source(path=config.few_shot_path)
            rows, notes = read_items(source, f"{key}.few_shot_path", lambda file, where, row: parse(row), "a solved row")
            needed = config.few_shot
        if len(rows) < needed:
            what = f"{needed:,} rows are needed, and there are {len(rows):,}"
            raise FledgeError(what, where=f"{key}.few_shot", hint="set a smaller few_shot, or name more rows in few_shot_path")
        kept = rows[:needed]
        told = tuple(f"left out of few_shot_path: {one}" for one in notes)
        return cls(config.few_shot, kept, config.few_shot_path is None, told)

    def joined(self, fingerprint: str) -> str:
        """The fingerprint of a set together with these rows."""
        return content_hash(fingerprint, self.rows) if self.count else fingerprint

    def before(self, number: int) -> list[Solved]:
        """The solved rows before item `number` of the set."""
        rows = [row for place, row in enumerate(self.rows) if not (self.from_set and place == number)]
        return rows[: self.count]

    def context(self, number: int, prompt: str) -> str:
        """The solved rows and the prompt of item `number`, as one text."""
        solved = [f"{row.prompt}{BEFORE_ANSWER}{row.answer}" for row in self.before(number)]
        return BETWEEN.join((*solved, prompt))

    def chat_prompt(self, tokenizer: Tokenizer, number: int, prompt: str) -> list[int]:
        """The tokens of the solved rows and the prompt as turns of the chat template."""
        turns = [
            message
            for row in self.before(number)
            for message in (Message("user", row.prompt), Message("assistant", row.answer))
        ]
        return tokenizer.encode_prompt([*turns, Message("user", prompt)])
