"""Results of evaluation sets survive their files, and a damaged file says where it is damaged."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fledge.errors import FledgeError
from fledge.evaluate.records import (
    ItemResult,
    MetricValue,
    SetResult,
    item_ids,
    items_file,
    read_set_result,
    set_result_files,
    write_set_result,
)

TEXT = st.text(max_size=20)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
METRIC = st.builds(
    MetricValue,
    value=NUMBER,
    interval=st.none() | st.tuples(NUMBER, NUMBER),
    count=st.integers(0, 10**6),
    higher_is_better=st.booleans(),
    signature=st.none() | TEXT,
)
METRICS = st.dictionaries(TEXT, METRIC, max_size=3)
ITEM = st.builds(
    ItemResult,
    id=TEXT,
    group=TEXT,
    prompt=TEXT,
    expected=st.none() | TEXT,
    given=st.none() | TEXT,
    finish_reason=st.none() | TEXT,
    values=st.dictionaries(TEXT, NUMBER, max_size=3),
    failures=st.lists(TEXT, max_size=2).map(tuple),
)
RESULT = st.builds(
    SetResult,
    name=st.just("animals"),
    kind=TEXT,
    fingerprint=TEXT,
    metrics=METRICS,
    groups=st.dictionaries(TEXT, METRICS, max_size=2),
    items=st.lists(ITEM, max_size=4).map(tuple),
    seconds=st.floats(0, 1e9),
    notes=st.lists(TEXT, max_size=2).map(tuple),
)


def small_result() -> SetResult:
    """A result with one metric and two items."""
    metric = MetricValue(value=0.5, interval=(0.1, 0.9), count=2, higher_is_better=True)
    items = [ItemResult(id=one, prompt=f"ask {one}", expected="x", values={"exact_match": 1.0}) for one in ("a", "b")]
    return SetResult(
        name="animals", kind="answers", fingerprint="f", metrics={"exact_match": metric}, items=tuple(items), seconds=1.5
    )


@given(RESULT)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_a_result_is_read_as_it_was_written(tmp_path: Path, result: SetResult) -> None:
    assert read_set_result(write_set_result(tmp_path, result)) == result


def test_numbers_that_do_not_exist_are_null_in_the_files_and_nan_in_memory(tmp_path: Path) -> None:
    metric = MetricValue(value=math.nan, interval=(0.0, math.inf), count=1, higher_is_better=False)
    item = ItemResult(id="a", prompt="p", values={"loss": math.nan})
    file = write_set_result(tmp_path, replace(small_result(), metrics={"loss": metric}, items=(item,)))
    for path in (file, items_file(tmp_path, "animals")):
        json.loads(path.read_text(), parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    read = read_set_result(file)
    assert math.isnan(read.metrics["loss"].value) and math.isnan(read.items[0].values["loss"])
    interval = read.metrics["loss"].interval
    assert interval is not None and interval[0] == 0.0 and math.isnan(interval[1])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"value": 0.5', '"value": "high"', "metrics.exact_match.value: Input should be a valid number"),
        ('"count": 2', '"count": -2', "metrics.exact_match.count"),
        ('"kind": "answers",', "", "kind: Field required"),
        ("{", "[", "damaged"),
    ],
)
def test_a_damaged_summary_is_an_error_that_names_the_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = write_set_result(tmp_path, small_result())
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(FledgeError, match=message) as caught:
        read_set_result(file)
    assert "animals" in str(caught.value.where) and caught.value.hint


def test_damaged_items_are_an_error_with_the_line(tmp_path: Path) -> None:
    file = write_set_result(tmp_path, small_result())
    items = items_file(tmp_path, "animals")
    lines = items.read_text().splitlines(keepends=True)
    items.write_text(lines[0] + lines[1].replace('"prompt": "ask b"', '"prompt": 7'))
    with pytest.raises(FledgeError, match="prompt: Input should be a valid string") as caught:
        read_set_result(file)
    assert caught.value.where == f"{items}:2"
    for text in (lines[0], lines[1] + lines[0], "".join(lines)[:-1], "\n"):
        items.write_text(text)
        with pytest.raises(FledgeError, match=r"not the items of the summary|no end|damaged"):
            read_set_result(file)
    items.unlink()
    with pytest.raises(FledgeError, match="missing"):
        read_set_result(file)
    assert read_set_result(file, with_items=False).metrics == small_result().metrics


def test_the_results_of_a_folder_are_found_by_their_two_files(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_set_result(tmp_path, replace(small_result(), name=name))
    (tmp_path / "other.json").write_text("{}")
    assert [path.name for path in set_result_files(tmp_path)] == ["a.json", "b.json"]
    assert set_result_files(tmp_path / "nothing") == []


def test_ids_depend_on_the_content_alone_and_never_repeat() -> None:
    contents = [{"q": "x", "a": "y"}, {"q": "x", "a": "z"}, {"a": "y", "q": "x"}, {"q": "x", "a": "y"}]
    ids = item_ids(contents)
    assert len(set(ids)) == 4 and ids[2] == f"{ids[0]}-2" and ids[3] == f"{ids[0]}-3"
    assert item_ids(contents[1:2]) == [ids[1]]


def test_the_records_load_without_torch() -> None:
    code = "import sys, fledge.evaluate.records; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
