"""Every kind of row gives its prompt, and a prompt that is written as a row is read as the same prompt."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.data.parsing.columns import RowError
from fledge.data.parsing.prompts import AS_QUESTION, Prompt, parse_prompt, prompt_columns
from fledge.tokenizer import Message
from fledge.tokenizer.template import ToolCall
from tests.support.chat_rows import BAD, GOOD, TURNS, A, Q, S, source

TOOLS = '[{"type": "function", "function": {"name": "f"}}]'


@pytest.mark.parametrize(
    ("row", "turns", "reference"),
    [
        ({"messages": TURNS}, (Q,), "a"),
        ({"messages": TURNS[:1]}, (Q,), None),
        ({"messages": TURNS[:1], "reference": "42"}, (Q,), "42"),
        ({"messages": [*TURNS, {"role": "user", "content": "more"}]}, (Q, A, Message("user", "more")), None),
        ({"prompt": "q", "response": "a"}, (Q,), "a"),
        ({"prompt": "q"}, (Q,), None),
        ({"instruction": "q", "input": "", "output": "a", "system": "s"}, (S, Q), "a"),
        ({"prompt": "q", "chosen": "good", "rejected": "bad"}, (Q,), "good"),
        ({"messages": TURNS[:1], "chosen": [GOOD], "rejected": [BAD]}, (Q,), "good"),
        ({"messages": TURNS, "label": True}, (Q,), "a"),
        ({"messages": TURNS, "label": False}, (Q,), None),
        ({"messages": TURNS, "weight": 0}, (Q,), "a"),
        ({"text": " q \n"}, (Q,), None),
        ({"instruction": "q", "instances": [{"input": "", "output": "a"}]}, (Q,), "a"),
    ],
)
def test_the_prompt_is_what_stands_before_the_answer_and_the_answer_is_the_reference(
    row: dict[str, Any], turns: tuple[Message, ...], reference: str | None
) -> None:
    assert parse_prompt(row, source()).prompt == Prompt(turns, None, reference)


def test_a_system_prompt_stands_before_prompts_without_one() -> None:
    assert parse_prompt({"prompt": "q"}, source(), "s").prompt.turns == (S, Q)
    assert parse_prompt({"prompt": "q", "system": "own"}, source(), "s").prompt.turns == (Message("system", "own"), Q)


def test_what_is_unusual_or_not_read_is_told() -> None:
    parsed = parse_prompt({"text": "q", "colour": "red"}, source())
    assert [event.reason for event in parsed.events] == [AS_QUESTION] and parsed.unread_columns == ["colour"]
    assert parse_prompt({"messages": TURNS[:1], "reference": "a"}, source()).unread_columns == []


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"colour": "red"}, "no known column"),
        ({"messages": []}, "no turns"),
        ({"prompt": "  ", "response": "a"}, "empty question"),
        ({"text": " "}, "empty text"),
        ({"prompt": "q", "images": ["x.png"]}, "not text"),
        ({"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "q"}]}, "roles out of order"),
        (3, "not an object"),
    ],
)
def test_a_row_without_a_prompt_has_a_reason(row: Any, problem: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_prompt(row, source())
    assert caught.value.reason == problem


TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(lambda text: text.strip())
CALLS = st.builds(ToolCall, TEXTS, st.just('{"x": 1}'), st.none() | TEXTS)


@st.composite
def prompts(draw: st.DrawFn) -> tuple[tuple[Message, ...], str | None]:
    """Turns that end with a question or the result of a tool, and tools."""
    turns = [Message("system", draw(TEXTS))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        answer = Message("assistant", draw(TEXTS), tuple(draw(st.lists(CALLS, max_size=2))), reasoning=draw(st.none() | TEXTS))
        turns += [Message("user", draw(TEXTS), name=draw(st.none() | TEXTS)), answer]
    turns.append(Message("user", draw(TEXTS)))
    if turns[-2:-1] and turns[-2].tool_calls and draw(st.booleans()):
        turns[-1] = Message("tool", draw(TEXTS), tool_call_id=draw(st.none() | TEXTS))
    return tuple(turns), draw(st.none() | st.just(TOOLS))


@given(prompts())
def test_a_prompt_is_read_from_its_columns_as_it_was(prompt: tuple[tuple[Message, ...], str | None]) -> None:
    parsed = parse_prompt(prompt_columns(*prompt), source())
    assert parsed.prompt == Prompt(*prompt) and not parsed.unread_columns and not parsed.events
