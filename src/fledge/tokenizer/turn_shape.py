"""What a Jinja template writes around answers, learned from two short conversations."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fledge.tokenizer.message import Message, TemplateError, ToolCall

_ASKED, _ANSWERED = ("fledge asks one", "fledge asks two"), ("fledge answers one", "fledge answers two")
_TOOL = {"type": "function", "function": {"name": "probe", "description": "probe", "parameters": {
    "type": "object", "properties": {"text": {"type": "string", "description": "text"}}, "required": ["text"]}}}  # fmt: skip
_CALL = Message("assistant", "", (ToolCall("probe", '{"text": "fledge calls"}', "probe0001"),))
_RESULT = Message("tool", "fledge returns", name="probe", tool_call_id="probe0001")


Writer = Callable[[Sequence[Message], list[Any] | None, bool], str]  # (messages, tools, generate) -> text


@dataclass(frozen=True)
class TurnShape:
    """What a template writes around answers.

    `tails`: by the role of the turn before an answer, the text from its content to the point where generation starts. `ends`:
    the text that ends an answer, by the role of the next turn: user, tool, `last` for none, `call` for none after a tool call.
    """

    tails: Mapping[str, str]
    ends: Mapping[str, str]


def learn_shape(write: Writer, special: re.Pattern[str]) -> TurnShape | None:
    """What a template writes around answers; None if it does not write plain questions and answers. `special` matches the
    tokenizer's control tokens."""
    return _Learner(write, special).shape()


class _Learner:
    """Learns the shape from short conversations."""

    def __init__(self, write: Writer, special: re.Pattern[str]) -> None:
        self._write, self._special = write, special

    def shape(self) -> TurnShape | None:
        """What the template writes around answers."""
        asked = [Message("user", text) for text in _ASKED]
        answered = [Message("assistant", text) for text in _ANSWERED]
        rounds = [asked[0], answered[0], asked[1], answered[1]]
        try:
            text, prompt = self._write(rounds, None, False), self._write(rounds[:3], None, True)
        except TemplateError:
            return self._shape_of_one_round(asked[0], answered[0])
        between, last = _between(text, _ANSWERED[0], _ASKED[1]), _after(text, _ANSWERED[1])
        tail = _after(prompt, _ASKED[1])
        if between is None or last is None or tail is None:
            return self._shape_of_one_round(asked[0], answered[0])
        end = self._common_end(between, last)
        ends = {"user": end or self._first_special(between), "last": end or self._first_special(last)}
        if not ends["last"] and ends["user"] and self._last_special(ends["user"]) in tail:
            ends["user"] = ""  # it begins the assistant's turn as well, so it ends no answer
        tails = {"user": tail}
        self._add_tools(asked[0], answered[1], tails, ends)
        return TurnShape(tails, ends)

    def _shape_of_one_round(self, asked: Message, answered: Message) -> TurnShape | None:
        try:
            text, prompt = self._write([asked, answered], None, False), self._write([asked], None, True)
        except TemplateError:
            return None
        last, tail = _after(text, answered.content), _after(prompt, asked.content)
        if last is None or tail is None:
            return None
        end = self._first_special(last)
        return TurnShape({"user": tail}, {"user": end, "last": end})

    def _add_tools(self, asked: Message, answered: Message, tails: dict[str, str], ends: dict[str, str]) -> None:
        """Add what stands around tool calls and results, where the template can write them."""
        turns = [asked, _CALL, _RESULT, answered]
        try:
            text, called = self._write(turns, [_TOOL], False), self._write(turns[:2], [_TOOL], False)
            prompt = self._write(turns[:3], [_TOOL], True)
        except TemplateError:
            return
        tail = _after(prompt, _RESULT.content)
        if tail is not None:
            tails["tool"] = tail
        common = text[: common_length(text, called)]
        arguments = common.rfind("fledge calls")
        if arguments < 0:
            return
        own = [match[0] for match in self._special.finditer(common, arguments)]
        follows = self._special.search(text, len(common))
        if ends["last"] and own:
            ends["tool"] = ends["call"] = own[-1]
        else:  # what begins the next turn is what ends this one
            ends["tool"] = follows[0] if follows else own[-1] if own else ""

    def _common_end(self, between: str, last: str) -> str:
        """The control tokens, with the text before them, with which both texts begin."""
        end = position = 0
        for first, second in zip(self._special.finditer(between), self._special.finditer(last), strict=False):
            if between[position : first.end()] != last[position : second.end()]:
                break
            end = position = first.end()
        return between[:end]

    def _last_special(self, text: str) -> str:
        return next((match[0] for match in reversed(list(self._special.finditer(text)))), "")

    def _first_special(self, text: str) -> str:
        match = self._special.search(text)
        return text[: match.end()] if match else ""


def _between(text: str, before: str, after: str) -> str | None:
    start = text.find(before)
    stop = text.find(after, start)
    return text[start + len(before) : stop] if start >= 0 and stop >= 0 else None


def _after(text: str, before: str) -> str | None:
    start = text.rfind(before)
    return text[start + len(before) :] if start >= 0 else None


def common_length(first: str, second: str) -> int:
    """The length of the longest common beginning of two texts."""
    low, high = 0, min(len(first), len(second))
    while low < high:  # comparing slices is faster than comparing characters
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[low:middle] == second[low:middle] else (low, middle - 1)
    return low
