"""Chat templates: from messages to pieces of text that carry their own supervision.

A piece says whether it is trained and whether it is content, so tokens and weights come from the same few lines and
cannot drift apart. Training, sampling, chat and the exported Jinja template all render through here.
"""

import json
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

from fledge.errors import FledgeError

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


@dataclass(frozen=True)
class ToolCall:
    """A call that an assistant makes. `arguments` is the text of a JSON object."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Message:
    """One turn. `role` is system, user, assistant, tool (what a call gave) or another role that the template knows.

    `tool_calls` follow an assistant's content. `weight` is this turn's weight in the loss; None: as the template says.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    weight: float | None = None


@dataclass(frozen=True)
class TextSegment:
    """Text with its weight in the loss. `literal` text holds content: strings in it that look like control tokens
    are encoded as ordinary text, so that nobody can end a turn from inside a message. `turn` is the index of the message
    that this is the trained text of; None where the weight is 0, and where a Jinja template does not tell.

    A prompt's pieces are cut only at control tokens, so that they become the same tokens as the whole text does."""

    text: str
    weight: float
    literal: bool
    turn: int | None = None


class TemplateError(FledgeError):
    """A conversation that this template cannot render; the row is accounted for, not the run stopped."""


@dataclass(frozen=True)
class ChatTemplate:
    """A way to write conversations. `jinja` is exported for others; native templates render without it."""

    name: str
    jinja: str
    specials: tuple[str, ...]  # control tokens it needs in the vocabulary
    render_native: Callable[[Sequence[Message], list[Any] | None, bool], list[TextSegment]] | None = None
    variables: tuple[tuple[str, str], ...] = ()  # what the Jinja text may name: bos_token, eos_token, …

    def render(self, messages: Sequence[Message], tools: str | None = None) -> list[TextSegment]:
        """The whole conversation; an assistant's content, its tool calls and its end token have weight 1.

        `tools` is the JSON text of a list of tool descriptions. Raises TemplateError for what the template has no place for.
        """
        described = _described(tools)
        if self.render_native:
            return self.render_native(messages, described, False)
        return self._render_jinja(messages, described)

    def prompt(self, messages: Sequence[Message], tools: str | None = None) -> list[TextSegment]:
        """The conversation up to the point where the assistant speaks: what generation starts from."""
        described = _described(tools)
        if self.render_native:
            return self.render_native(messages, described, True)
        try:
            history = self._render_jinja(messages, described)
        except TemplateError:  # no training row begins like this, so there is nothing to agree with
            history = []
        written = "".join(piece.text for piece in history)
        whole = self._jinja_text(messages, described, add_generation_prompt=True)
        if not whole.startswith(written):
            return [TextSegment(whole, 0.0, False)]
        # What follows the last answer is one piece, as in training; the answers before it are pieces of their own.
        last = max((i for i, piece in enumerate(history, 1) if piece.weight), default=0)
        done = sum(len(piece.text) for piece in history[:last])
        return [*(TextSegment(piece.text, 0.0, False) for piece in history[:last]), TextSegment(whole[done:], 0.0, False)]

    @property
    def turn_end(self) -> str | None:
        """The control token that ends an answer; None where the template refuses a plain question and answer."""
        try:
            trained = [piece for piece in self.render((Message("user", "1"), Message("assistant", "2"))) if piece.weight]
        except TemplateError:
            return None
        ends = [text for text in self.specials if trained and trained[-1].text.rstrip().endswith(text)]
        return max(ends, key=len, default=None)

    @cached_property
    def _compiled(self) -> Any:
        from jinja2 import TemplateSyntaxError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation_tag()]
        )
        environment.globals["raise_exception"] = refuse
        environment.filters["tojson"] = _to_json
        try:
            return environment.from_string(self.jinja)
        except TemplateSyntaxError as error:
            raise FledgeError(f"the tokenizer's chat template is not valid Jinja: {error}", where=self.name) from None

    def _jinja_text(
        self, messages: Sequence[Message], tools: list[Any] | None, add_generation_prompt: bool = False, mark: str = ""
    ) -> str:
        from jinja2 import TemplateError as JinjaError

        self._check_nothing_lost(messages, tools)
        try:
            return self._compiled.render(
                messages=_turns(messages), tools=tools, documents=None,
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
        """A template that never names tools or tool calls would leave them out without a word."""
        if tools and "tools" not in self.jinja:
            raise TemplateError("the chat template has no place for tools")
        calling = next((number for number, message in enumerate(messages, 1) if message.tool_calls), None)
        if calling and "tool_calls" not in self.jinja:
            raise TemplateError(f"the chat template has no place for the tool calls of turn {calling}")

    def _render_marked(self, messages: Sequence[Message], tools: list[Any] | None) -> list[TextSegment]:
        """Templates that mark assistant text by {% generation %}: what is inside is trained.

        The k-th marked text belongs to the k-th assistant turn where there are as many of the one as of the other.
        """
        mark = uuid.uuid5(uuid.NAMESPACE_OID, "\0".join(m.content for m in messages)).hex
        parts = self._jinja_text(messages, tools, mark=mark).split(mark)
        if any(not text.rstrip().endswith(self.specials) for text in parts[1::2][-1:]):
            raise TemplateError("the chat template ends the assistant's turn without a special token")
        turns: list[int | None] = [i for i, message in enumerate(messages) if message.role == "assistant"]
        if len(turns) != len(parts) // 2:
            turns = [None] * (len(parts) // 2)
        pieces = (TextSegment(text, float(i % 2), False, turns[i // 2] if i % 2 else None) for i, text in enumerate(parts))
        return [piece for piece in pieces if piece.text]

    def _render_by_prefix(self, messages: Sequence[Message], tools: list[Any] | None) -> list[TextSegment]:
        """Templates without marks: the assistant's text is what a turn adds to its generation prompt."""
        pieces: list[TextSegment] = []
        whole, done = self._jinja_text(messages, tools), 0
        for i, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before = self._jinja_text(messages[:i], tools, add_generation_prompt=True)
            after = self._jinja_text(messages[: i + 1], tools)
            if not after.startswith(before) or not whole.startswith(after):
                raise TemplateError(
                    f"the chat template rewrites earlier turns when turn {i + 1} is added, so its trained part is unknown"
                )
            answer = after[len(before) :]
            end = len(answer.rstrip())
            if not answer[:end].endswith(self.specials):
                raise TemplateError("the chat template ends the assistant's turn without a special token")
            pieces += [TextSegment(whole[done : len(before)], 0.0, False), TextSegment(answer[:end], 1.0, False, i)]
            done = len(before) + end
        pieces.append(TextSegment(whole[done:], 0.0, False))
        return [piece for piece in pieces if piece.text]


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TemplateError(f"{what} are not JSON: {error}") from None


def _described(tools: str | None) -> list[Any] | None:
    """The tool descriptions as templates get them; an empty list is none."""
    described = _parsed(tools, "the tools") if tools else None
    if described is not None and not isinstance(described, list):
        raise TemplateError(f"the tools are {type(described).__name__}, not a list")
    return described or None


def _turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as Jinja templates get them: tool calls in OpenAI's form, their arguments parsed."""
    turns: list[dict[str, Any]] = []
    for number, message in enumerate(messages, 1):
        turns.append({"role": message.role, "content": message.content})
        if message.tool_calls:
            turns[-1]["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": _arguments(call, number)}}
                for call in message.tool_calls
            ]
    return turns


def _arguments(call: ToolCall, number: int) -> Any:
    return _parsed(call.arguments, f"the arguments of '{call.name}' in turn {number}")


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's `tojson` with the options that chat templates use; text stays as it is, without HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _generation_tag() -> type:
    """The Jinja tag {% generation %}…{% endgeneration %}: puts a mark on either side of what it encloses."""
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


# The wording that Hermes and Qwen models are trained with, and parsers of tool calls expect.
TOOLS_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
TOOLS_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


def _chatml(messages: Sequence[Message], tools: list[Any] | None, generate: bool) -> list[TextSegment]:
    """`<|im_start|>role⏎content<|im_end|>⏎` a turn. Tools stand in the system turn, results that follow each other in one
    user turn."""
    pieces: list[TextSegment] = []
    if tools:
        system = messages[0].content + "\n\n" if messages and messages[0].role == "system" else ""
        described = "".join(f"\n{_to_json(tool)}" for tool in tools)
        pieces += _chatml_turn(f"system\n{system}{TOOLS_BEFORE}{described}{TOOLS_AFTER}")
    for i, message in enumerate(messages):
        if message.role == "assistant":
            pieces += _chatml_answer(message, i)
        elif message.role == "tool":
            if i == 0 or messages[i - 1].role != "tool":
                pieces += _chatml_turn("user" + "".join(_results(messages[i:])))
        elif not (tools and i == 0 and message.role == "system"):
            pieces += _chatml_turn(f"{message.role}\n{message.content}")
    if generate:
        pieces += [TextSegment("<|im_start|>", 0.0, False), TextSegment("assistant\n", 0.0, True)]
    return [piece for piece in pieces if piece.text]


def _chatml_turn(text: str) -> list[TextSegment]:
    return [
        TextSegment("<|im_start|>", 0.0, False),
        TextSegment(text, 0.0, True),
        TextSegment("<|im_end|>", 0.0, False),
        TextSegment("\n", 0.0, False),
    ]


def _chatml_answer(message: Message, turn: int) -> list[TextSegment]:
    calls = "\n".join(
        f'<tool_call>\n{{"name": {_to_json(call.name)}, "arguments": {_to_json(_arguments(call, turn + 1))}}}\n</tool_call>'
        for call in message.tool_calls
    )
    between = "\n" if message.content and calls else ""
    return [
        TextSegment("<|im_start|>", 0.0, False), TextSegment("assistant\n", 0.0, True),
        TextSegment(message.content + between + calls, 1.0, True, turn), TextSegment("<|im_end|>", 1.0, False, turn),
        TextSegment("\n", 0.0, False),
    ]  # fmt: skip


def _results(messages: Sequence[Message]) -> Iterator[str]:
    """The tool results that these messages begin with."""
    for message in takewhile(lambda message: message.role == "tool", messages):
        yield f"\n<tool_response>\n{message.content}\n</tool_response>"


def _inst(messages: Sequence[Message], tools: list[Any] | None, generate: bool) -> list[TextSegment]:
    """`<s>[INST] <<SYS>>…<</SYS>> question [/INST] answer</s>`, one such line a turn; there is no form for tools."""
    pieces: list[TextSegment] = []
    system = ""
    if tools:
        raise TemplateError("the [INST] template has no place for tools")
    for i, message in enumerate(messages):
        if message.role == "system" and i == 0:
            system = message.content
        elif message.role == "user":
            pieces.append(TextSegment(("\n" if pieces else "") + "<s>[INST]", 0.0, False))
            before = " "
            if system:
                pieces += [
                    TextSegment(" <<SYS>>", 0.0, False),
                    TextSegment(f"\n{system}\n", 0.0, True),
                    TextSegment("<</SYS>>", 0.0, False),
                ]
                system, before = "", "\n\n"
            pieces += [TextSegment(f"{before}{message.content} ", 0.0, True), TextSegment("[/INST] ", 0.0, False)]
        elif message.role == "assistant" and not message.tool_calls:
            pieces += [TextSegment(message.content, 1.0, True, i), TextSegment("</s>", 1.0, False, i)]
        else:
            what = "tool calls" if message.tool_calls else f"role '{message.role}'"
            raise TemplateError(f"the [INST] template has no place for {what} in turn {i + 1}")
    return [piece for piece in pieces if piece.text]


CHATML_JINJA = (
    "{% if tools %}"
    "{{ '<|im_start|>system\n' }}"
    "{% if messages and messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\n\n' }}{% endif %}"
    f"{{{{ {json.dumps(TOOLS_BEFORE)} }}}}"
    "{% for tool in tools %}{{ '\n' + (tool | tojson) }}{% endfor %}"
    f"{{{{ {json.dumps(TOOLS_AFTER)} + '<|im_end|>\n' }}}}"
    "{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% generation %}"
    "{{ message['content'] or '' }}"
    "{% for call in message['tool_calls'] or [] %}"
    "{{ '\n' if message['content'] or not loop.first else '' }}"
    "{{ '<tool_call>\n{\"name\": ' + (call['function']['name'] | tojson) + ', \"arguments\": ' }}"
    "{{ (call['function']['arguments'] | tojson) + '}\n</tool_call>' }}"
    "{% endfor %}"
    "{{ '<|im_end|>' }}"
    "{% endgeneration %}"
    "{{ '\n' }}"
    "{% elif message['role'] == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1]['role'] != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\n<tool_response>\n' + message['content'] + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% elif not (tools and loop.first and message['role'] == 'system') %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST_JINJA = (
    "{% if tools %}{{ raise_exception('this template has no place for tools') }}{% endif %}"
    "{% set ns = namespace(system='', first=true) %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and loop.first %}{% set ns.system = message['content'] %}"
    "{% elif message['role'] == 'user' %}"
    "{{ ('' if ns.first else '\n') + '<s>[INST] ' }}{% set ns.first = false %}"
    "{% if ns.system %}{{ '<<SYS>>\n' + ns.system + '\n<</SYS>>\n\n' }}{% set ns.system = '' %}{% endif %}"
    "{{ message['content'] + ' [/INST] ' }}"
    "{% elif message['role'] == 'assistant' and not message['tool_calls'] %}"
    "{% generation %}{{ message['content'] + '</s>' }}{% endgeneration %}"
    "{% else %}{{ raise_exception('this template has no place for tool calls or role ' + message['role']) }}{% endif %}"
    "{% endfor %}"
)

CHATML = ChatTemplate("chatml", CHATML_JINJA, ("<|im_start|>", "<|im_end|>"), _chatml)
INST = ChatTemplate("inst", INST_JINJA, ("<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"), _inst)
NATIVE = {template.name: template for template in (CHATML, INST)}
