"""`fledge data check`: a line for each check, and exit code 2 when training would be meaningless."""

import json
from pathlib import Path
from typing import Any

from fledge.data.analysis.checks import CHECKS
from fledge.pipeline import Pipeline
from fledge.recipe import recipe_from_dict
from fledge.run import Console
from tests.inspect.conftest import Fledge, write
from tests.support.sources import jsonl


def test_every_check_prints_a_line_and_warnings_do_not_fail(fledge: Fledge, recipe: Path) -> None:
    code, output, _ = fledge("check", recipe)
    assert code == 0
    for stage in ("pretrain", "sft", "dpo"):
        stage_output = output.split(f"{stage}\n", 1)[1]
        assert stage_output.splitlines()[0] == "✓ build: the data can be built"
    of_pairs = sum(check.of_pairs for check in CHECKS)
    assert output.count("✓ ") + output.count("! ") >= 3 * (len(CHECKS) + 2) - 2 * of_pairs
    assert output.count("contradictory pairs: ") == 1
    assert "! duplicates: talks.jsonl: 1 of 24 rows (4.2%)" in output and "✗" not in output


def test_pairs_are_scored_by_a_model_that_names_what_looks_swapped(
    fledge: Fledge, tree: dict[str, Any], tmp_path: Path
) -> None:
    """The model has learned the rejected answers of the last three rows by heart: there the pairs look swapped."""
    answers = [("yes, it is so", "no, never at all"), ("no, never at all", "yes, it is so")]
    rows = [{"prompt": f"question {n}", "chosen": answers[n > 8][0], "rejected": answers[n > 8][1]} for n in range(12)]
    known = [{"prompt": row["prompt"], "response": "yes, it is so"} for row in rows]
    sft = {
        "data": {"train": str(jsonl(tmp_path / "known.jsonl", known)), "validation": 0, "max_seq_len": 96},
        "optimizer": {"learning_rate": 1e-2}, "duration": "40 steps", "batch": {"micro_batch_size": 2},
    }  # fmt: skip
    model = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
             "intermediate_size": 64, "max_position_embeddings": 96}  # fmt: skip
    runtime = {"precision": "fp32", "compile": False, "threads": 1, "attention": "blocked"}
    trained = {**tree, "output": str(tmp_path), "model": model, "runtime": runtime, "generation_samples": {}}
    run = Pipeline(recipe_from_dict({**trained, "stages": {"sft": sft}}), Console(quiet=True)).run()
    directory = run / "sft" / "checkpoints" / "last" / "model"
    pairs = {"data": {"train": str(jsonl(tmp_path / "pairs.jsonl", rows)), "validation": 0, "max_seq_len": 96}}
    recipe = write(tmp_path / "r.yaml", {**trained, "stages": {"sft": sft, "dpo": pairs}})
    code, output, _ = fledge("check", recipe, "--with-model", directory, "--json")
    assert code == 0
    (stage,) = json.loads(output)["stages"]  # the stage on pairs alone
    checks = {one["check"]: one for one in stage["checks"]}
    (swapped,) = checks["swapped pairs"]["findings"]
    assert "in 3 of 12 pairs" in swapped["message"] and swapped["where"].endswith(
        ("pairs.jsonl:10", "pairs.jsonl:11", "pairs.jsonl:12")
    )
    (easy,) = checks["easy and hard pairs"]["findings"]
    assert easy["evidence"]["by_sum"] == 0.75 and checks["easy and hard pairs"]["level"] == "warning"
    (own,) = checks["off-policy pairs"]["findings"]
    assert (
        own["evidence"]["own"] < 0
        and own["evidence"]["chosen"] < 0
        and "its own samples to 12 of the prompts" in own["message"]
    )
    code, _, messages = fledge("check", recipe, "--stage", "sft", "--with-model", directory)
    assert code == 2 and "--with-model looks at pairs of answers; stage sft is of kind sft" in messages


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
    assert "! answers from fresh weights: the stage prefers answers with " in output and "random weights" in output


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
