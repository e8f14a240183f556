"""`fledge data check`: a line for each check, and exit code 2 where training would be meaningless."""

import json
from pathlib import Path
from typing import Any

from fledge.data.analysis.checks import CHECKS
from tests.inspect.conftest import Fledge, write
from tests.support.sources import jsonl


def test_every_check_has_its_line_and_warnings_do_not_fail(fledge: Fledge, recipe: Path) -> None:
    code, said, _ = fledge("check", recipe)
    assert code == 0
    for stage in ("pretrain", "sft", "dpo"):
        part = said.split(f"{stage}\n", 1)[1]
        lines = part.splitlines()[: len(CHECKS) + 2]
        assert lines[0] == "✓ build: the data can be built"
    assert said.count("✓ ") + said.count("! ") >= 3 * (len(CHECKS) + 2)
    assert "! duplicates: talks.jsonl: 1 of 24 rows (4.2%)" in said and "✗" not in said


def test_an_error_fails_and_says_where_and_what_to_do(fledge: Fledge, tree: dict[str, Any], tmp_path: Path) -> None:
    file = jsonl(tmp_path / "same.jsonl", [{"prompt": f"{n}?", "response": "the very same answer"} for n in range(25)])
    stage = {"data": {"train": str(file), "validation": 0, "max_seq_len": 96}}
    recipe = write(tmp_path / "r.yaml", {**tree, "stages": {"sft": stage}})
    code, said, told = fledge("check", recipe)
    assert code == 2 and "1 finding that would make training meaningless" in told and "Traceback" not in told
    assert (
        f"✗ equal answers: same.jsonl: 100.0% of 25 answers are the same (“the very same answer…”), first at {file}:1" in said
    )
    assert "→ check which column holds the answers" in said


def test_a_recipe_change_is_shown_as_options_and_in_the_json(fledge: Fledge, tree: dict[str, Any], tmp_path: Path) -> None:
    file = jsonl(tmp_path / "long.jsonl", [{"prompt": f"{n}?", "response": f"{n} is a long answer " * 3} for n in range(9)])
    stage = {"data": {"train": str(file), "validation": 0, "max_seq_len": 32}}
    recipe = write(tmp_path / "r.yaml", {**tree, "stages": {"sft": stage}})
    _, said, _ = fledge("check", recipe)
    assert "cut answers: long.jsonl: 9 of 9 rows" in said
    assert "    → lengthen data.max_seq_len\n    → --stages.sft.data.max_seq_len 64" in said
    _, said, _ = fledge("check", recipe, "--json")
    checks = {one["check"]: one for one in json.loads(said)["stages"][0]["checks"]}
    [finding] = checks["cut answers"]["findings"]
    assert finding["patch"] == {"stages.sft.data.max_seq_len": 64} and finding["severity"] == "warning"
    assert finding["evidence"] == {"source": "long.jsonl"} and finding["where"] == f"{file}:1"
    _, said, _ = fledge("check", recipe, "--stages.sft.data.max_seq_len", "64", "--json")
    assert [one["level"] for one in json.loads(said)["stages"][0]["checks"] if one["check"] == "end token"] == ["passed"]


def test_a_stage_that_cannot_be_built_does_not_hide_the_others(fledge: Fledge, tree: dict[str, Any], tmp_path: Path) -> None:
    bad = jsonl(tmp_path / "bad.jsonl", [{"prompt": "x", "response": ""}] * 3)
    stages = {**tree["stages"], "sft": {"data": {"train": str(bad), "max_seq_len": 96}}}
    code, said, told = fledge("check", write(tmp_path / "r.yaml", {**tree, "stages": stages}), "--json")
    levels = {stage["stage"]: {one["check"]: one["level"] for one in stage["checks"]} for stage in json.loads(said)["stages"]}
    assert code == 2 and "1 finding" in told
    assert levels["sft"] == {"build": "error"}
    assert levels["pretrain"]["build"] == levels["dpo"]["supervision"] == "passed"


def test_without_a_tokenizer_every_stage_says_so(fledge: Fledge, tree: dict[str, Any], tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", {**tree, "tokenizer": {"path": str(tmp_path / "none")}})
    code, said, _ = fledge("check", recipe, "--stage", "dpo")
    assert code == 2 and "✗ build: there is no tokenizer.json here" in said


def test_a_model_that_does_not_fit_is_found(fledge: Fledge, tree: dict[str, Any], tmp_path: Path) -> None:
    config = {"model_type": "fledge", "hidden_size": 8}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    code, said, _ = fledge("check", write(tmp_path / "r.yaml", tree), "--stage", "dpo", "--model.path", tmp_path / "model")
    assert code == 2 and "✗ model: " in said


def test_overrides_reach_the_recipe(fledge: Fledge, recipe: Path) -> None:
    code, said, told = fledge("check", recipe, "--stage", "sft", "--stages.sft.data.max_drop_fraction", "5%")
    assert code == 2 and "✗ dropped: talks.jsonl: 3 of 24 rows (12.5%) are dropped" in said and "1 finding" in told
    code, _, told = fledge("check", recipe, "--stages.sft.data.max_seq_le", "5")
    assert code == 2 and "did you mean 'max_seq_len'?" in told
