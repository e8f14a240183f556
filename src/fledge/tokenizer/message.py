"""Messages, and what a chat template makes of them: text segments with weights, and notes about what it changed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fledge.errors import FledgeError

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")  # names under which templates and data know reasoning
REFUSED = "the chat template refuses it"
LEFT_OUT = "the chat template leaves out an answer"
UNENDED = "the chat template does not end an answer"
UNLOCATED = "the chat template does not show where an answer begins"
TEMPLATE_REASONS = (REFUSED, LEFT_OUT, UNENDED, UNLOCATED)


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool by the assistant. `arguments` is the text of a JSON object. `id` names the call, if the data does."""

    name: str
    arguments: str
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn. `role` is system, user, assistant, tool (the result of a call) or another role that the template knows.

    `tool_calls` follow an assistant's content. `weight` is the weight of this turn in the loss; None leaves it to the
    template. `reasoning` is what the assistant thought before it wrote the content, where the data keeps it separately.
    `name`: of the speaker or of the tool. `tool_call_id`: the call that this tool result answers.
    """

    role: str = field(kw_only=False)
    content: str = field(kw_only=False)
    tool_calls: tuple[ToolCall, ...] = field(default=(), kw_only=False)
    weight: float | None = field(default=None, kw_only=False)
    reasoning: str | None = None
    name: str | None = None
    tool_call_id: str | None = None

    @property
    def full_content(self) -> str:
        """The content behind its reasoning in `<think>` tags: the text for templates without a place for reasoning."""
        return f"<think>\n{self.reasoning}\n</think>\n\n{self.content}" if self.reasoning else self.content


Messages = str | Sequence[Mapping[str, str] | Message]
"""A conversation as a user of the Python API writes it: one message of the user, or messages, also as mappings."""
ROLES = ("system", "user", "assistant", "tool")


def as_messages(messages: Messages) -> list[Message]:
    """Convert one user message, or mappings with `role` and `content`, to messages. Raises FledgeError for anything else."""
    if isinstance(messages, str):
        return [Message("user", messages)]
    conversation = []
    for number, message in enumerate(messages, 1):
        location = f"message {number}"
        if isinstance(message, Message):
            conversation.append(message)
            continue
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise FledgeError("a message has the keys role and content, and no others", where=location)
        if message["role"] not in ROLES:
            raise FledgeError(f"unknown role '{message['role']}'", where=location, hint=f"write one of {', '.join(ROLES)}")
        if not isinstance(message["content"], str):
            raise FledgeError("the content is no text", where=location)
        conversation.append(Message(message["role"], message["content"]))
    if not conversation:
        raise FledgeError("the conversation is empty", where="messages")
    return conversation


class TextSegment(NamedTuple):
    """A text with its weight in the loss.

    `literal` text is content: strings in it that look like control tokens are encoded as ordinary text, so that no
    message can end a turn. `turn` is the index of the assistant's message whose text this is; None for other text, and where a
    Jinja template does not tell.
    """

    text: str
    weight: float
    literal: bool
    turn: int | None = None


@dataclass(frozen=True)
class Note:
    """Something about a rendering that its reader should know: a `reason`, which is counted, and a detail about this row."""

    reason: str
    detail: str
    amount: int = 0


@dataclass(frozen=True)
class Rendering:
    """A conversation as the template writes it: its segments, and notes about what the template left out or changed."""

    segments: list[TextSegment]
    notes: tuple[Note, ...] = ()


class TemplateError(FledgeError):
    """The template cannot render the conversation, or not so that its answers can be trained.

    `reason`: one of TEMPLATE_REASONS. The row is counted as dropped; the run continues.
    """

    def __init__(self, what: str, reason: str = REFUSED, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what, where=where, hint=hint)
        self.reason = reason


def _parse_json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TemplateError(f"{what} are not JSON: {error}") from None


def parse_tools(tools: str | None) -> list[Any] | None:
    """The tool descriptions as a list; None for an empty list."""
    tool_list = _parse_json(tools, "the tools") if tools else None
    if tool_list is not None and not isinstance(tool_list, list):
        raise TemplateError(f"the tools are {type(tool_list).__name__}, not a list")
    return tool_list or None


def parse_arguments(call: ToolCall, number: int) -> Any:
    """The parsed arguments of a call in turn `number`. Raises TemplateError when they are not JSON."""
    return _parse_json(call.arguments, f"the arguments of '{call.name}' in turn {number}")


def to_json(
    value: Any, ensure_ascii: bool = False, indent: int | str | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON text, with the options of Jinja's `tojson` that chat templates use. Text is not HTML-escaped."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
