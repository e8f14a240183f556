"""Every schema of conversations, tool calls and turn weights is parsed into equal messages."""

import json
from typing import Any

import orjson
import pytest

from fledge.data.parsing.detection import detect_item_type, schema_name
from fledge.data.parsing.items import (
    BinaryFeedback,
    Conversation,
    Document,
    PreferencePair,
)
from fledge.tokenizer import Message
from fledge.tokenizer.template import ToolCall
from tests.support.chat_rows import (
    BAD,
    DESCRIBED,
    FROM,
    GOOD,
    MORE,
    TURNS,
    A,
    Q,
    S,
    call,
    reason,
    source,
)
from tests.support.parsing import parse_row

CONVERSATIONS = [
    ("prompt/response", {"prompt": "q", "response": "a"}, (Q, A)),
    ("prompt/response", {"question": "q", "answer": "a"}, (Q, A)),
    ("prompt/response", {"query": "q", "completion": "a", "id": 3}, (Q, A)),
    ("alpaca", {"instruction": "q", "output": "a"}, (Q, A)),
    ("alpaca", {"instruction": "q", "input": "", "output": "a", "history": [], "system": ""}, (Q, A)),
    ("alpaca", {"instruction": "q", "input": None, "output": "a", "history": None, "system": None}, (Q, A)),
    ("alpaca", {"instruction": "q", "input": "x", "output": "a"}, (Message("user", "q\nx"), A)),
    ("alpaca", {"instruction": "", "input": "q", "output": "a"}, (Q, A)),
    ("alpaca", {"instruction": "q", "input": ["x", "y"], "output": "a"}, (Message("user", "q\nx\ny"), A)),
    ("alpaca", {"instruction": "q", "output": "a", "system": "s"}, (S, Q, A)),
    ("alpaca", {"instruction": "q", "output": "a", "history": [["q1", "a1"]], "system": "s"},
     (S, Message("user", "q1"), Message("assistant", "a1"), Q, A)),
    ("messages (role/content)", {"messages": TURNS}, (Q, A)),
    ("messages (role/content)", {"messages": TURNS, "system": "s"}, (S, Q, A)),
    ("messages (role/content)", {"messages": TURNS[:1], "response": "a"}, (Q, A)),
    ("messages (role/content)", {"prompt": TURNS[:1], "completion": TURNS[1:]}, (Q, A)),
    ("messages (role/content)", {"prompt": TURNS}, (Q, A)),
    ("messages (role/content)", {"conversation": [{"role": "用户", "content": "q"}, {"role": "助手", "content": "a"}]}, (Q, A)),
    ("messages (role/content)", {"messages": [{"role": " Human", "content": "q"}, {"role": "MODEL", "content": "a"}]}, (Q, A)),
    ("sharegpt (from/value)", {"conversations": [{"from": "system", "value": "s"}, *FROM], "system": "no"}, (S, Q, A)),
    ("sharegpt (from/value)", {"conversations": [*FROM, *FROM], "tools": "[]"}, (Q, A, Q, A)),
    ("sharegpt (from/value)", {"conversations": [{**turn, "role": None, "content": None} for turn in FROM]}, (Q, A)),
    ("openai content parts", {"messages": [
        {"role": "user", "content": [{"type": "text", "text": "q"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "value": "b"}]}]},
     (Q, Message("assistant", "ab"))),
    ("messages (role/content)", {"messages": [TURNS[0], {"role": "assistant", "content": "a", "reasoning_content": "hm"}]},
     (Q, Message("assistant", "a", reasoning="hm"))),
    ("messages (role/content)", {"messages": TURNS, "images": [], "audios": None}, (Q, A)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "turns"), CONVERSATIONS)
def test_every_schema_of_conversations_is_detected(name: str, row: dict, turns: tuple) -> None:
    assert parse_row(row, source(), "sft") == Conversation(turns)
    assert (schema_name(row, source()), detect_item_type(row, source())) == (name, Conversation)


@pytest.mark.parametrize(
    ("keys", "row"),
    [
        ({"columns": {"prompt": "q", "response": "z"}}, {"q": "q", "z": "a", "prompt": "no", "response": "no", "input": "no"}),
        ({"columns": {"prompt": ["q", "x"], "response": "z"}}, {"q": "q", "x": "", "z": ["a"]}),
        ({"columns": {"prompt": "q", "query": "x", "response": "z"}}, {"q": "", "x": "q", "z": "a"}),
        ({"columns": {"messages": "m"}}, {"m": TURNS, "messages": "no"}),
        ({"columns": {"system": "", "label": ""}}, {"prompt": "q", "response": "a", "system": "no", "label": False}),
        ({"columns": {"history": "", "tools": ""}}, {"prompt": "q", "response": "a", "history": [["q", "a"]], "tools": [3]}),
        ({"columns": {"prompt": "q", "response": "z", "history": "h"}}, {"q": "q", "z": "a", "h": None, "history": 3}),
        ({"turns": {"role": "who", "content": "said"}, "roles": {"me": "user", "gpt": "assistant"}},
         {"messages": [{"who": "me", "said": "q", "from": "gpt"}, {"who": "gpt", "said": "a", "content": "no"}]}),
    ],
)  # fmt: skip
def test_columns_turns_and_roles_of_the_recipe_take_precedence(keys: dict, row: dict) -> None:
    assert parse_row(row, source(**keys), "sft") == Conversation((Q, A))


def test_roles_of_the_recipe_override_the_usual_roles() -> None:
    row = {"messages": [{"role": "model", "content": "q"}, {"role": "Bot", "content": "a"}]}
    assert parse_row(row, source(roles={"model": "user"}), "sft") == Conversation((Q, A))


def test_several_text_columns_are_joined_and_each_must_exist() -> None:
    row = {"t": "title", "b": ["x", "y"], "text": "no", "n": None}
    assert parse_row(row, source(columns={"text": ["t", "b", "n"]}), "pretrain") == Document("title\nx\ny")
    assert parse_row(row, source(), "pretrain") == Document("no")
    assert reason({"text": "has no t"}, "pretrain", columns={"text": ["t", "b"]}) == (
        "column missing",
        "'t' is named in the recipe; the row has text",
    )
    assert reason({"t": "title"}, "sft", columns={"prompt": "t", "query": "more"})[0] == "column missing"
    assert reason({"prompt": "q", "chosen": "a"}, "preference", columns={"rejected": "bad"})[0] == "column missing"


def test_system_prompt_of_the_stage_is_added_where_a_row_has_none() -> None:
    row, own = {"prompt": "q", "response": "a"}, Message("system", "own")
    assert parse_row(row, source(), "sft", "s") == Conversation((S, Q, A))
    assert parse_row({**row, "system": "own"}, source(), "sft", "s") == Conversation((own, Q, A))
    pair = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    assert parse_row(pair, source(), "preference", "s") == PreferencePair((S, Q), "good", "bad")
    assert parse_row({**row, "label": True}, source(), "label", "s") == BinaryFeedback((S, Q), "a", True)
    assert parse_row({"text": "t"}, source(), "pretrain", "s") == Document("t")


CALLING = (Q, Message("assistant", "", (ToolCall("add", '{"x": 1}'),)), Message("tool", "2"), A)


@pytest.mark.parametrize(
    "turns",
    [
        [FROM[0], {"from": "function_call", "value": '{"name": "add", "arguments": {"x": 1}}'},
         {"from": "observation", "value": "2"}, FROM[1]],
        [FROM[0], {"from": "tool_call", "value": '[{"name": "add", "arguments": "{\\"x\\": 1}"}]'},
         {"from": "ipython", "value": "2"}, FROM[1]],
        [TURNS[0], {"role": "assistant", "content": None, "tool_calls": [call()]}, {"role": "tool", "content": "2"}, TURNS[1]],
        [TURNS[0], {"role": "assistant", "tool_calls": [call(arguments={"x": 1})]}, {"role": "tool", "content": "2"}, TURNS[1]],
        [TURNS[0], {"role": "assistant", "content": "", "tool_calls": json.dumps([call()])},
         {"role": "function", "content": "2", "tool_calls": ""}, TURNS[1]],
        [TURNS[0], {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"x": 1}'}},
         {"role": "function", "content": "2"}, TURNS[1]],
    ],
)  # fmt: skip
@pytest.mark.parametrize("tools", [DESCRIBED, json.dumps(DESCRIBED), None, [], "[]", " "])
def test_every_form_of_tool_calls_gives_equal_messages(turns: list, tools: Any) -> None:
    row = {"conversations": turns, "tools": tools}
    item = parse_row(row, source(), "sft")
    assert isinstance(item, Conversation)
    assert item.messages == CALLING
    assert (orjson.loads(item.tools) if item.tools else None) == (DESCRIBED if tools not in (None, [], "[]", " ") else None)
    assert (schema_name(row, source()), detect_item_type(row, source())) == ("tool calls", Conversation)


def test_tools_may_be_in_the_system_turn() -> None:
    system = {"role": "system", "content": "s", "tools": json.dumps(DESCRIBED)}
    item = parse_row({"conversations": [system, *TURNS]}, source(), "sft")
    assert item == Conversation((S, Q, A), json.dumps(DESCRIBED))
    assert parse_row({"conversations": [system, *TURNS]}, source(columns={"tools": ""}), "sft") == Conversation((S, Q, A))


def test_tool_arguments_keep_their_spelling() -> None:
    calls = [call(arguments='{"城": "北京",  "n":1.0}'), call("b", "")]
    item = parse_row({"messages": [TURNS[0], {"role": "assistant", "tool_calls": calls}]}, source(), "sft")
    assert isinstance(item, Conversation)
    assert item.messages[-1].tool_calls == (ToolCall("add", '{"城": "北京",  "n":1.0}'), ToolCall("b", "{}"))


def test_several_tool_results_may_follow_one_turn_and_a_conversation_may_end_with_a_call() -> None:
    result = {"role": "tool", "content": ""}
    calling = {"role": "assistant", "content": "wait", "tool_calls": [call(), call()]}
    item = parse_row({"messages": [TURNS[0], calling, result, result, TURNS[1]]}, source(), "sft")
    assert isinstance(item, Conversation)
    assert [turn.role for turn in item.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    item = parse_row({"messages": [*TURNS, TURNS[0], calling]}, source(), "sft")
    assert isinstance(item, Conversation)
    assert [len(turn.tool_calls) for turn in item.messages] == [0, 0, 0, 2]
    row = {"prompt": [TURNS[0], calling, result], "chosen": "c", "rejected": "r", "tools": DESCRIBED}
    item = parse_row(row, source(), "preference")
    assert isinstance(item, PreferencePair)
    assert (item.prompt[-1].role, json.loads(item.tools or "")) == ("tool", DESCRIBED)


@pytest.mark.parametrize(
    ("keys", "weight"),
    [
        ({}, None), ({"weight": None, "train": None}, None), ({"weight": 0.5}, 0.5), ({"weight": 2}, 2.0),
        ({"train": True}, 1.0), ({"trainable": True}, 1.0), ({"loss_weight": 1.5}, 1.5),
        ({"weight": 0.25, "train": True}, 0.25),
    ],
)  # fmt: skip
def test_turn_may_have_its_own_weight(keys: dict, weight: float | None) -> None:
    silent = [{**TURNS[0], "weight": 0, "train": False}, {**TURNS[1], "train": False}]
    row = {"messages": [TURNS[0], {**TURNS[1], **keys}, *silent]}
    expected = (Q, Message("assistant", "a", (), weight), Q, Message("assistant", "a", (), 0.0))
    assert parse_row(row, source(), "sft") == Conversation(expected)


def test_weights_of_turns_do_not_affect_preference_answers() -> None:
    before = [*({**turn, "train": False} for turn in TURNS), MORE[-1]]
    pair = {"chosen": [*before, {**GOOD, "weight": 0.5}], "rejected": [*before, BAD]}
    assert parse_row(pair, source(), "preference") == PreferencePair((Q, A, Message("user", "more")), "good", "bad")


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_every_field_of_a_turn_is_kept(key: str) -> None:
    calling = {"role": "assistant", "content": None, key: "so", "tool_calls": [call(id="c1")]}
    result = {"role": "tool", "name": "add", "tool_call_id": "c1", "content": "2"}
    row = {"messages": [{**TURNS[0], "name": "Ann"}, calling, result, {**TURNS[1], key: ""}]}
    assert parse_row(row, source(), "sft") == Conversation((
        Message("user", "q", name="Ann"),
        Message("assistant", "", (ToolCall("add", '{"x": 1}', "c1"),), reasoning="so"),
        Message("tool", "2", name="add", tool_call_id="c1"),
        A,
    ))  # fmt: skip


def test_legacy_functions_become_tools() -> None:
    function = {"name": "add", "parameters": {}}
    calling = {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": "{}"}}
    turns = [TURNS[0], calling, {"role": "function", "name": "add", "content": "2"}, TURNS[1]]
    for row in ({"messages": turns, "functions": [function]}, {"messages": turns, "functions": json.dumps([function])}):
        item = parse_row(row, source(), "sft")
        assert isinstance(item, Conversation) and item.tools
        assert json.loads(item.tools) == [{"type": "function", "function": function}]
        assert item.messages[2] == Message("tool", "2", name="add")


def test_the_reasoning_of_preference_answers_is_kept_apart_from_them() -> None:
    good, bad = ({"role": "assistant", "content": "a", "reasoning_content": text} for text in ("right", "wrong"))
    pair = parse_row({"prompt": "q", "chosen": [good], "rejected": [bad]}, source(), "preference")
    assert pair.endings == (Message("assistant", "a", reasoning="right"), Message("assistant", "a", reasoning="wrong"))
    one = parse_row({"messages": [TURNS[0], good], "label": True}, source(), "label")
    assert one.endings == (Message("assistant", "a", reasoning="right"),)
