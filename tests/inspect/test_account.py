"""`fledge data account`: totals that add up, the rows behind them, and the way of one row."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fledge.data.build.directory import BuildDirectory
from fledge.data.reading.records import row_location
from fledge.inspect.account import Filter, totals
from fledge.inspect.row_lookup import events_of, parse_place
from tests.inspect.conftest import Fledge, write
from tests.support.sources import jsonl


def test_totals_are_shown_as_sums(fledge: Fledge, recipe: Path) -> None:
    code, said, _ = fledge("account", recipe)
    assert code == 0
    assert "poems.jsonl: 12 rows = 12 used (3 split) + 0 dropped" in said
    assert "talks.jsonl: 24 rows = 21 used (" in said and "1 truncated) + 3 dropped" in said
    assert "1 × exact duplicate, first at" in said


def test_filters_show_the_rows_themselves(fledge: Fledge, recipe: Path, folder: Path) -> None:
    talks = folder / "talks.jsonl"
    code, said, _ = fledge("account", recipe, "--state", "dropped")
    assert code == 0
    assert f"{talks}:21  dropped: exact duplicate  of {talks}:1" in said
    assert f"{talks}:22  dropped: empty answer" in said and f"{talks}:24  dropped: invalid JSON" in said
    assert "poems.jsonl" in said and "no such row" in said
    said = fledge("account", recipe, "--source", "TALKS", "--reason", "answer")[1]
    assert "poems" not in said and f"{talks}:22  dropped" in said and f"{talks}:4  truncated: answer cut" in said
    assert "invalid JSON  " not in said
    changed = fledge("account", recipe, "--state", "changed")[1]
    assert f"{talks}:23  changed: unicode" in changed and "all changes and notices are counted" in changed


def test_the_limit_says_how_many_are_left(fledge: Fledge, recipe: Path) -> None:
    said = fledge("account", recipe, "--state", "dropped", "--source", "talks", "--limit", "1")[1]
    assert "… and 2 more: --limit 3" in said
    [stage] = json.loads(fledge("account", recipe, "--state", "dropped", "--source", "talks", "--limit", "1", "--json")[1])[
        "stages"
    ]
    assert len(stage["rows"]) == 1 and stage["matching"] == 3 and stage["sources"][0]["rows"] == 24


def test_a_built_directory_and_one_of_its_stages_say_the_same_as_the_recipe(fledge: Fledge, recipe: Path, built: Path) -> None:
    expected = json.loads(fledge("account", recipe, "--state", "dropped", "--json")[1])
    assert json.loads(fledge("account", built, "--state", "dropped", "--json")[1]) == expected
    [sft] = json.loads(fledge("account", built / "sft", "--state", "dropped", "--json")[1])["stages"]
    assert sft == expected["stages"][1]


def test_a_run_directory_keeps_its_builds_below_its_stages(fledge: Fledge, built: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for stage in ("pretrain", "sft"):  # dpo has not begun
        shutil.copytree(built / stage, run / stage / "data")
    shutil.copy(built / "recipe.yaml", run / "recipe.yaml")
    (run / "sft" / "plan.json").write_text("{}")
    expected = json.loads(fledge("account", built, "--json")[1])["stages"]
    assert json.loads(fledge("account", run, "--json")[1])["stages"] == expected[:2]
    assert json.loads(fledge("account", run / "sft", "--json")[1])["stages"] == expected[1:2]
    shown = fledge("show", run, "--stage", "sft", "--count", "1")
    assert shown[0] == 0 and shown[1] == fledge("show", built, "--stage", "sft", "--count", "1")[1]


def test_an_incomplete_build_is_accounted_for_up_to_now(built: Path) -> None:
    whole = totals(built / "sft")
    (built / "sft" / "manifest.json").rename(built / "sft" / "aside.json")
    try:
        found = totals(built / "sft")
    finally:
        (built / "sft" / "aside.json").rename(built / "sft" / "manifest.json")
    for key in ("rows", "used_rows", "dropped", "truncated_rows", "changed", "lost_tokens"):
        assert [account[key] for account in found] == [account[key] for account in whole], key


def test_a_build_that_fails_shows_its_rows_before_it_says_why(fledge: Fledge, tree: dict[str, Any], tmp_path: Path) -> None:
    bad = jsonl(tmp_path / "bad.jsonl", [{"prompt": "x", "response": ""}] * 3)
    recipe = write(tmp_path / "r.yaml", {**tree, "stages": {"sft": {"data": {"train": str(bad), "max_seq_len": 96}}}})
    code, said, told = fledge("account", recipe, "--state", "dropped")
    assert code == 2 and "none of the 3 rows" in told
    assert "bad.jsonl: 3 rows = 0 used + 3 dropped" in said and f"{bad}:2  dropped: empty answer" in said


def test_what_does_not_exist_is_refused(fledge: Fledge, recipe: Path, built: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe.read_text())
    for words, part in (
        ((recipe, "--state", "lost"), "there is no state 'lost'"),
        ((recipe, "--source", "nothing"), "no source is called 'nothing'"),
        ((recipe, "--limit", "0"), "--limit must be above 0"),
        ((recipe, "--row", "talks.jsonl:99"), "no source has this row"),
        ((built, "--stage", "other"), "there is no stage 'other'"),
        ((built, "--seed", "4"), "the data is built already"),
        ((tmp_path,), "there is no built data here"),
    ):
        code, _, told = fledge("account", *words)
        assert code == 2 and part in told, words


def test_one_row_is_followed_from_the_file_to_its_packed_row(fledge: Fledge, built: Path, folder: Path) -> None:
    code, said, _ = fledge("account", built, "--row", "talks.jsonl:23")
    assert code == 0
    parts = (f"sft: {folder / 'talks.jsonl'}:23", "instruction = 'Tidy'", "alpaca: a conversation with turns user, assistant",
             "unicode: ", "kept        for ", "tokens      example", "in packed row", "⟦caf")  # fmt: skip
    for part in parts:
        assert part in said, part


def test_the_way_of_a_row_as_json(fledge: Fledge, built: Path) -> None:
    def way(row: str) -> dict[str, Any]:
        [found] = json.loads(fledge("account", built, "--row", row, "--json")[1])["rows"]
        return found

    broken = way("talks.jsonl:24")
    assert broken["dropped"].startswith("invalid JSON") and broken["side"] == "" and broken["packed"] == []
    assert way("talks.jsonl:22")["dropped"] == "empty answer"
    assert way("talks.jsonl:21")["dropped"].startswith("exact duplicate (of ")
    cut = way("talks.jsonl:4")
    assert any(event.startswith("answer cut to the context") for event in cut["events"])
    [pair] = way("pairs.jsonl:8")["packed"]
    assert pair["rows"] and pair["steps"] == [1] and 0 < pair["target_tokens"] < pair["tokens"]


def test_every_row_is_used_or_dropped_and_can_be_followed(fledge: Fledge, built: Path) -> None:
    sides = []
    for line in range(1, 25):
        [found] = json.loads(fledge("account", built, "--row", f"talks.jsonl:{line}", "--json")[1])["rows"]
        assert bool(found["dropped"]) != bool(found["side"]) == bool(found["packed"])
        sides.append(found["side"])
    [account] = totals(built / "sft")
    assert sides.count("validation") == account["validation_rows"] and sides.count("") == sum(account["dropped"].values())


def test_a_changed_file_is_not_read_again(fledge: Fledge, tree: dict[str, Any], tmp_path: Path) -> None:
    from fledge.prepare import build
    from fledge.recipe import load_recipe

    file = jsonl(tmp_path / "a.jsonl", [{"text": f"a document of some length, number {n}, with words"} for n in range(4)])
    stages = {"pretrain": {"data": {"train": str(file), "validation": 0, "max_seq_len": 96}}}
    build(load_recipe([str(write(tmp_path / "r.yaml", {**tree, "stages": stages}))]), tmp_path / "out", None, lambda _: None)
    jsonl(file, [{"text": "other"}] * 4)
    said = fledge("account", tmp_path / "out", "--row", f"{file}:2")[1]
    assert "not read again: the file has changed" in said and "number 1, with words" in said.replace("\n", " ")
    file.unlink()
    assert "not read again: the file is no longer there" in fledge("account", tmp_path / "out", "--row", "a.jsonl:2")[1]


@pytest.mark.parametrize(
    ("text", "file", "number"),
    [("a.jsonl:12", "a.jsonl", 12), ("d/a.json#0", "d/a.json", 0), ("c:d.txt:3", "c:d.txt", 3), ("whole.txt", "whole.txt", 0)],
)
def test_places_are_read_as_they_are_written(text: str, file: str, number: int) -> None:
    found = parse_place(text)
    assert (found.file, found.number) == (file, number)
    assert found.is_in(f"/some/where/{file}") and not found.is_in(f"/some/where/x{file}")
    if "#" in text or ":" in text:
        assert row_location(file, number) == text


def test_an_empty_filter_takes_every_event(built: Path) -> None:
    build = BuildDirectory.open(built / "sft")
    events = events_of(build, build.plan.shards[0])
    assert events and all(Filter().takes(event) for event in events)
    assert [event["row"] for event in events] == sorted(event["row"] for event in events)
