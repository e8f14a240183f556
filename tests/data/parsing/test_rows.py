"""Every schema is recognised; every row that cannot be used has a reason; an item survives being written."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fledge.data.parsing.columns import RowError
from fledge.data.parsing.detection import detect_item_type, schema_name
from fledge.data.parsing.items import (
    BinaryFeedback,
    Conversation,
    Document,
    Item,
    PreferencePair,
    deserialize,
    serialize,
)
from fledge.data.parsing.messages import ROLES
from fledge.data.parsing.row_statistics import placeholders
from fledge.recipe.schema import Source
from fledge.tokenizer import Message
from fledge.tokenizer.template import ToolCall
from tests.support.parsing import parse_row

KINDS = ("pretrain", "sft", "preference", "label")
Q, A, S = Message("user", "q"), Message("assistant", "a"), Message("system", "s")
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
FROM = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("good", "bad"))
FROM_GOOD, FROM_BAD = ({"from": "gpt", "value": text} for text in ("good", "bad"))
MORE = [*TURNS, {"role": "user", "content": "more"}]
DESCRIBED = [{"name": "add", "parameters": {"数": [1.5, None]}}]


def source(**keys: Any) -> Source:
    """A source with these keys."""
    return Source(path="x", **keys)


def call(name: str = "add", arguments: Any = '{"x": 1}', **more: Any) -> dict:
    """A tool call in OpenAI's form."""
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def reason(row: Any, kind: str, **keys: Any) -> tuple[str, str]:
    """Reason and detail of the RowError for this row."""
    with pytest.raises(RowError) as caught:
        parse_row(row, source(**keys), kind)
    return caught.value.reason, caught.value.detail


# -- schemas of conversations -------------------------------------------------------------------------------------------

CONVERSATIONS = [
    ("prompt/response", {"prompt": "q", "response": "a"}, (Q, A)),
    ("prompt/response", {"question": "q", "answer": "a"}, (Q, A)),
    ("prompt/response", {"query": "q", "completion": "a", "id": 3}, (Q, A)),
    ("alpaca", {"instruction": "q", "output": "a"}, (Q, A)),
    ("alpaca", {"instruction": "q", "input": "", "output": "a", "history": [], "system": ""}, (Q, A)),
    ("alpaca", {"instruction": "q", "input": None, "output": "a", "history": None, "system": None}, (Q, A)),
    ("alpaca", {"instruction": "q", "input": "x", "output": "a"}, (Message("user", "q\nx"), A)),
    ("alpaca", {"instruction": "", "input": "q", "output": "a"}, (Q, A)),
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
     (Q, Message("assistant", "<think>\nhm\n</think>\n\na"))),
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


# -- tools --------------------------------------------------------------------------------------------------------------

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
         {"role": "function", "name": "add", "content": "2"}, TURNS[1]],
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


# -- weights ------------------------------------------------------------------------------------------------------------


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


# -- preferences and labels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "row", "prompt"),
    [
        ("preference (strings)", {"prompt": "q", "chosen": "good", "rejected": "bad"}, (Q,)),
        ("preference (strings)", {"instruction": "q", "input": "x", "chosen": "good", "rejected": "bad"},
         (Message("user", "q\nx"),)),
        ("preference (strings)", {"prompt": "q", "system": "s", "chosen": "good", "rejected": "bad"}, (S, Q)),
        ("ranked", {"conversations": FROM[:1], "chosen": FROM_GOOD, "rejected": FROM_BAD}, (Q,)),
        ("preference (messages)", {"prompt": TURNS[:1], "chosen": [GOOD], "rejected": [BAD]}, (Q,)),
        ("ranked", {"prompt": "q", "chosen": GOOD, "rejected": "bad"}, (Q,)),
        ("ranked list", {"instruction": "q", "input": "", "output": ["good", "bad"]}, (Q,)),
    ],
)  # fmt: skip
def test_every_schema_of_preferences_is_detected(name: str, row: dict, prompt: tuple) -> None:
    assert parse_row(row, source(), "preference") == PreferencePair(prompt, "good", "bad")
    assert (schema_name(row, source()), detect_item_type(row, source())) == (name, PreferencePair)


@pytest.mark.parametrize("answers", [["good", "bad"], [GOOD, BAD], [[GOOD], [BAD]]])
def test_list_of_two_answers_is_a_ranking_if_the_recipe_names_the_column(answers: list) -> None:
    ranked = source(columns={"ranked": "answers"})
    row = {"prompt": "q", "answers": answers}
    assert parse_row(row, ranked, "preference") == PreferencePair((Q,), "good", "bad")
    assert (schema_name(row, ranked), detect_item_type(row, ranked)) == ("ranked list", PreferencePair)


@pytest.mark.parametrize(("extra", "head"), [({}, ()), ({"prompt": "q"}, ()), ({"system": "s"}, (S,))])
def test_whole_conversations_contain_the_prompt_and_other_columns_are_ignored(extra: dict, head: tuple) -> None:
    pair = {name: [*MORE, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    item = parse_row({**extra, **pair}, source(), "preference")
    assert item == PreferencePair((*head, Q, A, Message("user", "more")), "chosen", "rejected")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS, "label": True},
        {"conversations": FROM, "kto_tag": True},
        {"prompt": "q", "completion": "a", "label": True},
        {"prompt": TURNS[:1], "completion": TURNS[1:], "label": True},
        {"instruction": "q", "input": "", "output": "a", "kto_tag": True},
    ],
)
def test_labelled_answers_are_detected_and_only_desirable_ones_are_used_for_fine_tuning(row: dict) -> None:
    assert parse_row(row, source(), "label") == BinaryFeedback((Q,), "a", True)
    assert (schema_name(row, source()), detect_item_type(row, source())) == ("kto", BinaryFeedback)
    assert parse_row(row, source(), "sft") == Conversation((Q, A))
    unwanted = {name: False if value is True else value for name, value in row.items()}
    assert parse_row(unwanted, source(), "label") == BinaryFeedback((Q,), "a", False)
    assert reason(unwanted, "sft")[0] == "labelled undesirable"


def test_label_that_is_not_boolean_is_ignored_unless_the_recipe_names_it() -> None:
    row = {"prompt": "q", "response": "a", "label": 0}
    assert parse_row(row, source(), "sft") == Conversation((Q, A))
    assert detect_item_type(row, source()) is Conversation
    assert reason(row, "label")[0] == "wrong type"
    assert reason(row, "sft", columns={"label": "label"})[0] == "wrong type"


# -- rows that cannot be used -------------------------------------------------------------------------------------------

FUNCTION = {"from": "function_call", "value": '{"name": "add", "arguments": {}}'}
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}

BROKEN = [
    ("pretrain", "just text", "not an object", "str"),
    ("pretrain", [1], "not an object", "list"),
    ("pretrain", {"text": 3}, "wrong type", "'text' is int, not text"),
    ("pretrain", {"text": ["a", 3]}, "wrong type", "'text' is list"),
    ("pretrain", {"text": " \n"}, "empty text", ""),
    ("pretrain", {"body": "x"}, "no known column", "the row has body"),
    ("pretrain", {"text": None}, "no known column", "the row has text"),
    ("pretrain", {"text": "a\ud800"}, "undecodable", "surrogate"),
    ("pretrain", {"text": "<image> a cat", "images": ["cat.png"]}, "not text", "the row has images"),
    ("sft", {"prompt": "q", "response": " "}, "empty answer", ""),
    ("sft", {"prompt": " ", "response": "a"}, "empty question", ""),
    ("sft", {"prompt": "", "response": "a"}, "empty question", ""),
    ("sft", {"prompt": "q", "response": None}, "no answer", ""),
    ("sft", {"prompt": "q", "response": {"a": 1}}, "wrong type", "'response' is dict"),
    ("sft", {"prompt": "q", "output": ["good", "bad"]}, "wrong type", "columns.ranked"),
    ("sft", {"prompt": 3, "response": "a"}, "wrong type", "'prompt' is int"),
    ("sft", {"text": "a"}, "no known column", "the row has text"),
    ("sft", {"messages": []}, "no turns", ""),
    ("sft", {"prompt": [], "response": "a"}, "no turns", ""),
    ("sft", {"messages": "hello"}, "wrong type", "the turns are str"),
    ("sft", {"messages": ["hello"]}, "wrong type", "turn 1 is str"),
    ("sft", {"messages": [{"role": "user"}]}, "wrong type", "turn 1 has no content or value; it has role"),
    ("sft", {"messages": [{"role": "user", "content": {}}, TURNS[1]]}, "wrong type", "the content of turn 1 is dict"),
    ("sft", {"messages": [{"role": "wizard", "content": "q"}, TURNS[1]]}, "unknown role", "turn 1: 'wizard'"),
    ("sft", {"messages": [{"role": ["user"], "content": "q"}, TURNS[1]]}, "unknown role", "turn 1"),
    ("sft", {"messages": [{"content": "q"}, TURNS[1]]}, "unknown role", "turn 1 has no role or from"),
    ("sft", {"messages": [{"role": "\udfff", "content": "q"}, TURNS[1]]}, "unknown role", "turn 1: '?'"),
    ("sft", {"messages": [TURNS[1], TURNS[0]]}, "roles out of order", "turn 1 is assistant, expected user"),
    ("sft", {"messages": [TURNS[0], TURNS[0], TURNS[1]]}, "roles out of order", "turn 2 is user, expected assistant"),
    ("sft", {"messages": [*TURNS, TURNS[1]]}, "roles out of order", "turn 3 is assistant, expected user or tool"),
    ("sft", {"messages": [*TURNS, {"role": "system", "content": "s"}]}, "roles out of order", "turn 3 is system"),
    ("sft", {"messages": [{"role": "system", "content": "s"}, TURNS[1]]}, "roles out of order",
     "turn 2 is assistant, expected user"),
    ("sft", {"messages": [{"role": "tool", "content": "2"}, TURNS[1]]}, "roles out of order", "turn 1 is tool"),
    ("sft", {"conversations": [FROM[0], FUNCTION, FUNCTION]}, "roles out of order", "turn 3 is assistant"),
    ("sft", {"conversations": [*FROM, {"from": "observation", "value": "2"}, FROM[0]]}, "roles out of order",
     "turn 4 is user, expected tool or assistant"),
    ("sft", {"messages": [{"role": "system", "content": "s"}]}, "no turns", ""),
    ("sft", {"messages": [*TURNS, TURNS[0]]}, "no answer", ""),
    ("sft", {"conversations": [*FROM, {"from": "observation", "value": "2"}]}, "no answer", ""),
    ("sft", {"prompt": "q", "response": "a", "history": [["q"]]}, "wrong type", "the history"),
    ("sft", {"prompt": "q", "response": "a", "history": [["q", None]]}, "wrong type", "the history"),
    ("sft", {"prompt": "q", "response": "a", "history": "q"}, "wrong type", "the history"),
    ("sft", {"messages": [IMAGE, TURNS[1]]}, "not text", "turn 1 has a part of type 'image_url'"),
    ("sft", {"messages": [{"role": "user", "content": ["q"]}, TURNS[1]]}, "wrong type", "a content part of turn 1 is str"),
    ("sft", {"messages": [{"role": "user", "content": [{"type": "text"}]}, TURNS[1]]}, "wrong type", "has no text"),
    ("sft", {"messages": TURNS, "videos": "v.mp4"}, "not text", "the row has videos"),
    ("sft", {"conversations": [FROM[0], {"from": "function_call", "value": "add(1)"}]}, "tool calls are not JSON", ""),
    ("sft", {"conversations": [FROM[0], {"from": "function_call", "value": ""}]}, "empty answer", ""),
    ("sft", {"conversations": [FROM[0], {"from": "function_call", "value": "[3]"}]}, "wrong type", "turn 2 has no name"),
    ("sft", {"conversations": [FROM[0], {"from": "function_call", "value": "[" * 100_000}]}, "tool calls are not JSON", ""),
    ("sft", {"messages": [TURNS[0], {"role": "assistant", "tool_calls": [call("")]}]}, "wrong type", "turn 2 has no name"),
    ("sft", {"messages": [TURNS[0], {"role": "assistant", "tool_calls": [call(arguments="1,")]}]},
     "tool calls are not JSON", ""),
    ("sft", {"messages": [TURNS[0], {"role": "assistant", "tool_calls": [call(arguments="[1]")]}]}, "wrong type",
     "the arguments of 'add' in turn 2 are list, not an object"),
    ("sft", {"messages": [TURNS[0], {"role": "assistant", "tool_calls": [call(arguments='{"x": NaN}')]}]},
     "tool calls are not JSON", ""),
    ("sft", {"messages": [TURNS[0], {"role": "assistant", "tool_calls": [call(arguments='{"x": "\\ud800"}')]}]},
     "undecodable", "surrogate"),
    ("sft", {"messages": [TURNS[0], {"role": "assistant", "tool_calls": [call(arguments={"x": b"1"})]}]},
     "tool calls are not JSON", "bytes"),
    ("sft", {"messages": [{**TURNS[0], "tool_calls": [call()]}, TURNS[1]]}, "wrong type", "turn 1 is user and has tool calls"),
    ("sft", {"messages": TURNS, "tools": "[3"}, "tools are not JSON", ""),
    ("sft", {"messages": TURNS, "tools": ["add"]}, "wrong type", "the tools are not a list of objects"),
    ("sft", {"messages": [TURNS[0], {**TURNS[1], "weight": -1}]}, "wrong weight", "the weight of turn 2 is -1"),
    ("sft", {"messages": [TURNS[0], {**TURNS[1], "weight": float("nan")}]}, "wrong weight", "nan"),
    ("sft", {"messages": [TURNS[0], {**TURNS[1], "weight": 10**400}]}, "wrong weight", "1000"),
    ("sft", {"messages": [TURNS[0], {**TURNS[1], "weight": "1"}]}, "wrong type", "the weight of turn 2 is str"),
    ("sft", {"messages": [TURNS[0], {**TURNS[1], "train": 1}]}, "wrong type", "not true or false"),
    ("sft", {"messages": [{**TURNS[0], "train": True}, TURNS[1]]}, "wrong weight", "turn 1 is user"),
    ("sft", {"messages": [TURNS[0], {**TURNS[1], "train": False}]}, "no trained turn", ""),
    ("preference", {"prompt": "q", "chosen": "a", "rejected": "a"}, "chosen equals rejected", ""),
    ("preference", {"prompt": "q", "chosen": "a", "rejected": ""}, "empty answer", "rejected"),
    ("preference", {"prompt": " ", "chosen": "a", "rejected": "b"}, "empty question", ""),
    ("preference", {"prompt": "q", "chosen": "a"}, "no known column", "no 'rejected'"),
    ("preference", {"chosen": "a", "rejected": "b"}, "no known column", "no prompt"),
    ("preference", {"sentence_good": "a", "sentence_bad": "b"}, "no known column", "no 'chosen'"),
    ("preference", {"prompt": TURNS, "chosen": "a", "rejected": "b"}, "prompt ends with an answer", ""),
    ("preference", {"prompt": "q", "chosen": TURNS[:1], "rejected": "b"}, "no answer", "'chosen' does not end"),
    ("preference", {"prompt": "q", "chosen": TURNS, "rejected": "b"}, "prompts differ", ""),
    ("preference", {"chosen": TURNS, "rejected": [MORE[-1], TURNS[1]]}, "prompts differ", ""),
    ("preference", {"conversations": FROM[:1], "chosen": FUNCTION, "rejected": FROM_BAD}, "answer is a tool call", "chosen"),
    ("label", {"prompt": "q", "completion": "a"}, "no known column", "no label"),
    ("label", {"prompt": "q", "completion": "a", "label": "yes"}, "wrong type", "the label is str"),
    ("label", {"prompt": "q", "completion": "", "label": True}, "empty answer", ""),
    ("label", {"conversations": [FROM[0], FUNCTION], "label": True}, "answer is a tool call", ""),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "row", "why", "detail"), BROKEN)
def test_unusable_row_has_a_reason_and_a_detail(kind: str, row: Any, why: str, detail: str) -> None:
    result = reason(row, kind)
    assert result[0] == why
    assert detail in result[1]


@pytest.mark.parametrize("ranked", ["ab", ["a"], ["a", "b", "c"]])
def test_ranking_must_have_two_answers(ranked: Any) -> None:
    result = reason({"prompt": "q", "r": ranked}, "preference", columns={"ranked": "r"})
    assert result == ("wrong type", "the ranked answers are not a list of two, the better first")


def test_detail_of_an_unusable_row_is_short() -> None:
    assert len(reason({"messages": [{"role": "x" * 10_000, "content": "q"}]}, "sft")[1]) <= 300


KEYS = st.sampled_from(
    ["text", "prompt", "instruction", "input", "output", "response", "history", "messages", "conversations", "chosen",
     "rejected", "system", "tools", "label", "role", "content", "from", "value", "tool_calls", "function_call", "function",
     "name", "arguments", "weight", "train", "type", "images", "reasoning_content"]
)  # fmt: skip
ATOMS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.sampled_from([*ROLES, "text", "{}", "[]", "\ud800"]),
)  # fmt: skip
ANYTHING = st.recursive(ATOMS, lambda inside: st.lists(inside, max_size=3) | st.dictionaries(KEYS, inside, max_size=4))
TURN = st.fixed_dictionaries({"role": st.sampled_from([*ROLES]), "content": ANYTHING}, optional={"tool_calls": ANYTHING,
                              "weight": ATOMS, "train": ATOMS})  # fmt: skip
ROWS = st.one_of(
    ANYTHING,
    st.dictionaries(KEYS, ANYTHING, max_size=6),
    st.fixed_dictionaries({"messages": st.lists(TURN, max_size=4)}, optional={"tools": ANYTHING, "label": ATOMS}),
)
SOURCES = st.sampled_from(
    [source(), source(columns={"prompt": "instruction", "query": "input", "response": "output", "history": "history"}),
     source(columns={"messages": "messages", "ranked": "output"}, turns={"role": "name", "content": "text"}),
     source(columns={"text": ["text", "output"], "label": "label", "system": ""})]
)  # fmt: skip


@settings(max_examples=400)
@given(ROWS, SOURCES, st.sampled_from(KINDS))
def test_any_row_is_an_item_or_has_a_reason(row: Any, read_as: Source, kind: str) -> None:
    """Every row is an item that can be serialized, or has a reason; a schema name is always given."""
    assert isinstance(schema_name(row, read_as), str)
    try:
        item = parse_row(row, read_as, kind)
    except RowError as error:
        orjson.dumps([error.reason, error.detail])
        assert error.reason
    else:
        assert deserialize(serialize(item)) == item


# -- writing, placeholders, real files ----------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
MESSAGES = st.lists(
    st.builds(
        Message, TEXT, TEXT, st.lists(st.builds(ToolCall, TEXT, TEXT), max_size=2).map(tuple),
        st.none() | st.floats(0, 1e300),
    ), max_size=4,
).map(tuple)  # fmt: skip
TOOLS = st.none() | TEXT
ITEMS = st.one_of(
    st.builds(Document, TEXT), st.builds(Conversation, MESSAGES, TOOLS), st.builds(PreferencePair, MESSAGES, TEXT, TEXT, TOOLS),
    st.builds(BinaryFeedback, MESSAGES, TEXT, st.booleans(), TOOLS),
)  # fmt: skip


@given(ITEMS)
@example(Document("line\nbreak\u2028\x00"))
@example(Conversation((Message("assistant", "", (), 0.1), Message("assistant", "", (ToolCall("", ""),)))))
@example(Conversation((Message("assistant", "", (), 0.0),)))
def test_item_survives_serialization(item: Item) -> None:
    line = serialize(item)
    assert b"\n" not in line
    assert deserialize(line + b"\n") == item


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I am {{name}}, made by {{ author }}; {{name}}!", ["{{name}}", "{{ author }}"]),
        ("我是{{name}}，由{{author_2}}开发", ["{{name}}", "{{author_2}}"]),
        ("I am <NAME> of <AUTHOR>", ["<NAME>", "<AUTHOR>"]),
        (r"$\frac{{ab}}{{cd}}$ x^{{ab}} {{x}} {{{name}}} ${{secret}}", []),
        ("{name} {{}} {{a b}} {{ item.name }} {{1}} <name> <B>", []),
    ],
)
def test_placeholders_are_detected_and_formulas_are_not(text: str, expected: list[str]) -> None:
    assert placeholders(Document(text)) == expected
    assert placeholders(Conversation((Q, Message("assistant", text)))) == expected
    assert placeholders(PreferencePair((Message("user", text),), "c", "r")) == expected
    assert placeholders(PreferencePair((Q,), "c", text)) == expected
    assert placeholders(BinaryFeedback((Q,), text, True)) == expected


REAL = [
    ("llamafactory/alpaca_en_demo.json", {}, "sft", "alpaca", 999),
    ("llamafactory/alpaca_zh_demo.json", {}, "sft", "alpaca", 1000),
    ("llamafactory/identity.json", {}, "sft", "alpaca", 91),
    ("llamafactory/c4_demo.jsonl", {}, "pretrain", "text", 300),
    ("llamafactory/wiki_demo.txt", {}, "pretrain", "text", 30),
    ("llamafactory/dpo_en_demo.json", {}, "preference", "ranked", 300),
    ("llamafactory/dpo_zh_demo.json", {}, "preference", "ranked", 300),
    ("llamafactory/kto_en_demo.json", {}, "label", "kto", 300),
    ("llamafactory/glaive_toolcall_en_demo.json", {}, "sft", {"tool calls": 191, "sharegpt (from/value)": 109}, 300),
    ("llamafactory/glaive_toolcall_zh_demo.json", {}, "sft", {"tool calls": 200, "sharegpt (from/value)": 100}, 300),
    ("chatlm/my_train_dataset_3k.parquet", {}, "sft", "prompt/response", 3000),
    ("chatlm/my_valid_dataset_1k.parquet", {}, "sft", "prompt/response", 1000),
    ("chatlm/my_test_dataset_2k.parquet", {}, "sft", "prompt/response", 2000),
    ("poetry/poet.tang.0.json", {"text": "paragraphs"}, "pretrain", "text", 1000),
    ("gsm8k/train.jsonl", {}, "sft", "prompt/response", 7473),
    ("gsm8k/test.jsonl", {}, "sft", "prompt/response", 1319),
    ("blimp/wh_island.jsonl", {"text": "sentence_good"}, "pretrain", "text", 1000),
    ("shakespeare/input.txt", {}, "pretrain", "text", 32777),
]


def rows_of(file: Path) -> Iterator[Any]:
    """The rows of a file, read in the plainest way."""
    if file.suffix == ".json":
        yield from json.loads(file.read_text(encoding="utf-8"))
    elif file.suffix == ".parquet":
        yield from pytest.importorskip("pyarrow.parquet").read_table(file).to_pylist()
    else:
        for line in file.read_text(encoding="utf-8").split("\n"):
            if line.strip():
                yield json.loads(line) if file.suffix == ".jsonl" else {"text": line}


@pytest.mark.parametrize(("name", "columns", "kind", "schema", "count"), REAL)
def test_every_row_of_every_real_file_is_parsed(
    shared_data: Path, name: str, columns: dict, kind: str, schema: str | dict, count: int
) -> None:
    read_as, schemas = source(columns=columns), Counter()
    for row in rows_of(shared_data / name):
        item = parse_row(row, read_as, kind)
        assert deserialize(serialize(item)) == item
        schemas[schema_name(row, read_as)] += 1
        assert detect_item_type(row, read_as) is type(item)
    assert schemas == ({schema: count} if isinstance(schema, str) else schema)
    assert sum(schemas.values()) == count


def test_real_labels_tool_calls_and_placeholders_are_detected(shared_data: Path) -> None:
    folder = shared_data / "llamafactory"
    reasons = Counter()
    for row in rows_of(folder / "kto_en_demo.json"):
        try:
            parse_row(row, source(), "sft")
        except RowError as error:
            reasons[error.reason] += 1
    assert reasons == {"labelled undesirable": 150}

    rows = list(rows_of(folder / "glaive_toolcall_zh_demo.json"))
    items = [parse_row(row, source(), "sft") for row in rows]
    calls = [call for item in items if isinstance(item, Conversation) for turn in item.messages for call in turn.tool_calls]
    written = [turn["value"] for row in rows for turn in row["conversations"] if turn["from"] == "function_call"]
    assert len(calls) == 216
    assert [{"name": c.name, "arguments": json.loads(c.arguments)} for c in calls] == [json.loads(text) for text in written]

    counts = Counter(
        name for row in rows_of(folder / "identity.json") for name in placeholders(parse_row(row, source(), "sft"))
    )
    assert counts == {"{{name}}": 77, "{{author}}": 60}
    for name in ("gsm8k/train.jsonl", "llamafactory/alpaca_en_demo.json"):
        assert not any(placeholders(parse_row(row, source(), "sft")) for row in rows_of(shared_data / name))
