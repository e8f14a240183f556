"""Scores of answers: what counts as right, the kind of each mistake, and the sums by hand."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.evaluate.answers import RIGHT, AnsweredRow, count_outcomes, mark, score_answers
from fledge.generation import FinishReason

REFERENCE = '{"vehicle":"Taxi","pollutant":null}'


def row(expected: str, given: str, finish_reason: FinishReason = "stop", **more: object) -> AnsweredRow:
    """A row with a question that does not matter."""
    return AnsweredRow(where="a.jsonl:1", question="?", expected=expected, given=given, finish_reason=finish_reason, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "kind", "valid"),
    [
        (REFERENCE, RIGHT, True),
        (' {"pollutant": null,\n "vehicle": "Taxi"} ', RIGHT, True),
        ("", "empty", False),
        ('{"vehicle":"Taxi"', "not JSON", False),
        ('["Taxi",null]', "JSON, but no object", False),
        (f"Here: {REFERENCE}", "text around the JSON", False),
        (f"{REFERENCE}{REFERENCE}", "text around the JSON", False),
        ('{"vehicle":"Taxi","vehicle":"Taxi","pollutant":null}', "a key is there twice", False),
        ('{"vehicle":"Bus","pollutant":null}', "other name", True),
        ('{"vehicle":null,"pollutant":null}', "null for a name", True),
        ('{"vehicle":"Taxi","pollutant":"CO"}', "name for null", True),
        ('{"vehicle":"Taxi"}', "missing key", True),
        ('{"vehicle":"Taxi","pollutant":null,"fuel":null}', "unknown key", True),
        ('{"vehicle":["Taxi"],"pollutant":null}', "other name", True),
        ("[" * 100_000, "not JSON", False),
    ],
)
def test_each_answer_has_one_kind(given: str, kind: str, valid: bool) -> None:
    found = mark(row(REFERENCE, given))
    assert (found.kind, found.valid_json) == (kind, valid)
    assert bool(found.details) == (valid and kind != RIGHT)


def test_an_answer_that_was_cut_is_told_as_such_unless_it_is_complete() -> None:
    assert mark(row(REFERENCE, '{"vehicle":"Ta', "length")).kind == "not ended"
    assert mark(row(REFERENCE, REFERENCE, "length")).kind == RIGHT
    assert mark(row("yes", "yes, and so on", "length")).kind == "not ended"


def test_a_reference_of_plain_text_is_compared_as_text_and_has_no_json_scores() -> None:
    rows = [row("yes", " yes\n"), row("yes", "no")]
    marks = [mark(one) for one in rows]
    assert [one.kind for one in marks] == [RIGHT, "other text"]
    scores = score_answers(rows, marks)
    assert scores["exact_match"]["value"] == 0.5 and "valid_json" not in scores and "fields" not in scores


def test_the_sums_are_those_of_a_hand_count() -> None:
    answers = [
        ('{"a":"x","b":"y"}', '{"a":"x","b":"y"}'),  # 2 right
        ('{"a":"x","b":"y"}', '{"a":"x","b":"x"}'),  # 1 right, y missed, x invented
        ('{"a":"x","b":null}', '{"a":null,"b":"y"}'),  # x missed, y invented
        ('{"a":"x","b":null}', "nonsense"),  # x missed
        ('{"a":null,"b":null}', '{"a":null,"b":null}'),  # nothing to count
    ]
    rows = [row(expected, given) for expected, given in answers]
    scores = score_answers(rows, [mark(one) for one in rows])
    assert scores["exact_match"]["value"] == 2 / 5 and scores["valid_json"]["value"] == 4 / 5
    assert scores["precision"]["value"] == 3 / 5 and scores["recall"]["value"] == 3 / 6
    assert scores["f1"]["value"] == pytest.approx(6 / 11)
    assert scores["fields"]["a"]["recall"]["value"] == 2 / 4 and scores["fields"]["b"]["precision"]["value"] == 1 / 3
    assert scores["mistakes"] == {"other name": 1, "null for a name": 1, "not JSON": 1}
    assert scores["confused"] == {'"y" -> "x"': 1, '"x" -> null': 1, 'null -> "y"': 1}


def test_where_keys_differ_the_fields_are_the_names_and_groups_and_held_out_keys_stand_apart() -> None:
    rows = [
        row('{"车速":"speed","备注":null}', '{"车速":"speed","备注":null}', group="names", held_out=("车速",)),
        row('{"v":"speed","d":"date"}', '{"v":"date","d":"date"}', group="spellings", held_out=("v",)),
    ]
    scores = score_answers(rows, [mark(one) for one in rows])
    assert {name: one["recall"]["value"] for name, one in scores["fields"].items()} == {"date": 1.0, "speed": 0.5}
    assert scores["fields"]["date"]["precision"]["value"] == 0.5
    assert {name: one["exact_match"]["value"] for name, one in scores["groups"].items()} == {"names": 1.0, "spellings": 0.0}
    assert scores["held_out_fields"]["recall"]["value"] == 0.5


VALUES = st.none() | st.sampled_from(["a", "b", "c"])
OBJECTS = st.dictionaries(st.sampled_from(["k", "l", "m"]), VALUES, max_size=3)


@given(OBJECTS, OBJECTS)
def test_an_object_is_right_exactly_if_it_is_equal_and_outcomes_add_up(expected: dict, found: dict) -> None:
    one = mark(row(json.dumps(expected), json.dumps(found)))
    assert (one.kind == RIGHT) == (expected == found)
    outcomes = [outcome for _, outcome in count_outcomes(one.fields)]
    assert outcomes.count(0) + outcomes.count(2) == sum(value is not None for value in expected.values())
    assert outcomes.count(0) + outcomes.count(1) == sum(value is not None for value in found.values())


@given(st.text(max_size=40))
def test_any_answer_gets_a_mark(text: str) -> None:
    assert mark(row(REFERENCE, text)).kind and mark(row("yes", text)).kind
