"""Solved rows before a question, and the prompt that they make with it."""

import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from fledge.errors import FledgeError
from fledge.evaluate.records import content_hash
from fledge.evaluate.sets.rows import Item, Parse, each_item, read_items
from fledge.recipe import Source
from fledge.recipe.sections.evaluation_sets import EvaluationSetConfig
from fledge.tokenizer import Message, Tokenizer

BETWEEN = "\n\n"  # two rows of a prompt


def glue(prompt: str) -> str:
    """What stands between a prompt and its answer: a blank, but nothing after white space and after a character of a script
    that writes no blanks: a wide one (Unicode's East Asian Width), Korean aside."""
    if not prompt or prompt[-1].isspace():
        return ""
    is_wide = unicodedata.east_asian_width(prompt[-1]) in ("F", "W")
    return "" if is_wide and "HANGUL" not in unicodedata.name(prompt[-1], "") else " "


class Solved(NamedTuple):
    """A prompt with its right answer."""

    prompt: str
    answer: str


class FirstRows:
    """The first solved rows of a file whose prompts differ, one more than stand before a question, which may be among them."""

    def __init__(self, few_shot: int) -> None:
        self._most = few_shot + 1 if few_shot else 0
        self._rows: dict[str, Solved] = {}

    def add(self, row: Solved) -> None:
        """Keep a row, if it is among the first ones."""
        if len(self._rows) < self._most:
            self._rows.setdefault(_plain(row.prompt), row)

    @property
    def rows(self) -> tuple[Solved, ...]:
        """The rows that were kept."""
        return tuple(self._rows.values())


@dataclass(frozen=True)
class FewShot:
    """The first `count` of `rows` whose prompt is not the question's own."""

    count: int
    rows: tuple[Solved, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, config: EvaluationSetConfig, key: str, own: FirstRows, parse: Callable[[Any], Solved], asked: Iterable[str]
    ) -> "FewShot":
        """The solved rows of a set whose file has the rows `own` and whose questions are the prompts `asked`; `parse` reads
        those of `few_shot_path`. Raises FledgeError if there are too few."""
        if not config.few_shot:
            return cls(0, ())
        rows, notes = own, []
        if config.few_shot_path is not None:
            rows, source = FirstRows(config.few_shot), Source(path=config.few_shot_path)
            _, notes = each_item(
                source,
                f"{key}.few_shot_path",
                lambda file, where, row: parse(row),
                "a solved row",
                lambda _, row: rows.add(row),
            )
        prompts = {_plain(row.prompt) for row in rows.rows}
        needed = config.few_shot + any(_plain(prompt) in prompts for prompt in asked)  # a question is not solved before it
        if len(prompts) < needed:
            what = f"{needed:,} rows are needed, and there are {len(prompts):,} with different prompts"
            raise FledgeError(what, where=f"{key}.few_shot", hint="set a smaller few_shot, or name more rows in few_shot_path")
        return cls(config.few_shot, rows.rows, tuple(f"left out of few_shot_path: {one}" for one in notes))

    def joined(self, fingerprint: str) -> str:
        """The fingerprint of a set together with these rows."""
        return content_hash(fingerprint, self.rows) if self.count else fingerprint

    def before(self, prompt: str) -> list[Solved]:
        """The solved rows before a question with this prompt; never this prompt itself, whose answer it would tell."""
        return [row for row in self.rows if _plain(row.prompt) != _plain(prompt)][: self.count]

    def context(self, prompt: str) -> str:
        """The solved rows and a prompt, as one text."""
        solved = [f"{row.prompt}{glue(row.prompt)}{row.answer}" for row in self.before(prompt)]
        return BETWEEN.join((*solved, prompt))

    def chat_prompt(self, tokenizer: Tokenizer, prompt: str) -> list[int]:
        """The tokens of the solved rows and a prompt as turns of the chat template."""
        turns = [
            message
            for row in self.before(prompt)
            for message in (Message("user", row.prompt), Message("assistant", row.answer))
        ]
        return tokenizer.encode_prompt([*turns, Message("user", prompt)])


def read_asked(
    config: EvaluationSetConfig, key: str, parse: Parse[Item], needed: str, solved: Callable[[Item], Solved]
) -> tuple[list[Item], list[str], FewShot]:
    """The items of a set as `read_items` makes them, sentences on the rows that are none, and the solved rows before a
    question. `solved` makes one of an item."""
    first = FirstRows(config.few_shot)
    source = Source(path=config.path)
    items, left_out = read_items(source, key, parse, needed, most=config.max_samples, seen=lambda item: first.add(solved(item)))
    asked = (solved(item).prompt for item in items)
    few_shot = FewShot.of(config, key, first, lambda row: solved(parse("", "", row)), asked)
    return items, [*(f"left out: {one}" for one in left_out), *few_shot.notes], few_shot


def _plain(prompt: str) -> str:
    """A prompt as it is compared with others: its white space does not count."""
    return " ".join(prompt.split())
