"""A stage that ruins its model is rolled back: the model before it goes on, also after an interruption; scripts are told."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fledge.cli import main
from fledge.pipeline import Pipeline
from fledge.recipe import recipe_from_dict
from fledge.run import Console, resolve_model_path
from tests.support import small_runs


def ruined(start: Path, output: Path, **more: Any) -> dict[str, Any]:
    """A recipe whose only stage has a mad learning rate, with too few evaluations to choose a checkpoint by."""
    folder = start.resolve()
    stage = {
        "kind": "sft", "init_from": str(folder / "model"),
        "data": {"train": str(folder / "mixed.jsonl"), "validation": str(folder / "known.jsonl"), "max_seq_len": 64,
                 "clean": {"decontaminate": False}},
        "batch": {"micro_batch_size": 4}, "optimizer": {"learning_rate": 0.3}, "duration": "6 steps",
        "evaluation": {"every_steps": 6}, "guards": {"divergence": "ignore"}, **more,
    }  # fmt: skip
    return {"name": "ruined", "output": str(output), "seed": 3, "runtime": small_runs.RUNTIME, "stages": {"sft": stage}}


def result(run: Path, stage: str = "sft") -> dict[str, Any]:
    return json.loads((run / stage / "result.json").read_text(encoding="utf-8"))


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "model.safetensors")


def train(tree: dict[str, Any]) -> Path:
    return Pipeline(recipe_from_dict(tree), Console(quiet=True)).run()


@pytest.fixture(scope="module")
def rolled_back(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose stage was rolled back."""
    return train(ruined(start, tmp_path_factory.mktemp("ruined")))


def test_the_model_before_the_stage_goes_on(start, rolled_back):
    found = result(rolled_back)
    assert found["verdict"]["decision"] == "roll back"
    assert found["verdict"]["goes_on"] == "start"
    assert found["verdict"]["reasons"][0]["check"] in ("collapsed", "worse_than_start")
    model = resolve_model_path(str(rolled_back))
    assert model == rolled_back / "sft" / found["model"]
    before, now, trained = (
        weights(path) for path in (start.resolve() / "model", model, rolled_back / "sft" / "checkpoints" / "last" / "model")
    )
    assert all(torch.equal(before[name], now[name]) for name in before)
    assert any(not torch.equal(before[name], trained[name]) for name in before)


def test_a_run_that_is_interrupted_at_the_verdict_comes_to_the_same_one(rolled_back, tmp_path):
    run = tmp_path / "ruined"
    shutil.copytree(rolled_back, run, symlinks=True)
    (run / "sft" / "result.json").unlink()
    assert main(["train", str(run / "recipe.yaml"), "--resume", "--quiet"]) == 0
    again, first = result(run), result(rolled_back)
    assert (again["model"], again["verdict"]) == (first["model"], first["verdict"])


def test_a_model_whose_checkpoint_is_not_kept_is_put_back_from_where_the_stage_began(start, rolled_back, tmp_path):
    run = tmp_path / "ruined"
    shutil.copytree(rolled_back, run, symlinks=True)
    (run / "sft" / "result.json").unlink()
    shutil.rmtree(run / "sft" / "checkpoints" / "step-00000000")
    assert main(["train", str(run / "recipe.yaml"), "--resume", "--quiet"]) == 0
    found = result(run)
    assert (found["model"], found["verdict"]["goes_on"]) == ("rolled_back/model", "start")
    before, now = weights(start.resolve() / "model"), weights(resolve_model_path(str(run)))
    assert all(torch.equal(before[name], now[name]) for name in before)


def test_the_next_stage_starts_from_the_model_that_was_put_back(start, rolled_back, tmp_path):
    tree = ruined(start, tmp_path)
    tree["stages"]["more"] = {**tree["stages"]["sft"], "init_from": None, "optimizer": {"learning_rate": 1e-4}}
    run = train(tree)
    record = json.loads((run / "more" / "start.json").read_text(encoding="utf-8"))
    assert record["source"] == str(run / "sft" / result(run)["model"])
    assert record["weights"] == json.loads((rolled_back / "sft" / "start.json").read_text(encoding="utf-8"))["weights"]


def test_a_stage_that_began_with_new_weights_never_goes_back_to_them(start, tmp_path, capsys):
    tree = ruined(start, tmp_path)
    del tree["stages"]["sft"]["init_from"]
    tree["stages"]["sft"]["optimizer"]["learning_rate"] = 10.0
    run = Pipeline(
        recipe_from_dict({**tree, "tokenizer": {"vocab_size": 400}, "model": small_runs.MODEL}), Console(live=False)
    ).run()
    found = result(run)
    assert (found["verdict"]["decision"], found["verdict"]["goes_on"]) == ("roll back", "trained")
    assert found["model"] == "checkpoints/step-00000006/model"
    assert "there is no model to go back to: the trained one goes on" in capsys.readouterr().err


def test_a_reward_model_is_not_replaced_by_the_language_model_before_it(start, tmp_path, capsys):
    tree = ruined(start, tmp_path, kind="reward")
    stage = tree["stages"]["sft"]
    stage["data"] |= {"train": str(start.resolve() / "pairs.jsonl"), "validation": str(start.resolve() / "swapped.jsonl")}
    rows = [json.loads(line) for line in (start / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    small_runs.write_jsonl(start.resolve() / "swapped.jsonl", swapped)
    found = result(Pipeline(recipe_from_dict(tree), Console(live=False)).run())
    assert (found["verdict"]["decision"], found["verdict"]["goes_on"]) == ("roll back", "trained")
    assert "is no reward model, so it is not put back: the trained one goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more", [{"evaluation": {"every_steps": 6, "verdict": {"roll_back": False}}}, {"select_checkpoint": "last"}]
)
def test_a_recipe_may_go_on_with_what_was_trained(start, tmp_path, more):
    found = result(train(ruined(start, tmp_path, **more)))
    assert (found["verdict"]["decision"], found["verdict"]["goes_on"]) == ("roll back", "trained")
    assert found["model"] == "checkpoints/step-00000006/model"


def test_the_verdict_is_an_exit_code_for_scripts(rolled_back, finished, capsys):
    assert main(["runs", "verdict", str(rolled_back)]) == 11
    assert "sft: verdict: roll back; the model before the stage goes on" in capsys.readouterr().out
    assert main(["runs", "verdict", str(rolled_back), "--json"]) == 11
    assert json.loads(capsys.readouterr().out)["decision"] == "roll back"
    decisions = {"release": 0, "keep training": 10, "roll back": 11}
    assert main(["runs", "verdict", str(finished)]) == decisions[result(finished, "dpo")["verdict"]["decision"]]
    assert main(["runs", "verdict", str(finished / "nowhere")]) == 2
