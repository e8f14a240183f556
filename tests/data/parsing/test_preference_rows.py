"""Every schema of preferences and of labelled answers is recognized."""

import pytest

from fledge.data.parsing.detection import detect_item_type, schema_name
from fledge.data.parsing.items import (
    BinaryFeedback,
    Conversation,
    PreferencePair,
)
from fledge.tokenizer import Message
from tests.support.chat_rows import BAD, FROM, FROM_BAD, FROM_GOOD, GOOD, MORE, TURNS, A, Q, S, reason, source
from tests.support.parsing import parse_row


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


@pytest.mark.parametrize("column", ["label", "kto_tag"])
@pytest.mark.parametrize(
    ("yes", "no"),
    [
        (True, False),
        (1, 0),
        (1.0, 0.0),
        ("true", "false"),
        ("True", "FALSE"),
        ("1", " 0 "),
        ("yes", "no"),
        ("Desirable", "undesirable"),
    ],
)
def test_usual_spellings_of_a_label_decide_whether_an_answer_is_trained(yes: object, no: object, column: str) -> None:
    wanted, unwanted = ({"prompt": "q", "response": "a", column: value} for value in (yes, no))
    assert parse_row(wanted, source(), "sft") == Conversation((Q, A))
    assert reason(unwanted, "sft")[0] == "labelled undesirable"
    for row, desirable in ((wanted, True), (unwanted, False)):
        assert parse_row(row, source(), "label") == BinaryFeedback((Q,), "a", desirable)
        assert (schema_name(row, source()), detect_item_type(row, source())) == ("kto", BinaryFeedback)


@pytest.mark.parametrize("value", [2, -1, 0.5, float("nan"), "good", "sports", [True], {"value": 1}])
@pytest.mark.parametrize("columns", [{}, {"label": "label"}])
def test_a_label_of_another_meaning_is_an_error_that_says_how_to_ignore_it(value: object, columns: dict[str, str]) -> None:
    row = {"prompt": "q", "response": "a", "label": value}
    for kind in ("sft", "label"):
        text, detail = reason(row, kind, columns=columns)
        assert text == "unknown label" and "columns: {label: ''}" in detail
    assert parse_row(row, source(columns={"label": ""}), "sft") == Conversation((Q, A))
    assert detect_item_type(row, source()) is Conversation


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_missing_label_leaves_a_row_to_fine_tuning_and_is_an_error_for_binary_feedback(value: str | None) -> None:
    row = {"prompt": "q", "response": "a", "label": value}
    assert parse_row(row, source(), "sft") == Conversation((Q, A))
    assert reason(row, "label")[0] == "no known column"
