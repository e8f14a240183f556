"""Where the answers are in a conversation that a Jinja template has rendered as a whole.

Templates may rewrite earlier turns: many leave out what the assistant thought before the last question. So the answers are
found in the final text. Where marks around the answers leave the rest of the text as it is, they show the positions; they never
produce the text. What follows an answer, and what stands before it, is learned once from two short conversations.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from fledge.tokenizer.message import (
    LEFT_OUT,
    UNENDED,
    UNLOCATED,
    Message,
    Note,
    Rendering,
    TemplateError,
    TextSegment,
    to_json,
)
from fledge.tokenizer.segments import any_of
from fledge.tokenizer.turn_shape import TurnShape, Writer, common_length, learn_shape

THOUGHTS_LEFT_OUT = "the chat template leaves out thoughts"
TURN_LEFT_OUT = "the chat template leaves out a question or system turn"
STARTS_ELSEWHERE = "generation starts from another text than in training"
NO_LAST_END = "the chat template does not end the last answer"
EXCERPT = 40
OPEN, CLOSE = "\ue0f0{}\ue0f1", "\ue0f2{}\ue0f3"  # private characters, which no template treats in a special way
_MARKS = re.compile("[\ue0f0\ue0f2]\\d+[\ue0f1\ue0f3]")
_OPENED_THOUGHT = re.compile(r"(?:<think>|<thinking>|<thought>|<\|START_THINKING\|>|\[THINK\])\s*$")
_HALF_TAG = re.compile(r"[<\[][^<>\[\]\n]*$")
_THOUGHT_END = "</think>"


@dataclass(frozen=True)
class _Answer:
    start: int
    stop: int


class AnswerFinder:
    """Finds the trained text of each answer in what a template writes. `specials`: the tokenizer's control tokens."""

    def __init__(self, write: Writer, specials: Sequence[str]) -> None:
        self.write = write
        self._special = any_of(specials)

    def rendering(self, messages: Sequence[Message], tools: list[Any] | None, needed: frozenset[int]) -> Rendering:
        """The conversation with the weight 1 on its answers. Only the `needed` ones must be found.

        Raises TemplateError if the template refuses the conversation, leaves out or changes a needed answer, does not end it,
        or does not show where it begins.
        """
        search = _Search(self, messages, tools, generate=False)
        answers, notes = search.answers(needed)
        notes += left_out_notes(messages, search.text)
        return Rendering(segments_of(search.text, answers, 1.0), tuple(notes))

    def prompt(self, messages: Sequence[Message], tools: list[Any] | None) -> list[TextSegment]:
        """The text that generation starts from. Earlier answers are segments of their own, as in training."""
        search = _Search(self, messages, tools, generate=True)
        answers, _ = search.answers(frozenset())
        return segments_of(search.text, answers, 0.0)

    @cached_property
    def shape(self) -> TurnShape | None:
        """What the template writes around answers; None if it does not write plain questions and answers."""
        return learn_shape(self.write, self._special)


class _Search:
    """The search for the answers of one conversation in its final text."""

    def __init__(self, finder: AnswerFinder, messages: Sequence[Message], tools: list[Any] | None, generate: bool) -> None:
        self.finder, self.messages, self.tools, self.generate = finder, messages, tools, generate
        self.text = finder.write(messages, tools, generate)
        self.last = len(messages) - 1

    def answers(self, needed: frozenset[int]) -> tuple[dict[int, _Answer], list[Note]]:
        """The answers by the number of their message, and notes about them. TemplateError if a needed one is not found."""
        turns = [index for index, message in enumerate(self.messages) if message.role == "assistant"]
        if not turns:
            return {}, []
        if needed == {self.last} and (position := self._last_position()):
            answer, notes = self._answer(self.last, position, 0, len(self.text))
            return {self.last: answer}, notes
        positions = self._positions(turns)
        found: dict[int, _Answer] = {}
        notes: list[Note] = []
        low = 0
        limits = [*(positions[turn][0] if turn in positions else len(self.text) for turn in turns[1:]), len(self.text)]
        for turn, limit in zip(turns, limits, strict=True):
            try:
                answer, own_notes = self._answer(turn, positions.get(turn), low, limit)
            except TemplateError:
                if turn in needed:
                    raise
                continue
            found[turn], low = answer, answer.stop
            notes += own_notes
        return found, notes

    @cached_property
    def last_prompt(self) -> str:
        """What generation of the last answer starts from; empty if the template refuses it."""
        try:
            return self.finder.write(self.messages[: self.last], self.tools, True) if self.last else ""
        except TemplateError:
            return ""

    # -- the content of answers -----------------------------------------------------------------------------------------

    def _last_position(self) -> tuple[int, int] | None:
        """The position of the last answer's content where it is plain to see: behind its prompt, before its end."""
        content, shape = _visible(self.messages[self.last]), self.finder.shape
        if not content or not shape or not shape.ends["last"] or not self.text.startswith(self.last_prompt):
            return None
        start = self.text.rfind(content + shape.ends["last"], len(self.last_prompt))
        return (start, start + len(content)) if start >= 0 else None

    def _positions(self, turns: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Start and end of each answer's content in the text."""
        contents = {turn: _located_text(self.messages[turn]) for turn in turns}
        marked = [_marked(message, turn) if contents.get(turn) else message for turn, message in enumerate(self.messages)]
        try:
            with_marks = self.finder.write(marked, self.tools, self.generate)
        except TemplateError:
            with_marks = ""
        if _MARKS.sub("", with_marks) == self.text:
            return _marked_positions(with_marks, contents)
        return self._found_in_order(contents)

    def _found_in_order(self, contents: Mapping[int, str]) -> dict[int, tuple[int, int]]:
        """The positions by search, each answer behind the one before: for templates that look into the answers."""
        positions: dict[int, tuple[int, int]] = {}
        low = 0
        for turn, content in contents.items():
            before = self.messages[turn - 1].content.strip() if turn else ""
            after_question = self.text.find(before, low)
            start = self.text.find(content, max(low, after_question + len(before) if after_question >= 0 else low))
            if content and start >= 0:
                low = start + len(content)
                positions[turn] = (start, low)
        return positions

    # -- one answer -----------------------------------------------------------------------------------------------------

    def _answer(self, turn: int, position: tuple[int, int] | None, low: int, limit: int) -> tuple[_Answer, list[Note]]:
        """The answer between `low` and `limit`, with its content at `position`, and notes about it."""
        message = self.messages[turn]
        if _visible(message) and position is None:
            raise _left_out(message, turn)
        start, notes = self._start(turn, low, position[0] if position else None)
        content_end = position[1] if position else start
        stop, end_notes = self._stop(turn, content_end, limit)
        return _Answer(start, stop), [*notes, *check_answer(message, turn, self.text[start:stop]), *end_notes]

    def _start(self, turn: int, low: int, high: int | None) -> tuple[int, list[Note]]:
        """Where generation starts in the text, between `low` and the answer's content at `high`."""
        shape, before = self.finder.shape, self.messages[turn - 1].role if turn else ""
        tail = shape.tails.get(before) if shape else None
        if turn == self.last or tail is None:
            prompt = self._prompt(turn)
            if prompt and self.text.startswith(prompt) and (high is None or len(prompt) <= high):
                return len(prompt), []
            tail = tail or _tail(prompt, self.messages[turn - 1].content.strip() if turn else "")
            start, told = self._behind(tail, turn, low, high)
            return start, told or [other_history(turn, prompt, self.text)]
        return self._behind(tail, turn, low, high)

    def _prompt(self, turn: int) -> str:
        return self.last_prompt if turn == self.last else self.finder.write(self.messages[:turn], self.tools, True)

    def _behind(self, tail: str, turn: int, low: int, high: int | None) -> tuple[int, list[Note]]:
        """The end of the longest beginning of `tail` that stands before the answer, and a note if it is not all of it."""
        stop = len(self.text) if high is None else high
        find = self.text.find if high is None else self.text.rfind
        shortest, longest = 0, len(tail)
        while shortest < longest:
            middle = (shortest + longest + 1) // 2
            shortest, longest = (middle, longest) if find(tail[:middle], low, stop) >= 0 else (shortest, middle - 1)
        if not tail[:shortest].strip():
            raise TemplateError(f"the chat template does not write its generation prompt before turn {turn + 1}", UNLOCATED)
        position = find(tail[:shortest], low, stop)
        if shortest == len(tail):
            return position + shortest, []
        kept = _HALF_TAG.sub("", tail[:shortest])
        while opened := _OPENED_THOUGHT.search(kept):
            kept = kept[: opened.start()]
        start = position + len(kept)
        return start, [_starts_elsewhere(turn, tail[len(kept) :], self.text[start:])]

    def _stop(self, turn: int, content_end: int, limit: int) -> tuple[int, list[Note]]:
        """The end of the answer's end token."""
        message, shape = self.messages[turn], self.finder.shape
        last = turn == self.last
        role = "last" if last else "tool" if self.messages[turn + 1].role == "tool" else "user"
        ends = shape.ends if shape else {}
        names = (["call"] if last else ["tool"]) if message.tool_calls else []
        for end in (ends.get(name, "") for name in (*names, role, "user")):
            stop = self._end_of(end, message, content_end, limit) if end else None
            if stop is not None:
                return stop, []
        if last and ends.get("user") and not ends.get("last"):
            stop = len(self.text.rstrip())
            detail = f"turn {turn + 1}; behind earlier answers stands {ends['user'].strip()}"
            return max(stop, content_end), [Note(NO_LAST_END, detail)]
        raise TemplateError(f"the chat template writes no control token that ends turn {turn + 1}", UNENDED)

    def _end_of(self, end: str, message: Message, content_end: int, limit: int) -> int | None:
        """The end of the text `end` behind the content and calls of a message; None if it is not there."""
        position = content_end
        inside = sum(call.arguments.count(end) for call in message.tool_calls)  # as text in the arguments of calls
        for _ in range(inside + 1):
            found = self.text.find(end, position, limit)
            if found < 0:
                return None
            position = found + len(end)
        if not message.tool_calls and _visible(message) and self.text[content_end : position - len(end)].strip():
            return None
        return position


def check_answer(message: Message, turn: int, trained: str) -> list[Note]:
    """Notes about the thoughts that the trained text of an answer leaves out. TemplateError if it leaves out anything else."""
    if _visible(message) not in trained:
        raise _left_out(message, turn)
    for call in message.tool_calls:
        if call.name not in trained and to_json(call.name)[1:-1] not in trained:
            raise TemplateError(f"the chat template leaves out the call of '{call.name}' in turn {turn + 1}", LEFT_OUT)
    thoughts = _thoughts(message)
    if not thoughts or thoughts in trained:
        return []
    return [Note(THOUGHTS_LEFT_OUT, f"turn {turn + 1}: {_excerpt(thoughts)}", len(thoughts))]


def left_out_notes(messages: Sequence[Message], text: str) -> list[Note]:
    """Notes about questions and system turns that are not in the text."""
    return [
        Note(TURN_LEFT_OUT, f"turn {number} ({message.role}): {_excerpt(message.content)}", len(message.content))
        for number, message in enumerate(messages, 1)
        if message.role in ("system", "user") and message.content.strip() not in text
    ]


def _left_out(message: Message, turn: int) -> TemplateError:
    text = _excerpt(_visible(message))
    return TemplateError(f"the chat template leaves out or changes the text of turn {turn + 1}: {text}", LEFT_OUT)


def segments_of(text: str, answers: Mapping[int, _Answer], weight: float) -> list[TextSegment]:
    """The text in segments: the answers, and what stands between them with the weight 0."""
    segments, position = [], 0
    for turn, answer in answers.items():
        segments += [
            TextSegment(text[position : answer.start], 0.0, False),
            TextSegment(text[answer.start : answer.stop], weight, False, turn),
        ]
        position = answer.stop
    segments.append(TextSegment(text[position:], 0.0, False))
    return [segment for segment in segments if segment.text]


def _visible(message: Message) -> str:
    """The content of an answer behind its thoughts, without white space around it."""
    return message.content.rpartition(_THOUGHT_END)[2].strip()


def _thoughts(message: Message) -> str:
    if message.reasoning:
        return message.reasoning.strip()
    before, end, _ = message.content.rpartition(_THOUGHT_END)
    return before.rpartition("<think>")[2].strip() if end else ""


def _located_text(message: Message) -> str:
    """The text by which an answer is found: its content behind its thoughts, or the name of its first tool call."""
    return _visible(message) or (message.tool_calls[0].name if message.tool_calls else "")


def _marked(message: Message, turn: int) -> Message:
    """The message with marks around the text by which it is found."""
    text = _located_text(message)
    with_marks = f"{OPEN.format(turn)}{text}{CLOSE.format(turn)}"
    if _visible(message):
        before, _, after = message.content.rpartition(text)
        return replace(message, content=before + with_marks + after)
    first, *others = message.tool_calls
    return replace(message, tool_calls=(replace(first, name=with_marks), *others))


def _marked_positions(with_marks: str, contents: Mapping[int, str]) -> dict[int, tuple[int, int]]:
    """The positions in the text without marks of what each pair of marks encloses."""
    removed, places = 0, {}
    for match in _MARKS.finditer(with_marks):
        places.setdefault(match[0], []).append(match.start() - removed)
        removed += len(match[0])
    pairs = {turn: (places.get(OPEN.format(turn), []), places.get(CLOSE.format(turn), [])) for turn in contents}
    return {turn: (opens[0], closes[0]) for turn, (opens, closes) in pairs.items() if len(opens) == len(closes) == 1}


def _tail(prompt: str, content: str) -> str:
    """What a prompt has behind the content of its last turn; all of it if the content is not in it."""
    return prompt[prompt.rfind(content) + len(content) :] if content and content in prompt else prompt


def _excerpt(text: str) -> str:
    return repr(text[:EXCERPT]) + ("…" if len(text) > EXCERPT else "")


def _starts_elsewhere(turn: int, prompt: str, text: str) -> Note:
    return Note(STARTS_ELSEWHERE, f"turn {turn + 1}: the prompt goes on with {_excerpt(prompt)}, the row with {_excerpt(text)}")


def other_history(turn: int, prompt: str, text: str) -> Note:
    """The note about a prompt whose history differs from that of the row."""
    same = common_length(prompt, text)
    return _starts_elsewhere(turn, prompt[same:], text[same:])
