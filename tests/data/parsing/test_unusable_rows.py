"""A row that cannot be used has a reason and a short detail."""

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.data.parsing.columns import RowError
from fledge.data.parsing.detection import schema_name
from fledge.data.parsing.items import (
    deserialize,
    serialize,
)
from fledge.data.parsing.messages import ROLES
from fledge.recipe.schema import Source
from tests.support.chat_rows import FROM, FROM_BAD, KINDS, MORE, TURNS, call, reason, source
from tests.support.parsing import parse_row

FUNCTION = {"from": "function_call", "value": '{"name": "add", "arguments": {}}'}
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
BROKEN = [
    ("pretrain", 3, "not an object", "int"),
    ("pretrain", [1], "not an object", "list"),
    ("pretrain", TURNS, "no known column", "the row is a list of turns; turns are for a stage of kind sft"),
    ("sft", "just text", "no known column", "the row is a text; a text without a question is for a stage of kind pretrain"),
    ("sft", ["q", "a"], "wrong type", "write alternating_turns: true"),
    ("sft", {"prompt": ["q", "a"], "response": "b"}, "list of texts", "write columns: {prompt: prompt}"),
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
    ("sft", {"conversations": [*FROM, {"from": "observation", "value": "2"}, FROM[0]]}, "no answer", "the last turn is user"),
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
    ("sft", {"messages": [TURNS[0], {**TURNS[1], "weight": "much"}]}, "wrong type", "the weight of turn 2 is str"),
    ("sft", {"messages": [TURNS[0], {**TURNS[1], "train": []}]}, "wrong type", "the train of turn 2 is list"),
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
    ("sft", {"instruction": "q", "input": 7, "output": "a"}, "wrong type", "'input' is int"),
    ("sft", {"instruction": "q", "input": {"x": 1}, "output": "a"}, "wrong type", "'input' is dict"),
    ("sft", {"messages": [TURNS[0], {**TURNS[1], "reasoning_content": ["t"]}]}, "wrong type", "reasoning_content of turn 2"),
    ("label", {"prompt": "q", "completion": "a"}, "no known column", "no label"),
    ("label", {"prompt": "q", "completion": "a", "label": "maybe"}, "unknown label", "'maybe' is neither true nor false"),
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
