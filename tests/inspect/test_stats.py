"""`fledge data stats`: tables, JSON and page show equal numbers, for recipes and for files of rows."""

import html
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.inspect.conftest import Fledge, write
from tests.support.sources import jsonl


def test_tables_cover_every_subject_within_100_columns(fledge: Fledge, recipe: Path) -> None:
    code, output, _ = fledge("stats", recipe, "--stage", "sft")
    assert code == 0
    tables = output.split("\ntalks.jsonl\n")[0].splitlines()[3:]
    assert max(map(len, tables)) <= 100
    for expected in (
        "rows, duplicates",
        "length in characters",
        "length in tokens",
        "supervised",
        "fit the context of 96 tokens",
        "optimizer steps an epoch",
        "effective batch",
        "columns with gaps: input: 23 empty",
        "1 exact duplicate",
        "its 22 answers begin in",
        "! duplicates: talks.jsonl",
    ):
        assert expected in output, expected


def test_json_is_stable_and_agrees_with_the_files(fledge: Fledge, recipe: Path) -> None:
    code, output, _ = fledge("stats", recipe, "--json")
    statistics = json.loads(output)
    assert code == 0 and statistics["version"] == 1
    assert [stage["stage"] for stage in statistics["stages"]] == ["pretrain", "sft", "dpo"]
    [talks] = statistics["stages"][1]["sources"]
    assert (talks["rows"], talks["used_rows"], talks["exact_duplicates"]) == (24, 21, 1)
    assert talks["dropped"] == {"exact duplicate": 1, "empty answer": 1, "invalid JSON": 1}
    assert talks["fit"]["truncated_rows"] == 1 and talks["tokens"]["percentiles"]["max"] > 200
    assert statistics["stages"][0]["epoch"]["target_token_fraction"] == 1
    assert statistics["stages"][2]["epoch"]["packed_length"] == 192
    assert fledge("stats", recipe, "--json")[1] == output


def test_files_of_rows_are_detected_and_grouped_into_stages_by_kind(
    fledge: Fledge, folder: Path, tokenizer_folder: Path
) -> None:
    files = [folder / f"{name}.jsonl" for name in ("talks", "pairs", "poems")]
    code, output, _ = fledge("stats", *files, "--tokenizer", tokenizer_folder, "--json", "--stages.sft.data.max_seq_len", "128")
    stages = json.loads(output)["stages"]
    assert code == 0 and [stage["stage"] for stage in stages] == ["pretrain", "sft", "preference"]
    assert [stage["context"] for stage in stages] == [512, 128, 512]


def test_a_tokenizer_is_trained_when_none_is_given(fledge: Fledge, folder: Path) -> None:
    code, output, messages = fledge("stats", folder / "poems.jsonl", "--json", "--tokenizer.vocab_size", "300")
    assert code == 0 and 256 < json.loads(output)["tokenizer"]["vocab_size"] <= 300
    assert "training a tokenizer of 300 tokens" in messages


def test_the_kind_option_overrides_the_detected_kind(fledge: Fledge, tmp_path: Path, tokenizer_folder: Path) -> None:
    rows = [{"prompt": f"{n}?", "response": f"{n}!", "text": f"text {n} of some length, so that it stays"} for n in range(4)]
    file = jsonl(tmp_path / "both.jsonl", rows)
    for kind, words in (("sft", ()), ("pretrain", ("--kind", "pretrain"))):
        code, output, _ = fledge("stats", file, "--tokenizer", tokenizer_folder, "--json", *words)
        assert code == 0 and json.loads(output)["stages"][0]["kind"] == kind


def test_missing_files_and_unknown_formats_raise_errors(fledge: Fledge, recipe: Path, folder: Path, tmp_path: Path) -> None:
    for words, expected in (
        ((folder / "none.jsonl",), "there is no file"),
        ((recipe, folder / "talks.jsonl"), "give either recipes or files of rows"),
        ((recipe, "--stage", "sftt"), "no stage 'sftt'"),
        ((jsonl(tmp_path / "odd.jsonl", [{"a": 1}]),), "cannot tell what the rows are"),
        ((jsonl(tmp_path / "empty.jsonl", []),), "empty.jsonl: it holds no rows"),
        ((recipe, "--page", folder / "talks.jsonl" / "page.html"), "cannot write"),
    ):
        code, output, messages = fledge("stats", *words)
        assert code == 2 and expected in messages and not output, words


def test_max_drop_fraction_does_not_stop_the_statistics(fledge: Fledge, recipe: Path) -> None:
    code, output, _ = fledge("stats", recipe, "--stage", "sft", "--stages.sft.data.max_drop_fraction", "0")
    assert code == 0 and "✗ dropped: talks.jsonl: 3 of 24 rows (12.5%) are dropped" in output


def test_a_built_directory_gives_the_statistics_of_its_recipe(fledge: Fledge, built: Path) -> None:
    code, output, _ = fledge("stats", built, "--stage", "dpo", "--json")
    assert code == 0 and json.loads(output)["stages"][0]["sources"][0]["rows"] == 8


def test_statistics_equal_the_manifest_of_the_training_data(fledge: Fledge, recipe: Path, built: Path) -> None:
    [stage] = json.loads(fledge("stats", recipe, "--stage", "sft", "--json")[1])["stages"]
    manifest = json.loads((built / "sft" / "manifest.json").read_text())
    assert stage["epoch"]["packed_rows"] == manifest["train"]["packed_rows"]
    assert stage["epoch"]["tokens"] == manifest["train"]["tokens"]
    assert stage["epoch"]["padding_share"] == manifest["train"]["padding_share"]


def test_the_page_is_self_contained_and_escapes_all_text(
    fledge: Fledge, tree: dict[str, Any], tmp_path: Path, folder: Path
) -> None:
    rows = [{"prompt": f"{n}?", "response": f"<script>alert({n})</script> & so on"} for n in range(6)]
    jsonl(tmp_path / "<b>&.jsonl", rows)
    data = {"train": [str(tmp_path / "<b>&.jsonl"), str(folder / "talks.jsonl")], "validation": 0, "clean": {"html": False}}
    file = write(tmp_path / "r.yaml", {**tree, "stages": {"sft": {"data": {**data, "max_seq_len": 96}}}})
    code, _, messages = fledge("stats", file, "--page", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert code == 0 and "page.html" in messages
    body, rest = page.split('<script type="application/json" id="chart-data">')
    assert "<script>alert" not in page and "&lt;script&gt;alert(0)" in body
    assert "<b>&.jsonl" not in page and "&lt;b&gt;&amp;.jsonl" in body
    assert "default-src 'none'" in html.unescape(body) and not re.search("(src|href)=.?http|url[(]", body)
    drawn = json.loads(rest.split("</script>")[0])
    assert set(drawn) == {f"plot-0-{name}" for name in ("characters", "tokens", "mixture", "languages", "supervised")}
    assert all(f'id="{name}"' in body for name in drawn)
    assert drawn["plot-0-tokens"]["mark"]["at"] == 96 and len(drawn["plot-0-tokens"]["series"]) == 2
    assert sum(drawn["plot-0-characters"]["series"][0]["y"]) == pytest.approx(100, abs=0.1)


def test_commands_that_only_read_data_do_not_import_torch(recipe: Path) -> None:
    script = (
        "import sys\nfrom fledge.cli import main\n"
        f"for action in ('stats', 'account', 'show'): main(['data', action, {str(recipe)!r}, '--stage', 'sft'])\n"
        "print('torch' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert process.stdout.endswith("False\n")


def test_the_steps_of_pairs_are_said_to_count_each_prompt_with_each_answer(fledge: Fledge, recipe: Path) -> None:
    assert "a prompt counts here with each answer" in fledge("stats", recipe, "--stage", "dpo")[1]
    assert "a prompt counts" not in fledge("stats", recipe, "--stage", "sft")[1]
