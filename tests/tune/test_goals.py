"""What a search compares, and what it refuses before anything is trained; batches that a stage can be trained with."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fledge.errors import FledgeError
from fledge.recipe import load_recipe
from fledge.run.console import Console
from fledge.sweep.recipes import SweepFiles, TrialRecipes
from fledge.sweep.shared import build_data
from fledge.tune.batch import rows_that_work
from fledge.tune.runs import ShortRuns
from fledge.tune.tune import TuneSettings, tune
from tests.support import tiny_run

QUIET = Console(quiet=True)


def _runs(folder: Path, stage: dict[str, Any], *, compares: bool) -> ShortRuns:
    """Runs of a recipe of one stage whose data is built."""
    tree = {**tiny_run.tree(folder / "world", folder), "stages": {"last": stage}, "generation_samples": {}}
    recipes = TrialRecipes(
        files=(str(tiny_run.write(folder / "r.yaml", tree)),), overrides=(), space=(), stage="last", first=0, shares_data=True,
        paths=SweepFiles(folder=folder / "tuning"), keeps_checkpoints=False,
    )  # fmt: skip
    build_data(recipes, 1, lambda text: None)
    return ShortRuns(recipes=recipes, console=QUIET, compares=compares)


def _pretrain(folder: Path, **changes: Any) -> dict[str, Any]:
    stage = tiny_run.tree(folder / "world", folder)["stages"]["pretrain"]
    stage["data"]["validation"] = 0
    return {"kind": "pretrain", **stage, **changes}


@pytest.mark.parametrize("what", ["lr", "duration"])
def test_a_stage_that_trains_for_rewards_is_not_tuned_by_a_loss(tmp_path: Path, what: str) -> None:
    stages = {"sft": {"data": {"train": "a.jsonl"}}, "grpo": {"data": {"train": "b.jsonl"}, "rewards": ["exact_match"]}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False), encoding="utf-8")
    with pytest.raises(FledgeError, match="the stage grpo trains for rewards") as caught:
        tune(TuneSettings(files=(str(tmp_path / "r.yaml"),), what=what, out=tmp_path / "out"), QUIET)
    assert caught.value.where == f"--what {what}" and "fledge sweep" in (caught.value.hint or "")
    assert not (tmp_path / "out").exists()


def test_only_runs_that_are_compared_need_validation_data(tmp_path: Path) -> None:
    runs = _runs(tmp_path, _pretrain(tmp_path), compares=False)
    assert runs.plan({}).steps == 8
    with pytest.raises(FledgeError, match="compared on validation data"):
        ShortRuns(recipes=runs.recipes, console=QUIET).plan({})


def test_missing_validation_data_is_told_before_the_stages_before_are_trained(tmp_path: Path) -> None:
    tree = tiny_run.tree(tmp_path / "world", tmp_path)
    tree["stages"]["sft"]["data"]["validation"] = 0
    tree["stages"].pop("dpo")
    recipe = str(tiny_run.write(tmp_path / "r.yaml", {**tree, "generation_samples": {}}))
    with pytest.raises(FledgeError, match="compared on validation data"):
        tune(TuneSettings(files=(recipe,), what="lr", out=tmp_path / "out"), QUIET)
    assert not (tmp_path / "out/start").exists()


def test_an_update_has_no_more_rows_than_an_epoch_and_a_warm_up_that_is_too_long_becomes_a_share(tmp_path: Path) -> None:
    stage = _pretrain(tmp_path, duration="2 epochs", schedule={"warmup": 10})
    runs = _runs(tmp_path, stage, compares=False)
    plan = runs.plan({})
    rows, patch = rows_that_work(runs, plan, 4096)
    assert plan.rows / 2 < rows <= plan.rows
    assert patch["stages.last.batch.micro_batch_size"] * patch["stages.last.batch.gradient_accumulation_steps"] == rows
    assert patch["stages.last.schedule.warmup"] == pytest.approx(10 / plan.steps)
    assert runs.plan(patch).effective_batch_rows == rows
    assert rows_that_work(runs, plan, 1)[0] == 2 and "stages.last.schedule.warmup" not in rows_that_work(runs, plan, 1)[1]


def test_an_update_of_labelled_answers_reads_both_labels(tmp_path: Path) -> None:
    file = tmp_path / "labelled.jsonl"
    with file.open("w", encoding="utf-8") as lines:
        for number in range(240):
            answer = "bad " * 20 if number % 20 == 0 else f"a good answer, number {number}, which is long enough for a row"
            row = {"prompt": f"What is {number}?", "completion": answer, "label": number % 20 != 0}
            lines.write(json.dumps(row) + "\n")
    stage = {
        "kind": "kto", "data": {"train": str(file), "validation": 0, "max_seq_len": 64}, "duration": "1 epochs",
        "batch": {"micro_batch_size": 32}, "optimizer": {"learning_rate": 1e-3},
    }  # fmt: skip
    runs = _runs(tmp_path, stage, compares=False)
    plan = runs.plan({})
    with pytest.raises(FledgeError, match="answers of one label only"):
        runs.plan({"stages.last.batch.micro_batch_size": 2})
    rows, patch = rows_that_work(runs, plan, 2)
    assert rows >= 8 and runs.plan(patch).effective_batch_rows == rows
    written = load_recipe(list(runs.recipes.files)).stages["last"].batch.micro_batch_rows
    assert written == 32 and rows <= plan.rows
