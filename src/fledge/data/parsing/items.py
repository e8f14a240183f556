"""Items: what a row of a file means, whatever its columns are called. An item knows its texts and how it is written down."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import orjson

from fledge.tokenizer.template import Message, ToolCall

OPTIONAL_FIELDS = ("reasoning", "name", "tool_call_id")  # of a message, beside role, content, tool calls and weight


@dataclass(frozen=True)
class Document:
    """Plain text."""

    text: str

    tag: ClassVar[str] = "document"
    label: ClassVar[str] = "document"
    answers: ClassVar[tuple[str, ...]] = ()
    endings: ClassVar[tuple[Message, ...]] = ()

    def texts(self, system: bool = True) -> list[str]:
        """The text, as a list of one. A document has no system turn, so `system` changes nothing."""
        return [self.text]

    def map_texts(self, change: Callable[[str], str]) -> Self:
        """The document with its text changed; the document itself if the text does not change."""
        text = change(self.text)
        return self if text == self.text else replace(self, text=text)

    def with_system(self, prompt: str) -> Self:
        """The document itself: it has no turns to put a system prompt before."""
        return self

    @property
    def question(self) -> str:
        """The complete text, which must not be trained on if the document belongs to an evaluation set."""
        return self.text

    @property
    def final_answer(self) -> str:
        """Empty: a document answers nothing."""
        return ""

    def description(self) -> str:
        """A short description of the item in words."""
        return f"a {self.label} of {len(self.text):,} characters"

    def fields(self) -> tuple[Any, ...]:
        """The fields as plain data, for `serialize`."""
        return (self.text,)

    @classmethod
    def from_fields(cls, *fields: Any) -> Self:
        """The item with these `fields`."""
        (text,) = fields
        return cls(text)


class Dialogue(ABC):
    """Abstract class of items that consist of turns, alternative answers, and tools.

    `turns`: an optional system turn, then rounds of question and answer. `answers`: alternative answers to the turns; empty
    if the last turn is the answer. `tools`: JSON text of a list of tool descriptions, or None."""

    tag: ClassVar[str]  # names the type in `serialize`
    label: ClassVar[str]
    tools: str | None

    @property
    @abstractmethod
    def turns(self) -> tuple[Message, ...]:
        """The turns before the answers."""

    @property
    @abstractmethod
    def answers(self) -> tuple[str, ...]:
        """The alternative answers to the turns; empty if the last turn is the answer."""

    @property
    def endings(self) -> tuple[Message, ...]:
        """The alternative answers as messages."""
        return tuple(Message("assistant", answer) for answer in self.answers)

    @abstractmethod
    def map_texts(self, change: Callable[[str], str]) -> Self:
        """The item with every text changed. Tools and tool calls stay as they are."""

    @abstractmethod
    def with_system(self, prompt: str) -> Self:
        """The item behind a system prompt, unless it has one."""

    @abstractmethod
    def fields(self) -> tuple[Any, ...]:
        """The fields as plain data, for `serialize`."""

    @classmethod
    @abstractmethod
    def from_fields(cls, *fields: Any) -> Self:
        """The item with these `fields`."""

    def texts(self, system: bool = True) -> list[str]:
        """All texts in order, answers last. `system`: with the system turn, which many rows may share and the recipe may
        have added."""
        turns = [turn for turn in self.turns if system or turn.role != "system"]
        return [text for message in (*turns, *self.endings) for text in _texts_of(message)]

    @property
    def question(self) -> str:
        """The first question; empty if no turn is the user's."""
        return next((turn.content for turn in self.turns if turn.role == "user"), "")

    @property
    def final_answer(self) -> str:
        """The answer that the row ends with; of several answers, the first."""
        return self.answers[0] if self.answers else self.turns[-1].content

    def description(self) -> str:
        """A short description of the item in words."""
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

    def map_texts(self, change: Callable[[str], str]) -> Self:
        """The conversation with the content of each message changed. Tools and tool calls stay as they are."""
        messages = _map_contents(self.messages, change)
        return self if messages is self.messages else replace(self, messages=messages)

    def with_system(self, prompt: str) -> Self:
        """The conversation behind a system prompt, unless it has one."""
        return replace(self, messages=_with_system(self.messages, prompt))

    def fields(self) -> tuple[Any, ...]:
        """The fields as plain data, for `serialize`."""
        return _pack(self.messages), self.tools

    @classmethod
    def from_fields(cls, *fields: Any) -> Self:
        """The item with these `fields`."""
        messages, tools = fields
        return cls(_unpack(messages), tools)


@dataclass(frozen=True, kw_only=True)
class PreferencePair(Dialogue):
    """Turns that end with the user's (or a tool's result), and two answers of which one is preferred."""

    prompt: tuple[Message, ...] = field(kw_only=False)
    chosen: str = field(kw_only=False)
    rejected: str = field(kw_only=False)
    tools: str | None = field(default=None, kw_only=False)
    reasoning: tuple[str | None, ...] = field(default=(), kw_only=False)  # of chosen and rejected, kept apart from the answers
    margin: float | None = None  # by how much the chosen answer is to be rewarded more, where the data says it

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

    @property
    def endings(self) -> tuple[Message, ...]:
        """The alternative answers as messages."""
        reasoning = self.reasoning or (None, None)
        return tuple(Message("assistant", text, reasoning=own) for text, own in zip(self.answers, reasoning, strict=True))

    def map_texts(self, change: Callable[[str], str]) -> Self:
        """The pair with the content of each turn and both answers changed. Tools and tool calls stay as they are."""
        prompt = _map_contents(self.prompt, change)
        reasoning = tuple(_map_reasoning(text, change) for text in self.reasoning)
        return replace(self, prompt=prompt, chosen=change(self.chosen), rejected=change(self.rejected), reasoning=reasoning)

    def with_system(self, prompt: str) -> Self:
        """The pair behind a system prompt, unless it has one."""
        return replace(self, prompt=_with_system(self.prompt, prompt))

    def fields(self) -> tuple[Any, ...]:
        """The fields as plain data, for `serialize`."""
        fields = (_pack(self.prompt), self.chosen, self.rejected, self.tools)
        if self.margin is not None:
            return (*fields, self.reasoning, self.margin)
        return (*fields, self.reasoning) if self.reasoning else fields

    @classmethod
    def from_fields(cls, *fields: Any) -> Self:
        """The item with these `fields`."""
        prompt, chosen, rejected, tools, *more = fields
        reasoning, margin = [*more, *((), None)[len(more) :]]
        return cls(_unpack(prompt), chosen, rejected, tools, tuple(reasoning), margin=margin)


@dataclass(frozen=True)
class BinaryFeedback(Dialogue):
    """Turns that end with the user's (or a tool's result), and an answer that is desirable or not (as KTO reads it)."""

    prompt: tuple[Message, ...]
    answer: str
    desirable: bool
    tools: str | None = None
    reasoning: str | None = None  # of the answer, where the data keeps it apart

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

    @property
    def endings(self) -> tuple[Message, ...]:
        """The one answer as a message."""
        return (Message("assistant", self.answer, reasoning=self.reasoning),)

    def map_texts(self, change: Callable[[str], str]) -> Self:
        """The feedback with the content of each turn and the answer changed. Tools and tool calls stay as they are."""
        prompt, reasoning = _map_contents(self.prompt, change), _map_reasoning(self.reasoning, change)
        return replace(self, prompt=prompt, answer=change(self.answer), reasoning=reasoning)

    def with_system(self, prompt: str) -> Self:
        """The feedback behind a system prompt, unless it has one."""
        return replace(self, prompt=_with_system(self.prompt, prompt))

    def fields(self) -> tuple[Any, ...]:
        """The fields as plain data, for `serialize`."""
        fields = (_pack(self.prompt), self.answer, self.desirable, self.tools)
        return (*fields, self.reasoning) if self.reasoning is not None else fields

    @classmethod
    def from_fields(cls, *fields: Any) -> Self:
        """The item with these `fields`."""
        prompt, answer, desirable, tools, *reasoning = fields
        return cls(_unpack(prompt), answer, desirable, tools, *reasoning)


Item = Document | Conversation | PreferencePair | BinaryFeedback
ITEM_TYPES: dict[str, type[Item]] = {
    item_type.tag: item_type for item_type in (Document, Conversation, PreferencePair, BinaryFeedback)
}


def own_text(item: Item) -> str:
    """All texts of an item but its system turn, a line each: what its language and its near duplicates are judged by."""
    return "\n".join(item.texts(system=False))


def serialize(item: Item) -> bytes:
    """An item as one line of JSON: its tag, then its fields. Raises TypeError for text without a UTF-8 form."""
    return orjson.dumps((item.tag, *item.fields()))


def deserialize(line: bytes) -> Item:
    """The item that `serialize` wrote."""
    tag, *fields = orjson.loads(line)
    return ITEM_TYPES[tag].from_fields(*fields)


def _texts_of(message: Message) -> list[str]:
    return [message.content] if message.reasoning is None else [message.reasoning, message.content]


def _map_contents(turns: tuple[Message, ...], change: Callable[[str], str]) -> tuple[Message, ...]:
    """The turns with their contents and reasoning changed; the turns themselves where every text stays as it is."""
    changed = tuple(_map_content(turn, change) for turn in turns)
    return turns if all(before is after for before, after in zip(turns, changed, strict=True)) else changed


def _map_content(turn: Message, change: Callable[[str], str]) -> Message:
    content, reasoning = change(turn.content), _map_reasoning(turn.reasoning, change)
    if content == turn.content and reasoning == turn.reasoning:
        return turn
    return replace(turn, content=content, reasoning=reasoning)


def _map_reasoning(reasoning: str | None, change: Callable[[str], str]) -> str | None:
    return None if reasoning is None else change(reasoning)


def _with_system(turns: tuple[Message, ...], prompt: str) -> tuple[Message, ...]:
    return turns if turns[0].role == "system" else (Message("system", prompt), *turns)


def _pack(turns: Sequence[Message]) -> list[tuple]:
    """Turns as (role, content); tool calls, weight and the other fields are behind them where there are any."""
    return [_pack_turn(turn) for turn in turns]


def _pack_turn(turn: Message) -> tuple:
    is_plain = turn.reasoning is None and turn.name is None and turn.tool_call_id is None
    if is_plain and not turn.tool_calls and turn.weight is None:
        return turn.role, turn.content
    more = {name: value for name in OPTIONAL_FIELDS if (value := getattr(turn, name)) is not None}
    calls = [(call.name, call.arguments, *([] if call.id is None else [call.id])) for call in turn.tool_calls]
    return (turn.role, turn.content, calls, turn.weight, *([more] if more else []))


def _unpack(turns: Sequence[list]) -> tuple[Message, ...]:
    """The messages of `_pack`."""
    return tuple(_unpack_turn(*turn) for turn in turns)


def _unpack_turn(
    role: str, content: str, calls: Sequence[list] = (), weight: float | None = None, more: Mapping[str, str] | None = None
) -> Message:
    return Message(role, content, tuple(ToolCall(*call) for call in calls), weight, **(more or {}))
