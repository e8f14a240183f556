"""Items: what a row of a file means, whatever its columns are called. An item knows its texts and how it is written down."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import orjson

from fledge.tokenizer.template import Message, ToolCall


@dataclass(frozen=True)
class Document:
    """Plain text."""

    text: str

    tag: ClassVar[str] = "document"
    label: ClassVar[str] = "document"

    def texts(self, system: bool = True) -> list[str]:
        """The text, as a list of one. A document has no system turn, so `system` changes nothing."""
        return [self.text]

    def with_system(self, prompt: str) -> "Document":
        """The document itself: it has no turns to put a system prompt before."""
        return self

    @property
    def question(self) -> str:
        """The whole text: what must not be trained on where the document belongs to an evaluation set."""
        return self.text

    @property
    def final_answer(self) -> str:
        """Empty: a document answers nothing."""
        return ""

    def description(self) -> str:
        """What the item is, in words."""
        return f"a {self.label} of {len(self.text):,} characters"

    def fields(self) -> tuple[Any, ...]:
        """The fields as plain data, for `serialize`."""
        return (self.text,)

    @classmethod
    def from_fields(cls, text: str) -> "Document":
        """The item with these `fields`."""
        return cls(text)


class Dialogue:
    """What items made of turns have in common: `turns`, answers that may follow them, and tools.

    `turns` is an optional system turn, then rounds of question and answer. `answers` are alternative answers to the turns;
    there are none where the last turn is the answer. `tools` is the JSON text of a list of tool descriptions, or None."""

    tag: ClassVar[str]
    label: ClassVar[str]
    tools: str | None

    @property
    def turns(self) -> tuple[Message, ...]:
        """The turns that a row begins with."""
        raise NotImplementedError

    @property
    def answers(self) -> tuple[str, ...]:
        """The answers that follow the turns; none where the last turn is the answer."""
        raise NotImplementedError

    def texts(self, system: bool = True) -> list[str]:
        """All texts in order, answers last. `system`: with the system turn, which many rows may share and the recipe may
        have added."""
        return [*(turn.content for turn in self.turns if system or turn.role != "system"), *self.answers]

    @property
    def question(self) -> str:
        """The first question; empty where no turn is the user's."""
        return next((turn.content for turn in self.turns if turn.role == "user"), "")

    @property
    def final_answer(self) -> str:
        """The answer that the row ends with; of several answers, the first."""
        return self.answers[0] if self.answers else self.turns[-1].content

    def description(self) -> str:
        """What the item is, in words."""
        return f"a {self.label} with turns {', '.join(turn.role for turn in self.turns)}"


@dataclass(frozen=True)
class Conversation(Dialogue):
    """Turns that end with an assistant's answer; an optional system turn comes first. `tools` is JSON text: a list."""

    messages: tuple[Message, ...]
    tools: str | None = None

    tag: ClassVar[str] = "conversation"
    label: ClassVar[str] = "conversation"

    @property
    def turns(self) -> tuple[Message, ...]:
        """All messages."""
        return self.messages

    @property
    def answers(self) -> tuple[str, ...]:
        """None: the last message is the answer."""
        return ()

    def with_system(self, prompt: str) -> "Conversation":
        """The conversation behind a system prompt, unless it has one."""
        return replace(self, messages=_with_system(self.messages, prompt))

    def fields(self) -> tuple[Any, ...]:
        """The fields as plain data, for `serialize`."""
        return _pack(self.messages), self.tools

    @classmethod
    def from_fields(cls, messages: Sequence[list], tools: str | None) -> "Conversation":
        """The item with these `fields`."""
        return cls(_unpack(messages), tools)


@dataclass(frozen=True)
class PreferencePair(Dialogue):
    """Turns that end with the user's (or a tool's result), and two answers of which one is preferred."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    tools: str | None = None

    tag: ClassVar[str] = "preference"
    label: ClassVar[str] = "preference pair"

    @property
    def turns(self) -> tuple[Message, ...]:
        """The prompt."""
        return self.prompt

    @property
    def answers(self) -> tuple[str, ...]:
        """Chosen, rejected."""
        return self.chosen, self.rejected

    def with_system(self, prompt: str) -> "PreferencePair":
        """The pair behind a system prompt, unless it has one."""
        return replace(self, prompt=_with_system(self.prompt, prompt))

    def fields(self) -> tuple[Any, ...]:
        """The fields as plain data, for `serialize`."""
        return _pack(self.prompt), self.chosen, self.rejected, self.tools

    @classmethod
    def from_fields(cls, prompt: Sequence[list], chosen: str, rejected: str, tools: str | None) -> "PreferencePair":
        """The item with these `fields`."""
        return cls(_unpack(prompt), chosen, rejected, tools)


@dataclass(frozen=True)
class BinaryFeedback(Dialogue):
    """Turns that end with the user's (or a tool's result), and an answer that is desirable or not (as KTO reads it)."""

    prompt: tuple[Message, ...]
    answer: str
    desirable: bool
    tools: str | None = None

    tag: ClassVar[str] = "labelled"
    label: ClassVar[str] = "labelled answer"

    @property
    def turns(self) -> tuple[Message, ...]:
        """The prompt."""
        return self.prompt

    @property
    def answers(self) -> tuple[str, ...]:
        """The one answer."""
        return (self.answer,)

    def with_system(self, prompt: str) -> "BinaryFeedback":
        """The feedback behind a system prompt, unless it has one."""
        return replace(self, prompt=_with_system(self.prompt, prompt))

    def fields(self) -> tuple[Any, ...]:
        """The fields as plain data, for `serialize`."""
        return _pack(self.prompt), self.answer, self.desirable, self.tools

    @classmethod
    def from_fields(cls, prompt: Sequence[list], answer: str, desirable: bool, tools: str | None) -> "BinaryFeedback":
        """The item with these `fields`."""
        return cls(_unpack(prompt), answer, desirable, tools)


Item = Document | Conversation | PreferencePair | BinaryFeedback
ITEM_TYPES: dict[str, type[Item]] = {
    item_type.tag: item_type for item_type in (Document, Conversation, PreferencePair, BinaryFeedback)
}


def own_text(item: Item) -> str:
    """All texts of an item but its system turn, a line each: what its language and its near duplicates are judged by."""
    return "\n".join(item.texts(system=False))


def serialize(item: Item) -> bytes:
    """An item as one line of JSON: its tag, then its fields. TypeError for text that UTF-8 cannot say."""
    return orjson.dumps((item.tag, *item.fields()))


def deserialize(line: bytes) -> Item:
    """The item that `serialize` wrote."""
    tag, *fields = orjson.loads(line)
    return ITEM_TYPES[tag].from_fields(*fields)


def _with_system(turns: tuple[Message, ...], prompt: str) -> tuple[Message, ...]:
    return turns if turns[0].role == "system" else (Message("system", prompt), *turns)


def _pack(turns: Sequence[Message]) -> list[tuple]:
    """Turns as (role, content), with tool calls and weight behind them where there are any."""
    return [
        (turn.role, turn.content, [(call.name, call.arguments) for call in turn.tool_calls], turn.weight)
        if turn.tool_calls or turn.weight is not None
        else (turn.role, turn.content)
        for turn in turns
    ]


def _unpack(turns: Sequence[list]) -> tuple[Message, ...]:
    return tuple(
        Message(*turn) if len(turn) == 2 else Message(turn[0], turn[1], tuple(ToolCall(*call) for call in turn[2]), turn[3])
        for turn in turns
    )
