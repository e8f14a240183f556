"""JSON files in other shapes than their names promise: every row is read once, with its line, whatever the block boundaries."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.data.reading.records import file_notices, spans_of
from fledge.data.reading.values import json_values
from fledge.recipe.schema import Source
from tests.support.data_files import CUTS, ROWS, pieces, records, values

TURNS = [{"role": "user", "content": "q ]}"}, {"role": "assistant", "content": "a"}]
FROM = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
TEXTS = ['"第一章"\n[{', "two", "three \\"]
OBJECTS = st.dictionaries(st.text(), st.recursive(st.text() | st.integers(-9, 9), st.lists, max_leaves=6), max_size=4)


def dumps(value: Any, indent: int | None = None) -> str:
    """A value as JSON with all characters as they are."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


SHAPES = {  # name of the file -> (content, rows)
    "array.jsonl": (dumps(ROWS, 2), ROWS),
    "one-line array.jsonl": (dumps(ROWS), ROWS),
    "bracket lines.jsonl": ("[\n" + ",\n".join(map(dumps, ROWS)) + "\n]\n", ROWS),
    "commas.jsonl": ("".join(f"{dumps(row)},\n" for row in ROWS), ROWS),
    "pretty.jsonl": ("\n".join(dumps(row, 2) for row in ROWS), ROWS),
    "pretty with commas.ndjson": (",\n".join(dumps(row, 4) for row in ROWS) + ",\n", ROWS),
    "pretty.json": ("\n\n".join(dumps(row, 2) for row in ROWS), ROWS),
    "one pretty row.jsonl": (dumps(ROWS[0], 2), ROWS[:1]),
    "one pretty row.json": (dumps(ROWS[0], 2), ROWS[:1]),
    "texts.jsonl": ("\n".join(map(dumps, TEXTS)), TEXTS),
    "lines of texts.json": ("\n".join(map(dumps, TEXTS)), TEXTS),
    "array of texts.json": (dumps(TEXTS), TEXTS),
    "array of texts.jsonl": (dumps(TEXTS, 1), TEXTS),
    "conversations.jsonl": ("\n".join(map(dumps, [TURNS, FROM])), [TURNS, FROM]),
    "pretty conversations.jsonl": ("\n".join(dumps(turns, 2) for turns in (TURNS, FROM)), [TURNS, FROM]),
    "conversations.json": (dumps([TURNS, FROM], 1), [TURNS, FROM]),
    "array of conversations.jsonl": (dumps([TURNS, FROM], 1), [TURNS, FROM]),
    "lines of conversations.json": ("\n".join(map(dumps, [TURNS, FROM])), [TURNS, FROM]),
    "one conversation.jsonl": (dumps(TURNS), [TURNS]),
    "one conversation.json": (dumps(TURNS, 2), [TURNS]),
    "one row of turns.json": (dumps({"messages": TURNS}, 2), [{"messages": TURNS}]),
    "wrapped conversations.json": (dumps({"conversations": [{"messages": TURNS}]}), [{"messages": TURNS}]),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_shape_of_a_json_file_gives_its_rows(tmp_path: Path, name: str, encoding: str) -> None:
    content, rows = SHAPES[name]
    file = tmp_path / name
    file.write_bytes(content.encode(encoding))
    assert values(file) == rows
    assert values(file, target=1) == rows
    numbers = [record.number for record in records(file)]
    assert len(set(numbers)) == len(rows)


def test_a_row_over_several_lines_is_located_by_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n" + "\n".join(dumps(row, 2) for row in ROWS[:3]), encoding="utf-8")
    assert [record.number for record in records(tmp_path / "a.jsonl")] == [2, 6, 10]
    (tmp_path / "b.jsonl").write_text("[\n" + dumps(ROWS[0]) + ", " + dumps(ROWS[1]) + ",\n\n" + dumps(ROWS[2]) + "]")
    assert [record.number for record in records(tmp_path / "b.jsonl")] == [2, 3, 4]


def test_an_unexpected_shape_is_noticed_and_lines_are_not(tmp_path: Path) -> None:
    notices = {}
    for name in ("array.jsonl", "pretty.jsonl", "pretty.json", "texts.jsonl", "conversations.jsonl", "array of texts.json"):
        (tmp_path / name).write_text(SHAPES[name][0], encoding="utf-8")
        notices[name] = file_notices(tmp_path / name, Source(path="x"))
    assert notices == {
        "array.jsonl": ["a JSON array: each element is a row"],
        "pretty.jsonl": ["objects over several lines: each is a row"],
        "pretty.json": ["one object after another: each is a row"],
        "texts.jsonl": [],
        "conversations.jsonl": [],
        "array of texts.json": [],
    }


def test_role_key_of_the_recipe_tells_a_conversation_from_rows(tmp_path: Path) -> None:
    turns = [{"who": "me", "said": "q"}, {"who": "you", "said": "a"}]
    (tmp_path / "a.jsonl").write_text(dumps(turns), encoding="utf-8")
    assert values(tmp_path / "a.jsonl", turns={"role": "who"}) == [turns]
    assert values(tmp_path / "a.jsonl") == turns


def test_a_large_array_in_a_jsonl_file_is_not_split_at_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    rows = [{"text": f"row {number} " + "x" * 400} for number in range(6000)]
    file.write_text(dumps(rows, 1), encoding="utf-8")
    assert len(spans_of([file], Source(path=str(file)), 1 << 16)) == 1
    assert values(file, target=1 << 16) == rows


def test_a_first_line_of_more_than_a_mib_is_a_row_or_an_array_of_rows(tmp_path: Path) -> None:
    long = "x" * (2 << 20)
    for name, rows in (
        ("object", [{"text": long}, {"text": "y"}]),
        ("conversation", [[{"role": "user", "content": "q"}, {"role": "assistant", "content": long}], TURNS]),
    ):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("\n".join(map(dumps, rows)), encoding="utf-8")
        assert values(file) == rows
    rows = [{"text": str(number) + "x" * 999} for number in range(3000)]
    for ending in ("json", "jsonl"):
        (tmp_path / f"array.{ending}").write_text(dumps(rows), encoding="utf-8")
        assert values(tmp_path / f"array.{ending}") == rows


@pytest.mark.parametrize("row", ["{'instruction': '问', 'output': '答'}", "['a', 'b']", '{"text": None}', "{'a': 1}"])
def test_a_row_that_python_printed_is_called_so(tmp_path: Path, row: str) -> None:
    (tmp_path / "a.jsonl").write_text(f"{row}\n{row}\n", encoding="utf-8")
    result = records(tmp_path / "a.jsonl")
    assert [(record.number, record.broken) for record in result] == [(1, "invalid JSON"), (2, "invalid JSON")]
    assert all("write rows with json.dumps" in record.detail for record in result)


@given(
    rows=st.lists(OBJECTS, max_size=6),
    indent=st.sampled_from([None, 0, 3]),
    between=st.sampled_from(["\n", ",\n", " "]),
    cuts=CUTS,
)
def test_values_do_not_depend_on_block_boundaries(rows: list[Any], indent: int | None, between: str, cuts: list[int]) -> None:
    content = between.join(dumps(row, indent) for row in rows).encode()
    result = list(json_values(pieces(content, cuts), Path("a.json"), "utf-8"))
    assert [record.value for record in result] == rows
