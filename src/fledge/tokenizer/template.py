"""Chat templates: a conversation is rendered as text segments, each with its own weight in the loss.

Tokens and weights therefore come from one function and cannot drift apart. Training, sampling, chat and the exported
Jinja template all use this module.
"""

import json
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from fledge.errors import FledgeError

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")  # names under which templates and data know reasoning
_PROBE = "fledge probes for reasoning"
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


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


@dataclass(frozen=True)
class TextSegment:
    """A text with its weight in the loss.

    `literal` text is content: strings in it that look like control tokens are encoded as ordinary text, so that no
    message can end a turn. `turn` is the index of the message whose trained text this is; None when the weight is 0 or
    when a Jinja template does not tell.

    A prompt is cut into segments only at control tokens, so that its tokens equal the tokens of the uncut text.
    """

    text: str
    weight: float
    literal: bool
    turn: int | None = None


class TemplateError(FledgeError):
    """The template cannot render the conversation. The row is counted as dropped; the run continues."""


@dataclass(frozen=True)
class ChatTemplate:
    """A way to write conversations. `jinja` is exported for other software; native templates render without it."""

    name: str
    jinja: str
    specials: tuple[str, ...]  # control tokens that the vocabulary must contain
    render_native: Callable[[Sequence[Message], list[Any] | None, bool], list[TextSegment]] | None = None
    variables: tuple[tuple[str, str], ...] = ()  # names that the Jinja text may use: bos_token, eos_token, …

    def render(self, messages: Sequence[Message], tools: str | None = None) -> list[TextSegment]:
        """The whole conversation. An assistant's content, tool calls and end token have the weight 1.

        `tools` is the JSON text of a list of tool descriptions. Raises TemplateError when the template cannot express
        the conversation.
        """
        tool_list = _parse_tools(tools)
        if self.render_native:
            return self.render_native(messages, tool_list, False)
        return self._render_jinja(messages, tool_list)

    def prompt(self, messages: Sequence[Message], tools: str | None = None) -> list[TextSegment]:
        """The conversation up to the point where the assistant speaks, from which generation starts."""
        tool_list = _parse_tools(tools)
        if self.render_native:
            return self.render_native(messages, tool_list, True)
        try:
            history = self._render_jinja(messages, tool_list)
        except TemplateError:  # no training row begins with this history, so no tokens have to agree
            history = []
        history_text = "".join(segment.text for segment in history)
        prompt_text = self._jinja_text(messages, tool_list, add_generation_prompt=True)
        if not prompt_text.startswith(history_text):
            return [TextSegment(prompt_text, 0.0, False)]
        # The text after the last answer is one segment, as in training; the earlier answers are separate segments.
        kept = max((i for i, segment in enumerate(history, 1) if segment.weight), default=0)
        kept_characters = sum(len(segment.text) for segment in history[:kept])
        return [
            *(TextSegment(segment.text, 0.0, False) for segment in history[:kept]),
            TextSegment(prompt_text[kept_characters:], 0.0, False),
        ]

    @property
    def turn_end(self) -> str | None:
        """The control token that ends an answer; None when the template rejects a plain question and answer."""
        try:
            trained_segments = [
                segment for segment in self.render((Message("user", "1"), Message("assistant", "2"))) if segment.weight
            ]
        except TemplateError:
            return None
        ends = [text for text in self.specials if trained_segments and trained_segments[-1].text.rstrip().endswith(text)]
        return max(ends, key=len, default=None)

    @cached_property
    def _compiled(self) -> Any:
        from jinja2 import TemplateSyntaxError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def raise_exception(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation_tag()]
        )
        environment.globals["raise_exception"] = raise_exception
        environment.filters["tojson"] = to_json
        try:
            return environment.from_string(self.jinja)
        except TemplateSyntaxError as error:
            raise FledgeError(f"the tokenizer's chat template is not valid Jinja: {error}", where=self.name) from None

    def _jinja_text(
        self, messages: Sequence[Message], tools: list[Any] | None, add_generation_prompt: bool = False, mark: str = ""
    ) -> str:
        self._check_nothing_lost(messages, tools)
        if not self._has_place_for_reasoning:
            messages = [replace(m, content=m.full_content, reasoning=None) if m.reasoning else m for m in messages]
        return self._jinja(messages, tools, add_generation_prompt, mark)

    @cached_property
    def _has_place_for_reasoning(self) -> bool:
        """Whether the template writes the reasoning of an answer that is given separately from its content."""
        if not any(key in self.jinja for key in REASONING_KEYS):
            return False
        conversation = (Message("user", "1"), Message("assistant", "2", reasoning=_PROBE))
        try:
            return _PROBE in self._jinja(conversation, None)
        except TemplateError:
            return False

    def _jinja(
        self, messages: Sequence[Message], tools: list[Any] | None, add_generation_prompt: bool = False, mark: str = ""
    ) -> str:
        from jinja2 import TemplateError as JinjaError

        try:
            return self._compiled.render(
                messages=_jinja_messages(messages), tools=tools, documents=None,
                add_generation_prompt=add_generation_prompt, generation_mark=mark, **dict(self.variables),
            )  # fmt: skip
        except TemplateError:
            raise
        except (JinjaError, TypeError, ArithmeticError, ValueError, LookupError, AttributeError, RecursionError) as error:
            raise TemplateError(f"the chat template refuses this conversation: {error}") from None

    def _render_jinja(self, messages: Sequence[Message], tools: list[Any] | None) -> list[TextSegment]:
        if _GENERATION.search(self.jinja):
            return self._render_marked(messages, tools)
        return self._render_by_prefix(messages, tools)

    def _check_nothing_lost(self, messages: Sequence[Message], tools: list[Any] | None) -> None:
        """Raises TemplateError when the template never mentions tools or tool calls: it would leave them out silently."""
        if tools and "tools" not in self.jinja:
            raise TemplateError("the chat template does not support tools")
        calling = next((number for number, message in enumerate(messages, 1) if message.tool_calls), None)
        if calling and "tool_calls" not in self.jinja:
            raise TemplateError(f"the chat template does not support the tool calls of turn {calling}")

    def _render_marked(self, messages: Sequence[Message], tools: list[Any] | None) -> list[TextSegment]:
        """Render with a template that marks assistant text by {% generation %}: the marked text is trained.

        The k-th marked text belongs to the k-th assistant turn, provided that there are as many marks as assistant
        turns.
        """
        mark = uuid.uuid5(uuid.NAMESPACE_OID, "\0".join(m.content for m in messages)).hex
        texts = self._jinja_text(messages, tools, mark=mark).split(mark)
        if any(not text.rstrip().endswith(self.specials) for text in texts[1::2][-1:]):
            raise TemplateError("the chat template ends the assistant's turn without a special token")
        turns: list[int | None] = [i for i, message in enumerate(messages) if message.role == "assistant"]
        if len(turns) != len(texts) // 2:
            turns = [None] * (len(texts) // 2)
        segments = (TextSegment(text, float(i % 2), False, turns[i // 2] if i % 2 else None) for i, text in enumerate(texts))
        return [segment for segment in segments if segment.text]

    def _render_by_prefix(self, messages: Sequence[Message], tools: list[Any] | None) -> list[TextSegment]:
        """Render with a template without marks: the trained text is what an assistant turn adds to its generation prompt."""
        segments: list[TextSegment] = []
        full_text, rendered = self._jinja_text(messages, tools), 0
        for i, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before = self._jinja_text(messages[:i], tools, add_generation_prompt=True)
            after = self._jinja_text(messages[: i + 1], tools)
            if not after.startswith(before) or not full_text.startswith(after):
                raise TemplateError(
                    f"the chat template rewrites earlier turns when turn {i + 1} is added, so its trained part is unknown"
                )
            answer = after[len(before) :]
            end = len(answer.rstrip())
            if not answer[:end].endswith(self.specials):
                raise TemplateError("the chat template ends the assistant's turn without a special token")
            segments += [TextSegment(full_text[rendered : len(before)], 0.0, False), TextSegment(answer[:end], 1.0, False, i)]
            rendered = len(before) + end
        segments.append(TextSegment(full_text[rendered:], 0.0, False))
        return [segment for segment in segments if segment.text]


def _parse_json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TemplateError(f"{what} are not JSON: {error}") from None


def _parse_tools(tools: str | None) -> list[Any] | None:
    """The tool descriptions as a list; None for an empty list."""
    tool_list = _parse_json(tools, "the tools") if tools else None
    if tool_list is not None and not isinstance(tool_list, list):
        raise TemplateError(f"the tools are {type(tool_list).__name__}, not a list")
    return tool_list or None


def _jinja_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as Jinja templates expect them: tool calls in OpenAI's form, with parsed arguments."""
    turns: list[dict[str, Any]] = []
    for number, message in enumerate(messages, 1):
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.name is not None:
            turn["name"] = message.name
        if message.reasoning:
            turn |= dict.fromkeys(REASONING_KEYS, message.reasoning)
        if message.tool_calls:
            turn["tool_calls"] = [_jinja_call(call, number) for call in message.tool_calls]
        if message.tool_call_id is not None:
            turn["tool_call_id"] = message.tool_call_id
        turns.append(turn)
    return turns


def _jinja_call(call: ToolCall, number: int) -> dict[str, Any]:
    function = {"name": call.name, "arguments": parse_arguments(call, number)}
    return {**({} if call.id is None else {"id": call.id}), "type": "function", "function": function}


def parse_arguments(call: ToolCall, number: int) -> Any:
    """The parsed arguments of a call in turn `number`. Raises TemplateError when they are not JSON."""
    return _parse_json(call.arguments, f"the arguments of '{call.name}' in turn {number}")


def to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON text, with the options of Jinja's `tojson` that chat templates use. Text is not HTML-escaped."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _generation_tag() -> type:
    """The Jinja tag {% generation %}…{% endgeneration %}, which writes a mark before and after its body."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            before, after = (nodes.Output([nodes.Name("generation_mark", "load")], lineno=line) for _ in range(2))
            return [before, *body, after]

    Generation.tags = {"generation"}
    return Generation
