"""Turns that do not alternate: calls in turns of their own are merged; all else as the source says."""

from typing import Any

import pytest

from fledge.data.parsing.items import Conversation, PreferencePair
from fledge.data.parsing.rows import Parsed, read_row
from fledge.tokenizer import Message
from fledge.tokenizer.template import ToolCall
from tests.support.chat_rows import TURNS, A, Q, S, reason, source
from tests.support.parsing import PARSERS

USER, ANSWER = TURNS
SYSTEM = {"role": "system", "content": "s"}
RESULT = {"role": "tool", "content": "2"}
CALL = {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'}
MODES = ("strict", "merge", "trim", "merge_and_trim")
CALLED = ToolCall("f", '{"x": 1}')


def read(turns: list[Any], mode: str = "strict", kind: str = "sft") -> Parsed:
    """A conversation, read in a source with this `turn_order`."""
    row = {"messages": turns} if kind == "sft" else {"messages": turns, "chosen": "good", "rejected": "bad"}
    return read_row(row, source(turn_order=mode, turns={}), PARSERS[kind])


@pytest.mark.parametrize("mode", MODES)
def test_calls_in_turns_of_their_own_become_one_turn(mode: str) -> None:
    turns = [{"from": "human", "value": "q"}, CALL, CALL, {"from": "observation", "value": "2"}, {"from": "gpt", "value": "a"}]
    parsed = read(turns, mode)
    assert parsed.item == Conversation((Q, Message("assistant", "", (CALLED, CALLED)), Message("tool", "2"), A))
    assert [(event.state, event.detail) for event in parsed.events] == [("changed", "turns 2 and 3")]
    spoken = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "wait"}, CALL]
    assert read(spoken, mode).item == Conversation((Q, Message("assistant", "wait", (CALLED,))))


MENDED = [  # turns, result of merge, result of trim
    ([USER, USER, ANSWER], (Message("user", "q\nq"), A), None),
    ([USER, ANSWER, ANSWER], (Q, Message("assistant", "a\na")), None),
    ([SYSTEM, SYSTEM, USER, ANSWER], (Message("system", "s\ns"), Q, A), None),
    ([USER, ANSWER, USER], None, (Q, A)),
    ([USER, ANSWER, USER, USER], None, (Q, A)),
    ([ANSWER, USER, ANSWER], None, (Q, A)),
    ([SYSTEM, ANSWER, USER, ANSWER, USER], None, (S, Q, A)),
    ([RESULT, USER, ANSWER], None, (Q, A)),
]


@pytest.mark.parametrize(("turns", "merged", "trimmed"), MENDED)
def test_each_mode_mends_its_mistakes_with_an_event_and_drops_the_others(turns: list, merged: Any, trimmed: Any) -> None:
    for mode in MODES:
        expected = merged if mode == "merge" else trimmed if mode == "trim" else merged or trimmed
        if mode == "strict" or expected is None:
            text, detail = reason({"messages": turns}, "sft", turn_order=mode)
            assert text in ("roles out of order", "no answer")
            if mode == "strict":
                assert f"turn_order: {'merge' if merged else 'trim'}" in detail or turns[-2:] == [USER, USER]
            continue
        parsed = read(turns, mode)
        assert parsed.item == Conversation(expected)
        assert parsed.events and {event.state for event in parsed.events} == {"changed"}


def test_both_mistakes_need_both_modes() -> None:
    turns = [ANSWER, USER, USER, ANSWER, ANSWER, USER]
    assert read(turns, "merge_and_trim").item == Conversation((Message("user", "q\nq"), Message("assistant", "a\na")))
    for mode in ("merge", "trim"):
        assert reason({"messages": turns}, "sft", turn_order=mode)[0] == "roles out of order"


def test_what_cannot_be_mended_keeps_its_reason() -> None:
    for turns, text in (
        ([USER], "no answer"),
        ([ANSWER], "roles out of order"),
        ([USER, SYSTEM, ANSWER], "roles out of order"),
        ([SYSTEM], "no turns"),
        ([USER, ANSWER, SYSTEM, USER, ANSWER], "roles out of order"),
    ):
        assert reason({"messages": turns}, "sft", turn_order="merge_and_trim")[0] == text
    different = [USER, {**ANSWER, "weight": 0}, ANSWER]
    assert reason({"messages": different}, "sft", turn_order="merge") == (
        "wrong weight",
        "turns 2 and 3 are one turn, but their weights differ",
    )
    named = [{**USER, "name": "Ann"}, {**USER, "name": "Bob"}, ANSWER]
    assert reason({"messages": named}, "sft", turn_order="merge")[0] == "roles out of order"


def test_a_preference_prompt_is_mended_but_keeps_its_last_question() -> None:
    parsed = read([ANSWER, USER, USER], "merge_and_trim", "preference")
    assert parsed.item == PreferencePair((Message("user", "q\nq"),), "good", "bad")
    assert read([USER, ANSWER, USER], "trim", "preference").item == PreferencePair((Q, A, Q), "good", "bad")
