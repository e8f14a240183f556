"""Shapes of rows that public data has: JSON in text, lists of texts, transcripts, seed tasks, Chinese columns."""

import json
from typing import Any

import pytest

from fledge.data.parsing.columns import RowError
from fledge.data.parsing.detection import detect_item_type, schema_name
from fledge.data.parsing.items import Conversation, Document, PreferencePair
from fledge.data.parsing.rows import Parsed, read_row
from fledge.recipe.schema import Source
from fledge.tokenizer import Message
from fledge.tokenizer.template import ToolCall
from tests.support.chat_rows import BAD, FROM, GOOD, TURNS, A, Q, S, reason, source
from tests.support.parsing import PARSERS, parse_row

PAIR = PreferencePair((Q,), "good", "bad")
CHOSEN, REJECTED = ([TURNS[0], answer] for answer in (GOOD, BAD))


def read(row: Any, kind: str = "sft", **keys: Any) -> Parsed:
    """A row as it was parsed."""
    return read_row(row, source(**keys), PARSERS[kind])


@pytest.mark.parametrize("turns", [TURNS, FROM])
@pytest.mark.parametrize("dump", [json.dumps, lambda turns: f"\n {json.dumps(turns, indent=1)}"])
def test_json_text_of_turns_is_read_in_every_column_that_may_hold_turns(turns: list, dump: Any) -> None:
    for row in (
        {"messages": dump(turns)},
        {"conversations": dump(turns)},
        {"prompt": dump(turns)},
        {"prompt": dump(turns[:1]), "response": "a"},
        {"prompt": dump(turns[:1]), "completion": dump(turns[1:])},
        {"messages": dump({"messages": turns})},
        {"messages": {"conversations": turns}},
        turns,
    ):
        assert parse_row(row, source(), "sft") == Conversation((Q, A))
        assert detect_item_type(row, source()) is Conversation


def test_json_text_of_turns_is_read_in_preference_data() -> None:
    good, bad, both = json.dumps([GOOD]), json.dumps([BAD]), {"chosen": json.dumps(CHOSEN), "rejected": json.dumps(REJECTED)}
    for row in (
        {"prompt": "q", "chosen": good, "rejected": bad},
        {"prompt": "q", "chosen": json.dumps(GOOD), "rejected": json.dumps(BAD)},
        {"prompt": json.dumps(TURNS[:1]), "chosen": good, "rejected": bad},
        both,
        {"chosen": json.dumps({"messages": CHOSEN}), "rejected": json.dumps({"messages": REJECTED})},
        {"chosen": {"messages": CHOSEN}, "rejected": {"messages": REJECTED}},
    ):
        assert parse_row(row, source(), "preference") == PAIR
        assert (detect_item_type(row, source()), schema_name(row, source())[:6]) in (
            (PreferencePair, "prefer"),
            (PreferencePair, "ranked"),
        )
    assert [event.reason for event in read(both, "preference").events] == ["JSON text in answers is read as turns"]
    ranked = {"prompt": "q", "r": json.dumps(["good", "bad"])}
    assert parse_row(ranked, source(columns={"ranked": "r"}), "preference") == PAIR


LOOKS_LIKE_JSON = ["[1, 2]", "[", '{"a": 1}', "[x](y)", '["a"]', '[{"name": "x"}]', "{", "[]", '[{"role": "user"'.strip()]


@pytest.mark.parametrize("text", LOOKS_LIKE_JSON)
def test_text_that_only_looks_like_json_stays_text(text: str) -> None:
    assert parse_row({"prompt": text, "response": text}, source(), "sft") == Conversation(
        (Message("user", text), Message("assistant", text))
    )
    assert parse_row({"prompt": text, "chosen": text, "rejected": "bad"}, source(), "preference") == PreferencePair(
        (Message("user", text),), text, "bad"
    )
    assert parse_row({"text": text}, source(), "pretrain") == Document(text)


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("sft", {"messages": str(TURNS)}),
        ("sft", {"prompt": str(TURNS)}),
        ("sft", {"prompt": "q", "response": str(TURNS[1:])}),
        ("preference", {"prompt": "q", "chosen": str([GOOD]), "rejected": str([BAD])}),
        ("sft", {"messages": TURNS, "tools": str([{"name": "f"}])}),
        ("sft", {"conversations": [FROM[0], {"from": "function_call", "value": "{'name': 'f', 'arguments': {}}"}]}),
    ],
)
def test_turns_that_python_printed_are_called_so(kind: str, row: dict) -> None:
    assert "write it with json.dumps" in reason(row, kind)[1]


def test_text_of_turns_that_is_broken_json_names_the_mistake() -> None:
    text, detail = reason({"messages": '[{"role": "user", "content": "q"}'}, "sft")
    assert (text, "not JSON" in detail) == ("wrong type", True)


def test_a_list_of_texts_alternates_only_if_the_recipe_says_so() -> None:
    texts = ["q", "a", "q", "a"]
    for row in ({"messages": texts}, {"conversation": json.dumps(texts)}, texts):
        assert parse_row(row, source(alternating_turns=True), "sft") == Conversation((Q, A, Q, A))
        assert "write alternating_turns: true" in reason(row, "sft")[1]
    roles = {"alternating_turns": True, "turns": {"role": "who"}, "roles": {"me": "user", "bot": "assistant"}}
    assert parse_row({"messages": texts}, source(**roles), "sft") == Conversation((Q, A, Q, A))
    assert reason(["q", "a", "q"], "sft", alternating_turns=True)[0] == "no answer"


def test_a_list_of_texts_is_joined_in_documents_and_told_elsewhere() -> None:
    assert read({"text": ["a", "b"]}, "pretrain").item == Document("a\nb")
    assert read(["a", "b"], "pretrain").item == Document("a\nb")
    joined = read({"instruction": "q", "input": ["x", "y"], "output": "a"})
    assert [event.reason for event in joined.events] == ["a list of texts is joined by line breaks"]
    text, detail = reason({"question": ["q", "a"], "answer": "b"}, "sft")
    assert text == "list of texts" and "columns: {prompt: question}" in detail and "alternating_turns" in detail
    named = read({"question": ["x", "y"], "answer": ["a"]}, columns={"prompt": "question", "response": "answer"})
    assert named.item == Conversation((Message("user", "x\ny"), A)) and named.events == []


def test_transcripts_without_a_prompt_column_are_split_into_turns() -> None:
    begin = "\n\nHuman: q\n\nAssistant: a\n\nHuman: more\nlines\n\nAssistant:"
    row = {"chosen": f"{begin} good", "rejected": f"{begin} bad"}
    item = PreferencePair((Q, A, Message("user", "more\nlines")), "good", "bad")
    parsed = read(row, "preference")
    assert parsed.item == item
    assert [(event.state, event.reason) for event in parsed.events] == [("changed", "a transcript is read as turns")]
    assert read({"prompt": begin, "chosen": "good", "rejected": "bad"}, "preference").item == item
    with_prompt = {"prompt": "q", **row}
    assert read(with_prompt, "preference").item == PreferencePair((Q,), row["chosen"], row["rejected"])
    assert reason({"chosen": "\n\nHuman: q\n\nAssistant: x", "rejected": "\n\nHuman: other\n\nAssistant: y"}, "preference")[
        0
    ] == ("prompts differ")
    assert reason({"chosen": "Human: q", "rejected": "Human: r"}, "preference")[0] == "no known column"


def test_seed_tasks_give_their_first_instance() -> None:
    row = {"id": "s1", "instruction": "q", "instances": [{"input": "x", "output": "a"}], "is_classification": False}
    parsed = read(row)
    assert parsed.item == Conversation((Message("user", "q\nx"), A))
    assert (parsed.events, parsed.unread_columns) == ([], ["id", "is_classification"])
    several = read({**row, "instances": [*row["instances"], {"input": "y", "output": "b"}]})
    assert [(event.reason, event.detail) for event in several.events] == [
        ("of several instances only the first is read", "2 instances")
    ]
    assert detect_item_type(row, source()) is Conversation


def test_scored_answers_give_the_best_and_the_worst() -> None:
    answers = [
        {"model": m, "response": r, "overall_score": s} for m, r, s in (("x", "so", 5.0), ("y", "good", 9), ("z", "bad", 1.5))
    ]
    row = {"instruction": "q", "completions": answers}
    parsed = read(row, "preference")
    assert parsed.item == PAIR
    assert parsed.events[0].detail == "3 answers, scores 9 and 1.5"
    assert (detect_item_type(row, source()), schema_name(row, source())) == (PreferencePair, "scored list")
    equal = {**row, "completions": [{**answer, "overall_score": 3} for answer in answers]}
    assert reason(equal, "preference")[0] == "chosen equals rejected"
    assert reason({**row, "completions": answers[:1]}, "preference")[0] == "no known column"


def test_pairs_of_input_and_output_are_rounds() -> None:
    rounds = [{"system": "s", "input": "q", "output": "a"}, {"input": "q", "output": "a", "loss": False}]
    item = read({"conversation": rounds}).item
    assert item == Conversation((S, Q, A, Q, Message("assistant", "a", (), 0.0)))


@pytest.mark.parametrize(
    "columns",
    [
        ("问题", "回答"), ("提问", "答案"), ("问", "答"), ("指令", "输出"), ("输入", "输出"), ("Question", "Answer"),
        ("PROMPT", " Completion "), ("Q", "A"), ("input", "output"), ("user", "assistant"), ("用户", "助手"), ("human", "bot"),
        ("question", "回复"),
    ],
)  # fmt: skip
def test_usual_columns_are_found_in_several_languages_and_spellings(columns: tuple[str, str]) -> None:
    row = dict(zip(columns, ("q", "a"), strict=True))
    parsed = read(row)
    assert (parsed.item, parsed.unread_columns) == (Conversation((Q, A)), [])
    assert detect_item_type(row, source()) is Conversation


def test_chinese_instructions_have_an_input_and_documents_a_text() -> None:
    assert read({"指令": "q", "输入": "x", "输出": "a"}).item == Conversation((Message("user", "q\nx"), A))
    for column in ("正文", "内容", "文本"):
        parsed = read({"标题": "t", column: "x"}, "pretrain")
        assert (parsed.item, parsed.unread_columns) == (Document("x"), ["标题"])


def test_an_exact_name_comes_before_another_spelling() -> None:
    assert read({"PROMPT": "no", "prompt": "q", "response": "a"}).item == Conversation((Q, A))


def test_a_row_without_a_known_column_prints_the_line_to_write() -> None:
    row = {"id": "7", "甲方": "q", "乙方": "a"}
    keys = {"path": "qa.csv"}
    for kind, line in (
        ("sft", "{path: qa.csv, columns: {prompt: 甲方, response: 乙方}}"),
        ("pretrain", "{path: qa.csv, columns: {text: 甲方}}"),
        ("preference", ""),
    ):
        text, detail = reason_of(row, kind, **keys)
        assert text == "no known column" and line in detail
    assert parse_row(row, source(columns={"prompt": "甲方", "response": "乙方"}), "sft") == Conversation((Q, A))
    assert '{prompt: "a: b", response: "#c"}' in reason({"a: b": "x", "#c": "y"}, "sft")[1]


def reason_of(row: Any, kind: str, path: str) -> tuple[str, str]:
    """Reason and detail of a row that is read from this path."""
    with pytest.raises(RowError) as caught:
        parse_row(row, Source(path=path), kind)
    return caught.value.reason, caught.value.detail


CALL = ToolCall("f", '{"x": 1}')
PARTS = [
    [{"type": "reasoning", "value": "hm"}, {"type": "text", "value": "a"}],
    [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}],
    [{"type": "reasoning", "text": "hm"}, {"type": "output_text", "text": "a"}],
]


@pytest.mark.parametrize("parts", PARTS)
def test_reasoning_parts_are_the_reasoning_of_a_turn(parts: list) -> None:
    item = read({"messages": [TURNS[0], {"role": "assistant", "content": parts}]}).item
    assert item == Conversation((Q, Message("assistant", "a", reasoning="hm")))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "tool_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"type": "tool_call", "value": {"name": "f", "arguments": {"x": 1}}},
        {"type": "tool_use", "name": "f", "input": {"x": 1}},
        {"type": "function_call", "name": "f", "arguments": '{"x": 1}'},
        {"type": "tool_call", "tool_call": {"function": {"name": "f", "parameters": {"x": 1}}}},
    ],
)
def test_tool_call_parts_are_calls_of_a_turn(part: dict) -> None:
    parsed = read({"messages": [TURNS[0], {"role": "assistant", "content": [{"type": "text", "text": "wait"}, part]}]})
    assert parsed.item == Conversation((Q, Message("assistant", "wait", (CALL,))))
    assert parsed.events == []
    alone = read({"messages": [TURNS[0], {"role": "assistant", "content": [part]}]})
    assert alone.item == Conversation((Q, Message("assistant", "", (CALL,))))


def test_a_tool_result_may_be_any_json_value() -> None:
    called = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": 1}}]}
    parsed = read({"messages": [TURNS[0], called, {"role": "tool", "content": {"时": 3}}, TURNS[1]]})
    assert isinstance(parsed.item, Conversation)
    assert parsed.item.messages[2] == Message("tool", '{"时": 3}')
    assert [event.state for event in parsed.events] == ["changed"]
