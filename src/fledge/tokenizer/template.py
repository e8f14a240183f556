"""Chat templates: from messages to pieces of text that carry their own supervision.

A piece says whether it is trained and whether it is content, so tokens and weights come from the same few lines and
cannot drift apart. Training, sampling, chat and the exported Jinja template all render through here.
"""

import json
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fledge.errors import FledgeError

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


@dataclass(frozen=True)
class Message:
    """One turn. `role` is system, user, assistant or another role that the template knows."""

    role: str
    content: str


@dataclass(frozen=True)
class Piece:
    """Text with its weight in the loss. `literal` text holds content: strings in it that look like control tokens
    are encoded as ordinary text, so that nobody can end a turn from inside a message.

    A prompt's pieces are cut only at control tokens, so that they become the same tokens as the whole text does."""

    text: str
    weight: float
    literal: bool


class TemplateError(FledgeError):
    """A conversation that this template cannot render; the row is accounted for, not the run stopped."""


@dataclass(frozen=True)
class ChatTemplate:
    """A way to write conversations. `jinja` is exported for others; native templates render without it."""

    name: str
    jinja: str
    specials: tuple[str, ...]  # control tokens it needs in the vocabulary
    render_native: Callable[[Sequence[Message], bool], list[Piece]] | None = None
    variables: tuple[tuple[str, str], ...] = ()  # what the Jinja text may name: bos_token, eos_token, …

    def render(self, messages: Sequence[Message]) -> list[Piece]:
        """The whole conversation, assistant content and its end token with weight 1."""
        if self.render_native:
            return self.render_native(messages, False)
        return self._render_jinja(messages)

    def prompt(self, messages: Sequence[Message]) -> list[Piece]:
        """The conversation up to the point where the assistant speaks: what generation starts from."""
        if self.render_native:
            return self.render_native(messages, True)
        try:
            history = self._render_jinja(messages)
        except TemplateError:  # no training row begins like this, so there is nothing to agree with
            history = []
        written, whole = "".join(piece.text for piece in history), self._jinja_text(messages, add_generation_prompt=True)
        if not whole.startswith(written):
            return [Piece(whole, 0.0, False)]
        # What follows the last answer is one piece, as in training; the answers before it are pieces of their own.
        last = max((i for i, piece in enumerate(history, 1) if piece.weight), default=0)
        done = sum(len(piece.text) for piece in history[:last])
        return [*(Piece(piece.text, 0.0, False) for piece in history[:last]), Piece(whole[done:], 0.0, False)]

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
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
        try:
            return environment.from_string(self.jinja)
        except TemplateSyntaxError as error:
            raise FledgeError(f"the tokenizer's chat template is not valid Jinja: {error}", where=self.name) from None

    def _jinja_text(self, messages: Sequence[Message], add_generation_prompt: bool = False, mark: str = "") -> str:
        from jinja2 import TemplateError as JinjaError

        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._compiled.render(
                messages=turns, tools=None, documents=None,
                add_generation_prompt=add_generation_prompt, generation_mark=mark, **dict(self.variables),
            )  # fmt: skip
        except TemplateError:
            raise
        except (JinjaError, TypeError, ArithmeticError, ValueError, LookupError, AttributeError) as error:
            raise TemplateError(f"the chat template refuses this conversation: {error}") from None

    def _render_jinja(self, messages: Sequence[Message]) -> list[Piece]:
        if _GENERATION.search(self.jinja):
            return self._render_marked(messages)
        return self._render_by_prefix(messages)

    def _render_marked(self, messages: Sequence[Message]) -> list[Piece]:
        """Templates that mark assistant text by {% generation %}: what is inside is trained."""
        mark = uuid.uuid5(uuid.NAMESPACE_OID, "\0".join(m.content for m in messages)).hex
        parts = self._jinja_text(messages, mark=mark).split(mark)
        if any(not text.rstrip().endswith(self.specials) for text in parts[1::2][-1:]):
            raise TemplateError("the chat template ends the assistant's turn without a special token")
        return [Piece(text, float(i % 2), False) for i, text in enumerate(parts) if text]

    def _render_by_prefix(self, messages: Sequence[Message]) -> list[Piece]:
        """Templates without marks: the assistant's text is what a turn adds to its generation prompt."""
        pieces: list[Piece] = []
        whole, done = self._jinja_text(messages), 0
        for i, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before = self._jinja_text(messages[:i], add_generation_prompt=True)
            after = self._jinja_text(messages[: i + 1])
            if not after.startswith(before) or not whole.startswith(after):
                raise TemplateError(
                    f"the chat template rewrites earlier turns when turn {i + 1} is added, so its trained part is unknown"
                )
            answer = after[len(before) :]
            end = len(answer.rstrip())
            if not answer[:end].endswith(self.specials):
                raise TemplateError("the chat template ends the assistant's turn without a special token")
            pieces += [Piece(whole[done : len(before)], 0.0, False), Piece(answer[:end], 1.0, False)]
            done = len(before) + end
        pieces.append(Piece(whole[done:], 0.0, False))
        return [piece for piece in pieces if piece.text]


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


def _chatml(messages: Sequence[Message], generate: bool) -> list[Piece]:
    pieces = []
    for message in messages:
        weight = float(message.role == "assistant")
        head = f"{message.role}\n"
        pieces.append(Piece("<|im_start|>", 0.0, False))
        if weight:
            pieces += [Piece(head, 0.0, True), Piece(message.content, weight, True)]
        else:
            pieces.append(Piece(head + message.content, 0.0, True))
        pieces += [Piece("<|im_end|>", weight, False), Piece("\n", 0.0, False)]
    if generate:
        pieces += [Piece("<|im_start|>", 0.0, False), Piece("assistant\n", 0.0, True)]
    return [piece for piece in pieces if piece.text]


def _inst(messages: Sequence[Message], generate: bool) -> list[Piece]:
    """`<s>[INST] <<SYS>>…<</SYS>> question [/INST] answer</s>`, one such line a turn."""
    pieces: list[Piece] = []
    system = ""
    for i, message in enumerate(messages):
        if message.role == "system" and i == 0:
            system = message.content
        elif message.role == "user":
            pieces.append(Piece(("\n" if pieces else "") + "<s>[INST]", 0.0, False))
            before = " "
            if system:
                pieces += [
                    Piece(" <<SYS>>", 0.0, False),
                    Piece(f"\n{system}\n", 0.0, True),
                    Piece("<</SYS>>", 0.0, False),
                ]
                system, before = "", "\n\n"
            pieces += [Piece(f"{before}{message.content} ", 0.0, True), Piece("[/INST] ", 0.0, False)]
        elif message.role == "assistant":
            pieces += [Piece(message.content, 1.0, True), Piece("</s>", 1.0, False)]
        else:
            raise TemplateError(f"the [INST] template has no place for role '{message.role}' in turn {i + 1}")
    return [piece for piece in pieces if piece.text]


CHATML_JINJA = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>' + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST_JINJA = (
    "{% set ns = namespace(system='', first=true) %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and loop.first %}{% set ns.system = message['content'] %}"
    "{% elif message['role'] == 'user' %}"
    "{{ ('' if ns.first else '\n') + '<s>[INST] ' }}{% set ns.first = false %}"
    "{% if ns.system %}{{ '<<SYS>>\n' + ns.system + '\n<</SYS>>\n\n' }}{% set ns.system = '' %}{% endif %}"
    "{{ message['content'] + ' [/INST] ' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '</s>' }}{% endgeneration %}"
    "{% else %}{{ raise_exception('this template has no place for role ' + message['role']) }}{% endif %}"
    "{% endfor %}"
)

CHATML = ChatTemplate("chatml", CHATML_JINJA, ("<|im_start|>", "<|im_end|>"), _chatml)
INST = ChatTemplate("inst", INST_JINJA, ("<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"), _inst)
NATIVE = {template.name: template for template in (CHATML, INST)}
