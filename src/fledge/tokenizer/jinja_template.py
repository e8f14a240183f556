"""A chat template in Jinja: the messages as it expects them, and the text that it writes."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from fledge.errors import FledgeError, first_line
from fledge.tokenizer.message import REASONING_KEYS, Message, TemplateError, ToolCall, parse_arguments

_PROBE = "fledge probes for reasoning"


@dataclass(frozen=True)
class JinjaTemplate:
    """A Jinja text with the names of tokens that it may use (`variables`: bos_token, eos_token, …).

    `date`: what `strftime_now` writes; None is the present time.
    """

    name: str
    jinja: str
    variables: tuple[tuple[str, str], ...] = ()
    date: datetime.date | None = None

    def text(self, messages: Sequence[Message], tools: list[Any] | None, generate: bool = False, mark: str = "") -> str:
        """The conversation as text; `generate`: up to the point where the assistant speaks. `mark`: what {% generation %} tags
        write. Raises TemplateError when the template refuses the conversation."""
        self._check_nothing_lost(messages, tools)
        if any(message.reasoning for message in messages):
            messages = [self._with_reasoning(message) for message in messages]
        return self._text(messages, tools, generate, mark)

    def _with_reasoning(self, message: Message) -> Message:
        """The message with its reasoning where the template writes it: as a field, in the content, or nowhere."""
        if not message.reasoning or self._writes_reasoning:
            return message
        return replace(message, content=message.full_content if self._writes_thoughts else message.content, reasoning=None)

    @cached_property
    def _writes_reasoning(self) -> bool:
        """Whether the template writes the reasoning of an answer that is given separately from its content."""
        return any(key in self.jinja for key in REASONING_KEYS) and self._writes(Message("assistant", "2", reasoning=_PROBE))

    @cached_property
    def _writes_thoughts(self) -> bool:
        """Whether the template writes the reasoning of an answer that is given in its content."""
        return self._writes(Message("assistant", Message("assistant", "2", reasoning=_PROBE).full_content))

    def _writes(self, answer: Message) -> bool:
        try:
            return _PROBE in self._text((Message("user", "1"), answer), None)
        except TemplateError:
            return False

    def _text(self, messages: Sequence[Message], tools: list[Any] | None, generate: bool = False, mark: str = "") -> str:
        """The text; where a template joins arguments of calls to its text, they are given as JSON text instead of values."""
        turns = _turns(messages)
        try:
            return self._rendered(turns, tools, generate, mark)
        except TemplateError:
            if not any(message.tool_calls for message in messages):
                raise
            try:
                return self._rendered(_turns(messages, arguments_as_text=True), tools, generate, mark)
            except TemplateError:
                pass
            raise

    def _rendered(self, turns: list[dict[str, Any]], tools: list[Any] | None, generate: bool, mark: str) -> str:
        template = self._compiled
        environment: Any = template.environment
        environment.start(sum(len(turn["content"]) for turn in turns) + (len(str(tools)) if tools else 0))
        try:
            return template.render(
                messages=turns, tools=tools, documents=None, add_generation_prompt=generate, generation_mark=mark,
                **dict(self.variables),
            )  # fmt: skip
        except Exception as error:  # a template is foreign code, so anything may happen in it
            raise TemplateError(f"the chat template refuses this conversation: {_cause(error)}") from None

    @cached_property
    def _compiled(self) -> Any:
        from fledge.tokenizer.jinja_environment import ChatEnvironment

        try:
            return ChatEnvironment(self._now).from_string(self.jinja)
        except Exception as error:  # syntax errors, and what Python raises for absurdly nested text
            raise FledgeError(f"the tokenizer's chat template is not valid Jinja: {_cause(error)}", where=self.name) from None

    def _now(self) -> datetime.datetime:
        now = datetime.datetime.now()
        return now if self.date is None else datetime.datetime.combine(self.date, datetime.time())

    def _check_nothing_lost(self, messages: Sequence[Message], tools: list[Any] | None) -> None:
        """Raises TemplateError when the template never mentions tools or tool calls: it would leave them out silently."""
        if tools and "tools" not in self.jinja:
            raise TemplateError("the chat template does not support tools")
        calling = next((number for number, message in enumerate(messages, 1) if message.tool_calls), None)
        if calling and "tool_calls" not in self.jinja:
            raise TemplateError(f"the chat template does not support the tool calls of turn {calling}")


def _cause(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it nests too deeply"
    return first_line(error)


def _turns(messages: Sequence[Message], arguments_as_text: bool = False) -> list[dict[str, Any]]:
    """The messages as Jinja templates expect them: tool calls in OpenAI's form, with parsed arguments."""
    turns: list[dict[str, Any]] = []
    for number, message in enumerate(messages, 1):
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.name is not None:
            turn["name"] = message.name
        if message.reasoning:
            turn |= dict.fromkeys(REASONING_KEYS, message.reasoning)
        if message.tool_calls:
            turn["tool_calls"] = [_call(call, number, arguments_as_text) for call in message.tool_calls]
        if message.tool_call_id is not None:
            turn["tool_call_id"] = message.tool_call_id
        turns.append(turn)
    return turns


def _call(call: ToolCall, number: int, as_text: bool) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments if as_text else parse_arguments(call, number)}
    return {**({} if call.id is None else {"id": call.id}), "type": "function", "function": function}
