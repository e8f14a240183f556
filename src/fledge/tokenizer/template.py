"""Chat templates: a conversation is rendered as text segments, each with its own weight in the loss.

Tokens and weights therefore come from one function and cannot drift apart. Training, sampling, chat and the exported
Jinja template all use this module.
"""

import datetime
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fledge.tokenizer.answers import AnswerFinder, check_answer, left_out_notes, other_history
from fledge.tokenizer.jinja_template import JinjaTemplate
from fledge.tokenizer.message import (
    LEFT_OUT,
    REASONING_KEYS,
    UNENDED,
    Message,
    Note,
    Rendering,
    TemplateError,
    TextSegment,
    ToolCall,
    parse_tools,
)

__all__ = [
    "REASONING_KEYS", "ChatTemplate", "Message", "Note", "Rendering", "TemplateError", "TextSegment", "ToolCall",
]  # fmt: skip

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A way to write conversations. `jinja` is exported for other software; native templates render without it.

    `date`: what `strftime_now` writes in a Jinja template; None is the present time. `decoder_start`: for encoder–decoder
    models, the control token between the source and its one answer; None: a conversation is one text with all its answers.
    """

    name: str = field(kw_only=False)
    jinja: str = field(kw_only=False)
    specials: tuple[str, ...] = field(kw_only=False)  # control tokens that the vocabulary must contain
    render_native: Callable[[Sequence[Message], list[Any] | None, bool], list[TextSegment]] | None = None
    variables: tuple[tuple[str, str], ...] = ()  # names that the Jinja text may use: bos_token, eos_token, …
    date: datetime.date | None = None
    decoder_start: str | None = None

    def render(self, messages: Sequence[Message], tools: str | None = None) -> list[TextSegment]:
        """The segments of `rendering`."""
        return self.rendering(messages, tools).segments

    def rendering(self, messages: Sequence[Message], tools: str | None = None, only_last: bool = False) -> Rendering:
        """The whole conversation. An assistant's content, tool calls and end token have the weight 1.

        `tools` is the JSON text of a list of tool descriptions. `only_last`: only the last answer has to be trainable; an
        earlier one has the weight 0 where the template does not show it. Raises TemplateError when the template cannot express
        the conversation.
        """
        tool_list = parse_tools(tools)
        if self.render_native:
            return Rendering(self.render_native(messages, tool_list, False))
        answers = [turn for turn, message in enumerate(messages) if message.role == "assistant"]
        needed = frozenset(turn for turn in answers[-1 if only_last else 0 :] if messages[turn].weight != 0)
        if _GENERATION.search(self.jinja):
            return self._render_marked(messages, tool_list, answers, needed)
        return self._finder.rendering(messages, tool_list, needed)

    def prompt(self, messages: Sequence[Message], tools: str | None = None) -> list[TextSegment]:
        """The conversation up to the point where the assistant speaks, from which generation starts."""
        tool_list = parse_tools(tools)
        if self.render_native:
            return self.render_native(messages, tool_list, True)
        if _GENERATION.search(self.jinja):
            return self._marked_prompt(messages, tool_list)
        return self._finder.prompt(messages, tool_list)

    @property
    def turn_end(self) -> str | None:
        """The control token that ends an answer; None when the template rejects a plain question and answer."""
        try:
            segments = self.render((Message("user", "1"), Message("assistant", "2")))
        except TemplateError:
            return None
        trained = "".join(segment.text for segment in segments if segment.weight).rstrip()
        shape = None if self.render_native else self._finder.shape
        if shape and not shape.ends["last"]:  # the token that begins the next turn ends the answer
            trained = shape.ends["user"].rstrip()
        return max((text for text in self.specials if trained.endswith(text)), key=len, default=None)

    @cached_property
    def _jinja(self) -> JinjaTemplate:
        return JinjaTemplate(self.name, self.jinja, self.variables, self.date)

    @cached_property
    def _finder(self) -> AnswerFinder:
        return AnswerFinder(self._jinja.text, self.specials)

    def _render_marked(
        self, messages: Sequence[Message], tools: list[Any] | None, answers: Sequence[int], needed: frozenset[int]
    ) -> Rendering:
        """Render with a template that marks assistant text by {% generation %}: the marked text is trained.

        The k-th marked text belongs to the k-th assistant turn, provided that there are as many marks as assistant
        turns.
        """
        texts = self._marked_texts(messages, tools, generate=False)
        trained = texts[1::2]
        turns: Sequence[int | None] = answers if len(answers) == len(trained) else [None] * len(trained)
        notes = left_out_notes(messages, "".join(texts))
        for turn, text in zip(turns, trained, strict=True):
            if turn is not None and turn in needed:
                notes += check_answer(messages[turn], turn, text)
        if trained and not trained[-1].rstrip().endswith(self.specials):
            raise TemplateError("the chat template ends the assistant's turn without a special token", UNENDED)
        if answers and not self._marks_follow_prompt:
            prompt, text = self._jinja.text(messages[: answers[-1]], tools, True), "".join(texts)
            notes += [] if text.startswith(prompt) else [other_history(answers[-1], prompt, text)]
        segments = [
            TextSegment(text, float(i % 2), False, turns[i // 2] if i % 2 else None) for i, text in enumerate(texts) if text
        ]
        if not trained and needed:
            raise TemplateError("the chat template marks no answer by {% generation %}", LEFT_OUT)
        return Rendering(segments, tuple(notes))

    @cached_property
    def _marks_follow_prompt(self) -> bool:
        """Whether the marked answer to a plain question begins where generation starts."""
        rounds = (Message("user", "1"), Message("assistant", "2"))
        try:
            return self._marked_texts(rounds, None, False)[0] == self._jinja.text(rounds[:1], None, True)
        except TemplateError:
            return False

    def _marked_prompt(self, messages: Sequence[Message], tools: list[Any] | None) -> list[TextSegment]:
        texts = self._marked_texts(messages, tools, generate=True)
        answers = [turn for turn, message in enumerate(messages) if message.role == "assistant"]
        turns: Sequence[int | None] = answers if 2 * len(answers) == len(texts) - 1 else [None] * (len(texts) // 2)
        return [TextSegment(text, 0.0, False, turns[i // 2] if i % 2 else None) for i, text in enumerate(texts) if text]

    def _marked_texts(self, messages: Sequence[Message], tools: list[Any] | None, generate: bool) -> list[str]:
        """The text, split where marked answers begin and end."""
        mark = uuid.uuid5(uuid.NAMESPACE_OID, "\0".join(m.content for m in messages)).hex
        return self._jinja.text(messages, tools, generate, mark).split(mark)
