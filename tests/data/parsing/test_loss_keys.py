"""Keys of turns, parts and rows that say what is trained: honoured under all their names, or the row is refused."""

import json
from typing import Any

import pytest

from fledge.data.parsing.items import Conversation, Item
from fledge.data.parsing.rows import Parsed, read_row
from tests.support.chat_rows import FROM, TURNS, reason, source
from tests.support.parsing import PARSERS, parse_row

TRUE, FALSE = [True, 1, 1.0, "true", "True", "1", "yes"], [False, 0, 0.0, "false", "FALSE", " 0 ", "no"]
TRAINED = ["weight", "loss_weight", "loss_scale", "loss", "loss_mask", "step_loss_mask", "train", "trainable", "training"]


def read(row: Any, kind: str = "sft", **keys: Any) -> Parsed:
    """A row as it was parsed."""
    return read_row(row, source(**keys), PARSERS[kind])


def weights(item: Item) -> list[float | None]:
    """The weights of the answers of a conversation."""
    assert isinstance(item, Conversation)
    return [turn.weight for turn in item.messages if turn.role == "assistant"]


def two_answers(**keys: Any) -> dict[str, Any]:
    """A row of two rounds, of which the first answer has these keys."""
    return {"messages": [TURNS[0], {**TURNS[1], **keys}, *TURNS]}


@pytest.mark.parametrize("key", TRAINED)
def test_a_switch_under_any_name_and_in_any_spelling_decides_whether_a_turn_is_trained(key: str) -> None:
    for value in FALSE:
        assert weights(read(two_answers(**{key: value})).item) == [0.0, None], value
    for value in TRUE:
        assert weights(read(two_answers(**{key: value})).item) == [1.0, None], value
    assert weights(read(two_answers(**{key: None})).item) == [None, None]
    assert weights(read(two_answers(**{key: 0.25})).item) == [0.25, None]
    assert reason(two_answers(**{key: "perhaps"}), "sft")[0] == "wrong type"
    assert reason(two_answers(**{key: [1]}), "sft")[0] == "wrong type"


def test_masked_hides_a_turn_from_the_loss() -> None:
    assert [weights(read(two_answers(masked=value)).item)[0] for value in (True, "true", 1)] == [0.0] * 3
    assert weights(read(two_answers(masked=False)).item) == [1.0, None]
    assert reason(two_answers(masked=0.5), "sft")[0] == "wrong type"


def test_several_keys_multiply() -> None:
    assert weights(read(two_answers(weight=0.5, train=True)).item) == [0.5, None]
    assert weights(read(two_answers(loss_scale=2, loss=False)).item) == [0.0, None]
    assert weights(read(two_answers(loss_scale=0.5, masked=0, weight=0.5)).item) == [0.25, None]


def test_mask_is_read_only_where_its_meaning_is_certain() -> None:
    read_as_hidden = read(two_answers(mask=True))
    assert weights(read_as_hidden.item) == [0.0, None]
    assert "true hides a turn" in read_as_hidden.events[0].reason
    asked = [{**TURNS[0], "mask": 1}, {**TURNS[1], "mask": 1}, {**TURNS[0], "mask": 1}, {**TURNS[1], "mask": 0}]
    assert weights(read({"messages": asked}).item) == [0.0, 1.0]
    for value in (0, 1, "1"):
        text, detail = reason(two_answers(mask=value), "sft")
        assert text == "mask of two meanings"
        assert "turns: {masked: mask}" in detail and "turns: {weight: mask}" in detail
    assert weights(read(two_answers(mask=1), turns={"masked": "mask"}).item) == [0.0, None]
    assert weights(read(two_answers(mask=1), turns={"weight": "mask"}).item) == [1.0, None]


def test_the_recipe_names_the_key_of_a_weight() -> None:
    row = two_answers(keep="no", weight=1)
    item = read(row, turns={"weight": "keep"})
    assert weights(item.item) == [0.0, None]
    assert weights(read(two_answers(hide="yes"), turns={"masked": "hide"}).item) == [0.0, None]


@pytest.mark.parametrize("key", [*TRAINED, "masked"])
def test_parts_of_equal_weight_give_it_to_their_turn_and_unlike_parts_are_refused(key: str) -> None:
    off = key == "masked"

    def row(*values: Any) -> dict[str, Any]:
        parts = [{"type": "text", "text": str(number), key: value} for number, value in enumerate(values)]
        return {"messages": [TURNS[0], {"role": "assistant", "content": parts}, *TURNS]}

    assert weights(read(row(off, off)).item) == [0.0, None]
    assert weights(read(row(not off, not off)).item) == [1.0, None]
    assert reason(row(off, not off), "sft")[0] == "weights inside a turn"
    assert reason(row(None, off), "sft")[0] == "weights inside a turn"
    assert reason(two_answers(train_detail=[{"begin_offset": 0, "end_offset": 3, "train": False}]), "sft")[0] == (
        "weights inside a turn"
    )


@pytest.mark.parametrize("key", TRAINED)
def test_a_column_of_a_row_weighs_all_of_its_answers(key: str) -> None:
    for row in ({"prompt": "q", "response": "a"}, {"messages": [*TURNS, *TURNS]}, {"instruction": "q", "output": "a"}):
        assert {*weights(read({**row, key: True}).item)} == {1.0}
        for value in (False, 0, "false"):
            assert reason({**row, key: value}, "sft") == ("no trained turn", "the weight of every answer is 0")
    parsed = read({"prompt": "q", "response": "a", key: 75})
    assert weights(parsed.item) == [None]
    assert [event.reason for event in parsed.events] == [f"column '{key}' is not read as a weight"]
    assert parsed.unread_columns == [key]
    assert weights(read({"prompt": "q", "response": "a", key: 75}, columns={"weight": key}).item) == [75.0]
    ignored = read({"prompt": "q", "response": "a", key: 0}, columns={"weight": ""})
    assert weights(ignored.item) == [None] and ignored.events == []


def test_a_list_of_switches_weighs_turn_by_turn() -> None:
    row = {"conversations": [*FROM, *FROM], "loss_mask": [0, 0, 0, 1]}
    assert weights(read(row).item) == [0.0, 1.0]
    assert weights(read({**row, "system": "s"}).item) == [0.0, 1.0]
    assert reason({**row, "loss_mask": [0, 1]}, "sft") == ("wrong weight", "'loss_mask' has 2 weights, the row 4 turns")


def test_nemos_mask_names_the_role_that_is_not_trained() -> None:
    row = {"conversations": [*FROM], "mask": "User"}
    parsed = read(row)
    assert (weights(parsed.item), parsed.events, parsed.unread_columns) == ([None], [], [])
    assert reason({**row, "mask": 1}, "sft")[0] == "mask of two meanings"


def test_a_document_or_pair_of_weight_0_is_dropped_and_other_weights_are_noticed() -> None:
    assert reason({"text": "t", "train": False}, "pretrain") == ("no trained turn", "the row's own weight is 0")
    parsed = read({"text": "t", "loss_weight": 0.5}, "pretrain")
    assert [event.reason for event in parsed.events] == ["weights of rows are used for conversations only"]
    pair = {"prompt": "q", "chosen": [{**TURNS[1], "content": "good", "weight": 0}], "rejected": "bad"}
    assert [event.reason for event in read(pair, "preference").events] == [
        "weights of answers are not used in a preference stage"
    ]


UNKNOWN = [
    ({"messages": [TURNS[0], {**TURNS[1], "score": 3}]}, "key 'score' of turns is not read", "turn 2: score: 3"),
    ({"messages": [TURNS[0], {"role": "assistant", "content": [{"type": "text", "text": "a", "cache": {"x": 1}}]}]},
     "key 'cache' of content parts is not read", "turn 2: cache: {'x': 1}"),
    ({"messages": [TURNS[0], {"role": "assistant", "tool_calls": [{"name": "f", "args": {"x": 1}}]}]},
     "key 'args' of tool calls is not read", "turn 2: args: {'x': 1}"),
    ({"messages": [{**TURNS[0], "value": "other"}, TURNS[1]]}, "key 'value' of turns is not read", "turn 1: value: other"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "text", "detail"), UNKNOWN)
def test_an_unknown_key_is_noticed_once_with_an_example(row: dict, text: str, detail: str) -> None:
    (event,) = read({"messages": [*row["messages"], *row["messages"]]}).events
    assert (event.state, event.reason, event.detail) == ("noticed", text, detail)


def test_known_and_empty_keys_are_no_news() -> None:
    call = {"id": "1", "type": "function", "index": 0, "function": {"name": "f", "arguments": json.dumps({"a": 1})}}
    turns = [
        {"role": "user", "content": "q", "name": "n", "extra": None, "more": "", "list": []},
        {"role": "assistant", "content": "", "tool_calls": [call], "loss": True},
        {"role": "tool", "content": "r", "name": "f", "tool_call_id": "1"},
        {"role": "assistant", "content": "a", "reasoning_content": "because"},
    ]
    assert read({"messages": turns}).events == []


def test_columns_that_nothing_reads_are_listed() -> None:
    row = {"id": 7, "prompt": "q", "response": "a", "source": "web", "empty": "", "none": None, "list": []}
    assert read(row).unread_columns == ["id", "source"]
    assert read({"messages": TURNS, "prompt": "other", "system": "s"}).unread_columns == ["prompt"]
    with_system = {"messages": [{"role": "system", "content": "s"}, *TURNS], "system": "other"}
    assert read(with_system).unread_columns == ["system"]
    assert read({"text": "t", "title": "x"}, "pretrain").unread_columns == ["title"]
    assert read({"a": "t", "title": "x"}, "pretrain", columns={"text": ["title", "a"]}).unread_columns == []
    assert read({"prompt": "q", "chosen": "a", "rejected": "b", "score": 1}, "preference").unread_columns == ["score"]
    assert parse_row({"prompt": "q", "response": "a"}, source(), "sft") == read(row).item
