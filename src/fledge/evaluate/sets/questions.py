"""Conversations whose last turn is the reference answer, and the answers of a model to the turns before it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from fledge.data.parsing.columns import RowError
from fledge.data.parsing.items import Conversation
from fledge.data.parsing.rows import parse_conversation, parse_row
from fledge.evaluate.answers import AnsweredRow
from fledge.evaluate.sets.rows import read_items
from fledge.generation import FinishReason
from fledge.recipe import Source
from fledge.tokenizer import Tokenizer


class ScoredQuestion(NamedTuple):
    """A conversation whose last turn is the reference answer, where it stands, its group and its held-out keys."""

    where: str
    conversation: Conversation
    group: str
    held_out: tuple[str, ...]

    @property
    def question(self) -> str:
        """The last turn before the answer."""
        return self.conversation.messages[-2].content

    @property
    def expected(self) -> str:
        """The reference answer."""
        return self.conversation.messages[-1].content

    def prompt(self, tokenizer: Tokenizer) -> list[int]:
        """The tokens that an answer starts from."""
        return tokenizer.encode_prompt(self.conversation.messages[:-1], self.conversation.tools)

    def answered(self, given: str, finish_reason: FinishReason) -> AnsweredRow:
        """The question with an answer."""
        return AnsweredRow(
            where=self.where,
            question=self.question,
            expected=self.expected,
            given=given,
            finish_reason=finish_reason,
            group=self.group,
            held_out=self.held_out,
        )


def read_questions(source: Source, key: str, most: int | None = None) -> tuple[list[ScoredQuestion], list[str]]:
    """The questions of a file or folder of conversations, at most `most` of them spread evenly, and a sentence for each
    reason why rows are none. Raises FledgeError if there is none."""

    def parse(file: str, where: str, row: Any) -> ScoredQuestion:
        return _question(where, row, source)

    return read_items(source, key, parse, "a row is a conversation that ends with the reference answer", most=most)


def _question(where: str, value: Any, source: Source) -> ScoredQuestion:
    item = parse_row(value, source, parse_conversation)
    if not isinstance(item, Conversation) or item.messages[-1].tool_calls:
        raise RowError("the answer is a tool call")
    row = value if isinstance(value, dict) else {}
    group, held_out = row.get("group"), row.get("held_out")
    keys: Sequence[Any] = held_out if isinstance(held_out, list | tuple) else ()
    return ScoredQuestion(where, item, str(group) if group is not None else "", tuple(map(str, keys)))
