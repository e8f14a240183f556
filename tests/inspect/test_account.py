"""`fledge data account`: totals that add up, the rows behind the totals, and the trace of one row."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fledge.data.build.directory import BuildDirectory
from fledge.data.build.load import split_fingerprints
from fledge.data.reading.records import row_location
from fledge.inspect.account import Filter, totals
from fledge.inspect.builds import open_build
from fledge.inspect.row_lookup import parse_row_location, row_events_of
from fledge.pipeline import Pipeline
from fledge.recipe import recipe_from_dict
from fledge.run import Console
from tests.inspect.conftest import Fledge, write
from tests.support import tiny_run
from tests.support.sources import jsonl


def test_totals_of_each_source_are_shown_as_sums(fledge: Fledge, recipe: Path) -> None:
    code, output, _ = fledge("account", recipe)
    assert code == 0
    assert "poems.jsonl: 12 rows = 12 used (3 split) + 0 dropped" in output
    assert "talks.jsonl: 24 rows = 21 used (" in output and "1 truncated) + 3 dropped" in output
    assert "1 × exact duplicate, first at" in output


def test_filters_list_the_matching_rows_with_location_and_reason(fledge: Fledge, recipe: Path, folder: Path) -> None:
    talks = folder / "talks.jsonl"
    code, output, _ = fledge("account", recipe, "--state", "dropped")
    assert code == 0
    assert f"{talks}:21  dropped: exact duplicate  of {talks}:1" in output
    assert f"{talks}:22  dropped: empty answer" in output and f"{talks}:24  dropped: invalid JSON" in output
    assert "poems.jsonl" in output and "no such row" in output
    output = fledge("account", recipe, "--source", "TALKS", "--reason", "answer")[1]
    assert "poems" not in output and f"{talks}:22  dropped" in output and f"{talks}:4  truncated: answer cut" in output
    assert "invalid JSON  " not in output
    changed = fledge("account", recipe, "--state", "changed")[1]
    assert f"{talks}:23  changed: unicode" in changed and "all changes and notices are counted" in changed


def test_the_number_of_rows_beyond_the_limit_is_shown(fledge: Fledge, recipe: Path) -> None:
    output = fledge("account", recipe, "--state", "dropped", "--source", "talks", "--limit", "1")[1]
    assert "… and 2 more: --limit 3" in output
    [stage] = json.loads(fledge("account", recipe, "--state", "dropped", "--source", "talks", "--limit", "1", "--json")[1])[
        "stages"
    ]
    assert len(stage["rows"]) == 1 and stage["matching"] == 3 and stage["sources"][0]["rows"] == 24


def test_a_built_directory_and_one_of_its_stages_give_the_account_of_the_recipe(
    fledge: Fledge, recipe: Path, built: Path
) -> None:
    expected = json.loads(fledge("account", recipe, "--state", "dropped", "--json")[1])
    assert json.loads(fledge("account", built, "--state", "dropped", "--json")[1]) == expected
    [sft] = json.loads(fledge("account", built / "sft", "--state", "dropped", "--json")[1])["stages"]
    assert sft == expected["stages"][1]


def test_the_builds_of_a_run_directory_are_found_below_its_stages(fledge: Fledge, built: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for stage in ("pretrain", "sft"):  # dpo has not begun
        shutil.copytree(built / stage, run / stage / "data")
    shutil.copy(built / "recipe.yaml", run / "recipe.yaml")
    (run / "sft" / "plan.json").write_text("{}")
    expected = json.loads(fledge("account", built, "--json")[1])["stages"]
    assert json.loads(fledge("account", run, "--json")[1])["stages"] == expected[:2]
    assert json.loads(fledge("account", run / "sft", "--json")[1])["stages"] == expected[1:2]
    shown = fledge("show", run, "--stage", "sft", "--limit", "1")
    assert shown[0] == 0 and shown[1] == fledge("show", built, "--stage", "sft", "--limit", "1")[1]


def test_an_incomplete_build_gives_the_totals_of_the_rows_counted_so_far(built: Path) -> None:
    complete = totals(built / "sft")
    (built / "sft" / "manifest.json").rename(built / "sft" / "aside.json")
    try:
        incomplete = totals(built / "sft")
    finally:
        (built / "sft" / "aside.json").rename(built / "sft" / "manifest.json")
    for key in ("rows", "used_rows", "dropped", "truncated_rows", "changed", "lost_tokens"):
        assert [account[key] for account in incomplete] == [account[key] for account in complete], key


def test_a_failed_build_lists_its_rows_and_then_the_error(fledge: Fledge, tree: dict[str, Any], tmp_path: Path) -> None:
    bad = jsonl(tmp_path / "bad.jsonl", [{"prompt": "x", "response": ""}] * 3)
    recipe = write(tmp_path / "r.yaml", {**tree, "stages": {"sft": {"data": {"train": str(bad), "max_seq_len": 96}}}})
    code, output, messages = fledge("account", recipe, "--state", "dropped")
    assert code == 2 and "none of the 3 rows" in messages
    assert "bad.jsonl: 3 rows = 0 used + 3 dropped" in output and f"{bad}:2  dropped: empty answer" in output


def test_unknown_states_sources_rows_and_stages_raise_errors(fledge: Fledge, recipe: Path, built: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe.read_text())
    for words, expected in (
        ((recipe, "--state", "lost"), "there is no state 'lost'"),
        ((recipe, "--source", "nothing"), "no source is called 'nothing'"),
        ((recipe, "--limit", "0"), "--limit must be above 0"),
        ((recipe, "--row", "talks.jsonl:99"), "no source has this row"),
        ((built, "--stage", "other"), "there is no stage 'other'"),
        ((built, "--seed", "4"), "the data is built already"),
        ((tmp_path,), "there is no built data here"),
    ):
        code, _, messages = fledge("account", *words)
        assert code == 2 and expected in messages, words


def test_the_trace_of_a_row_leads_from_its_file_to_its_packed_row(fledge: Fledge, built: Path, folder: Path) -> None:
    code, output, _ = fledge("account", built, "--row", "talks.jsonl:23")
    assert code == 0
    expected_texts = (
        f"sft: {folder / 'talks.jsonl'}:23",
        "instruction = 'Tidy'",
        "alpaca: a conversation with turns user, assistant",
        "unicode: ",
        "kept        for ",
        "tokens      example",
        "in packed row",
        "⟦caf",
    )
    for expected in expected_texts:
        assert expected in output, expected


def test_the_trace_of_a_row_is_available_as_json(fledge: Fledge, built: Path) -> None:
    def trace(row: str) -> dict[str, Any]:
        [row_trace] = json.loads(fledge("account", built, "--row", row, "--json")[1])["rows"]
        return row_trace

    broken = trace("talks.jsonl:24")
    assert broken["dropped"].startswith("invalid JSON") and broken["side"] == "" and broken["packed"] == []
    assert trace("talks.jsonl:22")["dropped"] == "empty answer"
    assert trace("talks.jsonl:21")["dropped"].startswith("exact duplicate (of ")
    cut = trace("talks.jsonl:4")
    assert any(event.startswith("answer cut to the context") for event in cut["events"])
    [pair] = trace("pairs.jsonl:8")["packed"]
    assert pair["rows"] and pair["steps"] == [1] and 0 < pair["target_tokens"] < pair["tokens"]


def test_every_row_has_a_trace_and_is_either_used_or_dropped(fledge: Fledge, built: Path) -> None:
    sides = []
    for line in range(1, 25):
        [trace] = json.loads(fledge("account", built, "--row", f"talks.jsonl:{line}", "--json")[1])["rows"]
        assert bool(trace["dropped"]) != bool(trace["side"]) == bool(trace["packed"])
        sides.append(trace["side"])
    [account] = totals(built / "sft")
    assert sides.count("validation") == account["validation_rows"] and sides.count("") == sum(account["dropped"].values())


def test_a_file_that_has_changed_since_the_build_is_not_read_again(
    fledge: Fledge, tree: dict[str, Any], tmp_path: Path
) -> None:
    from fledge.build_dataset import build
    from fledge.recipe import load_recipe

    file = jsonl(tmp_path / "a.jsonl", [{"text": f"a document of some length, number {n}, with words"} for n in range(4)])
    stages = {"pretrain": {"data": {"train": str(file), "validation": 0, "max_seq_len": 96}}}
    build(load_recipe([str(write(tmp_path / "r.yaml", {**tree, "stages": stages}))]), tmp_path / "out", None, lambda _: None)
    jsonl(file, [{"text": "other"}] * 4)
    output = fledge("account", tmp_path / "out", "--row", f"{file}:2")[1]
    assert "not read again: the file has changed" in output and "number 1, with words" in output.replace("\n", " ")
    file.unlink()
    assert "not read again: the file is no longer there" in fledge("account", tmp_path / "out", "--row", "a.jsonl:2")[1]


@pytest.mark.parametrize(
    ("text", "file", "number"),
    [("a.jsonl:12", "a.jsonl", 12), ("d/a.json#0", "d/a.json", 0), ("c:d.txt:3", "c:d.txt", 3), ("whole.txt", "whole.txt", 0)],
)
def test_row_locations_are_parsed_as_they_are_printed(text: str, file: str, number: int) -> None:
    location = parse_row_location(text)
    assert (location.file, location.number) == (file, number)
    assert location.matches_file(f"/some/where/{file}") and not location.matches_file(f"/some/where/x{file}")
    if "#" in text or ":" in text:
        assert row_location(file, number) == text


def test_an_empty_filter_matches_every_row_event(built: Path) -> None:
    build = BuildDirectory.open(built / "sft")
    events = row_events_of(build, build.plan.shards[0])
    assert events and all(Filter().matches(event) for event in events)
    assert [event["row"] for event in events] == sorted(event["row"] for event in events)


def test_the_packed_rows_of_a_pair_in_a_run_are_those_that_it_trains_on(fledge: Fledge, tmp_path: Path) -> None:
    """The same rows with prompts that are shared and not: the traces of pairs have the rows of their run."""
    rows = dict[bool, set[int]]()
    for shares in (True, False):
        tree = tiny_run.tree(tmp_path / "world", tmp_path / str(shares))
        pairs = {**tree["stages"]["dpo"], "share_prompts": shares, "duration": "1 steps"}
        run = Pipeline(recipe_from_dict(tree | {"stages": {"dpo": pairs}}), Console(quiet=True)).run()
        report = json.loads((run / "dpo" / "data_report.json").read_text())
        assert split_fingerprints(open_build("dpo", run / "dpo" / "data").data.as_dict()) == split_fingerprints(report)
        rows[shares] = set()
        for line in (5, 15, 25, 35, 45, 55):
            output = fledge("account", run, "--json", "--row", f"preference.jsonl:{line}")[1]
            rows[shares] |= {row for packing in json.loads(output)["rows"][0]["packed"] for row in packing["rows"]}
        assert max(rows[shares]) < report["train"]["packed_rows"]
    assert rows[True] != rows[False]
