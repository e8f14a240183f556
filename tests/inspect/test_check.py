"""`fledge data check`: a line for each check, and exit code 2 when training would be meaningless."""

import json
from pathlib import Path
from typing import Any

from fledge.data.analysis.checks import CHECKS
from tests.inspect.conftest import Fledge, write
from tests.support.sources import jsonl


def test_every_check_prints_a_line_and_warnings_do_not_fail(fledge: Fledge, recipe: Path) -> None:
    code, output, _ = fledge("check", recipe)
    assert code == 0
    for stage in ("pretrain", "sft", "dpo"):
        stage_output = output.split(f"{stage}\n", 1)[1]
        lines = stage_output.splitlines()[: len(CHECKS) + 2]
        assert lines[0] == "✓ build: the data can be built"
    assert output.count("✓ ") + output.count("! ") >= 3 * (len(CHECKS) + 2)
    assert "! duplicates: talks.jsonl: 1 of 24 rows (4.2%)" in output and "✗" not in output


def test_an_error_fails_with_its_location_and_a_hint(fledge: Fledge, tree: dict[str, Any], tmp_path: Path) -> None:
    file = jsonl(tmp_path / "same.jsonl", [{"prompt": f"{n}?", "response": "the very same answer"} for n in range(25)])
    stage = {"data": {"train": str(file), "validation": 0, "max_seq_len": 96}}
    recipe = write(tmp_path / "r.yaml", {**tree, "stages": {"sft": stage}})
    code, output, messages = fledge("check", recipe)
    assert code == 2 and "1 finding that would make training meaningless" in messages and "Traceback" not in messages
    assert (
        f"✗ equal answers: same.jsonl: 100.0% of 25 answers are the same (“the very same answer…”), first at {file}:1" in output
    )
    assert "→ check which column holds the answers" in output


def test_a_recipe_change_is_shown_as_options_and_in_the_json(fledge: Fledge, tree: dict[str, Any], tmp_path: Path) -> None:
    file = jsonl(tmp_path / "long.jsonl", [{"prompt": f"{n}?", "response": f"{n} is a long answer " * 3} for n in range(9)])
    stage = {"data": {"train": str(file), "validation": 0, "max_seq_len": 32}}
    recipe = write(tmp_path / "r.yaml", {**tree, "stages": {"sft": stage}})
    _, output, _ = fledge("check", recipe)
    assert "cut answers: long.jsonl: 9 of 9 rows" in output
    assert "    → lengthen data.max_seq_len\n    → --stages.sft.data.max_seq_len 64" in output
    _, output, _ = fledge("check", recipe, "--json")
    checks = {one["check"]: one for one in json.loads(output)["stages"][0]["checks"]}
    [finding] = checks["cut answers"]["findings"]
    assert finding["patch"] == {"stages.sft.data.max_seq_len": 64} and finding["severity"] == "warning"
    assert finding["evidence"] == {"source": "long.jsonl"} and finding["where"] == f"{file}:1"
    _, output, _ = fledge("check", recipe, "--stages.sft.data.max_seq_len", "64", "--json")
    assert [one["level"] for one in json.loads(output)["stages"][0]["checks"] if one["check"] == "end token"] == ["passed"]


def test_a_preference_stage_from_random_weights_is_told_beside_an_error(
    fledge: Fledge, tree: dict[str, Any], tmp_path: Path
) -> None:
    stage = {**tree["stages"]["dpo"], "schedule": {"warmup": 100}, "duration": "1 steps"}
    code, output, _ = fledge("check", write(tmp_path / "r.yaml", {**tree, "stages": {"dpo": stage}}))
    assert code == 2 and "✗ plan: warm-up takes 100 steps" in output
    assert "! plan: the stage prefers answers with " in output and "random weights" in output


def test_a_stage_that_cannot_be_built_does_not_hide_the_others(fledge: Fledge, tree: dict[str, Any], tmp_path: Path) -> None:
    bad = jsonl(tmp_path / "bad.jsonl", [{"prompt": "x", "response": ""}] * 3)
    stages = {**tree["stages"], "sft": {"data": {"train": str(bad), "max_seq_len": 96}}}
    code, output, messages = fledge("check", write(tmp_path / "r.yaml", {**tree, "stages": stages}), "--json")
    levels = {stage["stage"]: {one["check"]: one["level"] for one in stage["checks"]} for stage in json.loads(output)["stages"]}
    assert code == 2 and "1 finding" in messages
    assert levels["sft"] == {"build": "error"}
    assert levels["pretrain"]["build"] == levels["dpo"]["supervision"] == "passed"


def test_a_missing_tokenizer_is_an_error_of_the_stage(fledge: Fledge, tree: dict[str, Any], tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", {**tree, "tokenizer": {"path": str(tmp_path / "none")}})
    code, output, _ = fledge("check", recipe, "--stage", "dpo")
    assert code == 2 and "✗ build: there is no such file or folder" in output


def test_a_model_that_does_not_fit_the_tokenizer_is_an_error(fledge: Fledge, tree: dict[str, Any], tmp_path: Path) -> None:
    config = {"model_type": "fledge", "hidden_size": 8}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    code, output, _ = fledge("check", write(tmp_path / "r.yaml", tree), "--stage", "dpo", "--model.path", tmp_path / "model")
    assert code == 2 and "✗ model: " in output


def test_overrides_reach_the_recipe(fledge: Fledge, recipe: Path) -> None:
    code, output, messages = fledge("check", recipe, "--stage", "sft", "--stages.sft.data.max_drop_fraction", "5%")
    assert code == 2 and "✗ dropped: talks.jsonl: 3 of 24 rows (12.5%) are dropped" in output and "1 finding" in messages
    code, _, messages = fledge("check", recipe, "--stages.sft.data.max_seq_le", "5")
    assert code == 2 and "did you mean 'max_seq_len'?" in messages
