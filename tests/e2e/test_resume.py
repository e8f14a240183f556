"""A run that is stopped at any moment and resumed ends with the bytes of an uninterrupted run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fledge.errors import FledgeError
from fledge.pipeline import Pipeline
from fledge.recipe import recipe_from_dict, to_yaml
from fledge.run import Console
from fledge.run.stopping import Interrupted
from fledge.training.train_step import TrainStep
from tests.support import tiny_run
from tests.support.killing import run_until_killed
from tests.support.run_directory import final_results

QUIET = Console(quiet=True)


@pytest.mark.parametrize("at", [1, 4, 7, 11, 17, 20])
def test_killed_run_resumes_bit_for_bit(
    at: int, world: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is killed inside the at-th of 22 updates, after the gradients and before the optimizer step."""
    recipe = tiny_run.recipe(world, tmp_path)
    run_until_killed(recipe, at, monkeypatch)
    assert final_results(Pipeline(recipe, QUIET).run(resume=True)) == final_results(finished)


QWEN_MOE = {
    "qk_norm": True,
    "moe": {"num_experts": 3, "num_experts_per_tok": 2, "load_balancing": "bias", "bias_update_rate": 0.01},
}
ENGINES = {
    "everything of pretraining": {
        "optimizer": {"name": "muon"},
        "schedule": {"name": "wsd", "min_lr": "10%"},
        "ema": {"decay": 0.9},
        "batch": {
            "micro_batch_size": 2,
            "gradient_accumulation_steps": 3,
            "warmup": {"initial_accumulation_steps": 1, "ramp_steps": 4},
        },
        "runtime": {"activation_checkpointing": 2},
    },
    "8 bits and one cycle": {
        "optimizer": {"name": "adamw8bit", "learning_rate": 1e-3},
        "schedule": {"name": "onecycle", "warmup": "30%"},
    },
    "experts with biases": {"model": QWEN_MOE, "batch": {"micro_batch_size": "auto", "tokens_per_step": 384}},
    "fp16": {"runtime": {"precision": "fp16"}},
}


@pytest.mark.parametrize("engine", ENGINES)
def test_every_part_of_the_engine_resumes_bit_for_bit(
    engine: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed inside the 5th update; the newest checkpoint is of step 3 or 4."""
    changes = dict(ENGINES[engine])
    model, machine = changes.pop("model", {}), changes.pop("runtime", {})
    recipes = []
    for name in ("whole", "killed"):
        tree = tiny_run.tree(world, tmp_path / name)
        stage = {**tree["stages"]["pretrain"], **changes}
        tree |= {"stages": {"pretrain": stage}, "model": {**tree["model"], **model}, "runtime": {**tree["runtime"], **machine}}
        recipes.append(recipe_from_dict(tree))
    expected = final_results(Pipeline(recipes[0], QUIET).run(), ("pretrain",))
    run_until_killed(recipes[1], 5, monkeypatch)
    assert final_results(Pipeline(recipes[1], QUIET).run(resume=True), ("pretrain",)) == expected


def test_a_stage_on_pairs_begun_before_they_shared_prompts_goes_on_with_the_rows_it_began_with(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe of such a run has no `share_prompts`, which is `auto` now."""
    recipes = []
    for folder, changes in (("whole", {"share_prompts": False}), ("killed", {"share_prompts": False}), ("killed", {})):
        tree = tiny_run.tree(world, tmp_path / folder)
        recipes.append(recipe_from_dict(tree | {"stages": {"dpo": {**tree["stages"]["dpo"], **changes}}}))
    whole, killed, today = recipes
    expected = final_results(Pipeline(whole, QUIET).run(), ("dpo",))
    run_until_killed(killed, 5, monkeypatch)
    (tmp_path / "killed" / "tiny" / "recipe.yaml").write_text(to_yaml(today), encoding="utf-8")
    run = Pipeline(today, QUIET).run(resume=True)
    assert final_results(run, ("dpo",)) == expected
    new = Pipeline(today.model_copy(update={"name": "new"}), QUIET).run()
    rows = [json.loads((folder / "dpo" / "data_report.json").read_text())["train"]["packed_rows"] for folder in (run, new)]
    assert rows[1] < rows[0], "a new run shares prompts"


def test_a_run_stopped_by_sigterm_saves_and_resumes_bit_for_bit(
    world: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, step = 0, TrainStep._step

    def signalled(updater: TrainStep, *arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 5:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return step(updater, *arguments)

    recipe = tiny_run.recipe(world, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="after step 5 of 8"):
        patch.setattr(TrainStep, "_step", signalled)
        Pipeline(recipe, QUIET).run()
    assert (tmp_path / "tiny" / "pretrain" / "checkpoints" / "step-00000005" / "manifest.json").exists()
    assert final_results(Pipeline(recipe, QUIET).run(resume=True)) == final_results(finished)


def test_resume_falls_back_from_a_truncated_checkpoint(world: Path, finished: Path, tmp_path: Path) -> None:
    recipe = tiny_run.recipe(world, tmp_path)
    run = Pipeline(recipe, QUIET).run()
    (run / "dpo" / "result.json").unlink()
    newest = sorted((run / "dpo" / "checkpoints").glob("step-*"))[-1]
    weights = newest / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert final_results(Pipeline(recipe, QUIET).run(resume=True)) == final_results(finished)


def test_resuming_with_a_changed_recipe_is_an_error_that_names_each_key(world: Path, finished: Path) -> None:
    changed = tiny_run.tree(world, finished.parent, seed=4)
    changed["stages"]["sft"]["optimizer"]["learning_rate"] = 0.5
    with pytest.raises(FledgeError, match=r"seed: 3 -> 4(.|\n)*stages.sft.optimizer.learning_rate: 0.001 -> 0.5") as caught:
        Pipeline(recipe_from_dict(changed), QUIET).run(resume=True)
    assert (caught.value.hint or "").startswith(
        "seed, stages.sft.optimizer.learning_rate cannot change in a run that has begun"
    )


def test_a_finished_run_is_not_repeated(world: Path, finished: Path) -> None:
    before = final_results(finished)
    assert Pipeline(tiny_run.recipe(world, finished.parent), QUIET).run() == finished
    assert final_results(finished) == before


def test_a_run_resumes_with_the_recipe_changes_that_were_allowed_and_reports_them(
    world: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is killed in SFT and continues with a lower learning rate, a shorter DPO stage and more logging."""
    run_until_killed(tiny_run.recipe(world, tmp_path), 8 + 5, monkeypatch)
    changed = tiny_run.tree(world, tmp_path, logging={"every_steps": 2})
    changed["stages"]["sft"]["optimizer"]["learning_rate"] = 1e-5
    changed["stages"]["dpo"]["duration"] = "3 steps"
    key = "stages.sft.optimizer.learning_rate"
    with pytest.raises(FledgeError, match=r"stages.sft.optimizer.learning_rate: 0.001 -> 1e-05") as caught:
        Pipeline(recipe_from_dict(changed), QUIET).run()
    assert f"--allow-change {key}" in (caught.value.hint or "")
    run = Pipeline(recipe_from_dict(changed), QUIET, allow=[key]).run()
    events = [json.loads(line) for line in (run / "sft" / "events.jsonl").read_text().splitlines()]
    changes = [event for event in events if event["kind"] == "recipe_changed"]
    assert [event["keys"][key] for event in changes] == [[0.001, 1e-05]]
    rates = {event["step"]: event["train/lr"] for event in events if event["kind"] == "step"}
    assert all((rate <= 1e-5) == (number > changes[0]["step"]) for number, rate in rates.items())
    assert json.loads((run / "dpo" / "result.json").read_text())["step"] == 3
    assert (run / "recipe.1.yaml").exists() and "learning_rate: 1.0e-05" in (run / "recipe.yaml").read_text()
    assert final_results(run, ("pretrain",)) == final_results(finished, ("pretrain",))


def test_an_interrupted_evaluation_is_repeated_on_resume(
    world: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal arrives in the evaluation after step 4; its results and the best step equal those of an uninterrupted run."""
    from fledge.training import validation

    batches, count = validation.local_row_batches, 0

    def signalled(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        for number, batch in enumerate(batches(*arguments)):
            if count == 2 and number == 1:  # the first one is before the stage
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    recipe = tiny_run.recipe(world, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="after step 4 of 8"):
        patch.setattr(validation, "local_row_batches", signalled)
        Pipeline(recipe, QUIET).run()
    assert final_results(Pipeline(recipe, QUIET).run()) == final_results(finished)


@pytest.mark.slow
def test_a_run_killed_by_sigkill_three_times_ends_with_the_same_bytes(world: Path, finished: Path, tmp_path: Path) -> None:
    file = tiny_run.write(tmp_path / "r.yaml", tiny_run.tree(world, tmp_path))
    command = [sys.executable, "-m", "fledge.cli", "train", str(file), "--quiet"]
    for delay in (2.5, 3.5, 5.0):
        resume = ["--resume"] if (tmp_path / "tiny" / "recipe.yaml").exists() else []
        process = subprocess.Popen([*command, *resume])
        time.sleep(delay)
        process.kill()
        process.wait()
    subprocess.run([*command, "--resume"], check=True)
    assert final_results(tmp_path / "tiny") == final_results(finished)
