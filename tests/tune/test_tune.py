"""`fledge tune` as a person runs it, on tiny models."""

import json
from pathlib import Path

import pytest
import yaml

from fledge.errors import FledgeError
from fledge.recipe import load_recipe
from fledge.recipe.schema import ModelConfig
from fledge.tune.learning_rate import Round, exponent_of_length, narrowed, width_factor
from tests.support import tiny_run
from tests.support.command import assert_error, fledge


def tiny_recipe(folder: Path) -> str:
    tree = tiny_run.tree(folder / "world", folder / "runs")
    stage = {**tree["stages"]["pretrain"], "duration": "64 steps", "evaluation": {"max_packed_rows": 64}, "checkpoint": {}}
    stage["schedule"] = {"min_lr": 1e-4}
    return str(tiny_run.write(folder / "tiny.yaml", {**tree, "stages": {"pretrain": stage}, "generation_samples": {}}))


@pytest.mark.slow
def test_a_learning_rate_is_found_between_worse_ones_and_its_patch_trains(tmp_path: Path) -> None:
    recipe, out = tiny_recipe(tmp_path), tmp_path / "tuning"
    done = fledge("tune", recipe, "--what", "lr", "--out", out)
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "tune.json").read_text(encoding="utf-8"))
    rounds, rate = found["figures"]["rounds"], found["figures"]["rate"]
    assert [one["steps"] for one in rounds] == [16, 32] and found["figures"]["full_steps"] == 64
    key = "stages.pretrain.optimizer.learning_rate"
    assert found["patch"][key] == rate and found["patch"]["stages.pretrain.schedule.min_lr"] == "10%"
    losses = {float(one): loss for one, loss in rounds[-1]["losses"].items()}
    exponent = found["figures"]["exponent"]
    assert min(losses) <= rate * 2**-exponent * 1.01 and -0.64 <= exponent <= 0 and len(losses) >= 3
    assert found["figures"]["cost_in_runs"] <= 7 / 3 + 1e-9
    patched = load_recipe([recipe, str(out / "patch.yaml")])
    assert patched.stages["pretrain"].optimizer.learning_rate == rate
    assert "how sure" in done.stdout and "cost:" in done.stdout
    run = yaml.safe_load((out / "trials/0001/seed1/recipe.yaml").read_text(encoding="utf-8"))["stages"]["pretrain"]
    assert run["duration"] == "16 steps" and run["schedule"]["min_lr"] == "10%"  # the proportions of the whole stage
    again = fledge("tune", recipe, "--what", "lr", "--out", out)  # every run is finished: nothing is trained again
    assert again.stdout == done.stdout


@pytest.mark.slow
def test_a_batch_is_found_from_a_recipe_and_from_a_run(tmp_path: Path) -> None:
    recipe, out = tiny_recipe(tmp_path), tmp_path / "tuning"
    odd = {"micro_batch_size": 3, "gradient_accumulation_steps": 3}
    values = ["--stages.pretrain.duration", "120 steps", "--stages.pretrain.optimizer.learning_rate", "2e-3",
              *(word for key, value in odd.items() for word in (f"--stages.pretrain.batch.{key}", str(value)))]  # fmt: skip
    done = fledge("tune", recipe, "--what", "batch", "--out", out, *values)
    assert done.returncode == 0, done.stderr
    figures = json.loads((out / "tune.json").read_text(encoding="utf-8"))["figures"]
    low, high = figures["interval"]
    assert low <= figures["critical_batch_targets"] and (high is None or figures["critical_batch_targets"] <= high)
    assert figures["rows"] >= 2 and "critical batch" in done.stdout
    measured = yaml.safe_load((out / "trials/0001/seed1/recipe.yaml").read_text(encoding="utf-8"))["stages"]["pretrain"]
    assert measured["batch"]["micro_batch_size"] == 3 and measured["batch"]["gradient_accumulation_steps"] == 3
    patched = load_recipe([recipe, str(out / "patch.yaml")]).stages["pretrain"]
    assert patched.batch.micro_batch_rows * patched.batch.gradient_accumulation_steps == figures["rows"]
    assert patched.schedule.min_lr == "5%"  # the rate was changed, and its minimum with it
    of_run = fledge("tune", out / "trials/0001/seed1", "--what", "batch")
    assert of_run.returncode == 0 and of_run.stdout.splitlines()[0] in done.stdout
    assert_error(fledge("tune", out / "trials/0001/seed1", "--what", "lr"), "found from a recipe")


@pytest.mark.slow
def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    recipe, out = tiny_recipe(tmp_path), tmp_path / "tuning"
    short = fledge("tune", recipe, "--what", "lr", "--out", out, "--stages.pretrain.duration", "30 steps")
    assert_error(short, "stages.pretrain.duration", "too few to learn from shorter runs")
    assert_error(fledge("tune", recipe, "--what", "batch", "--width", "16", "--out", out), "--width", "belongs to --what lr")
    assert_error(fledge("tune", recipe, "--what", "lr", "--stage", "sft", "--out", out), "--stage", "it has pretrain")


def test_a_narrower_model_keeps_its_proportions() -> None:
    model = ModelConfig(hidden_size=256, num_attention_heads=8, num_key_value_heads=2, intermediate_size=704)
    assert narrowed(model, 128) == {
        "model.hidden_size": 128, "model.num_attention_heads": 4, "model.num_key_value_heads": 1,
        "model.intermediate_size": 352,
    }  # fmt: skip
    for width in (100, 256, 512):
        with pytest.raises(FledgeError, match="no width of a narrower model"):
            narrowed(model, width)
    assert width_factor("adamw", 64, 256) == 0.25 and width_factor("muon", 64, 256) == 0.5
    with pytest.raises(FledgeError, match="no rule carries"):
        width_factor("adafactor", 64, 256)


def test_the_trend_is_between_the_published_one_and_what_was_seen() -> None:
    def of(steps: int, best: float) -> Round:
        return Round(steps=steps, losses={best / 2: 2.1, best: 2.0, best * 2: 2.1})

    assert exponent_of_length(of(100, 4e-3), of(400, 4e-3 * 4**-0.32)) == pytest.approx(-0.32)
    assert exponent_of_length(of(100, 4e-3), of(400, 4e-3)) == pytest.approx(-0.16)
    assert exponent_of_length(of(100, 2e-3), of(400, 8e-3)) == 0.0  # it rises: kept as it is
    assert exponent_of_length(of(100, 8e-3), of(400, 1e-3)) == -0.64


def test_a_recipe_that_is_mended_before_anything_was_tried_uses_the_folder_again(tmp_path: Path) -> None:
    recipe, out = tiny_recipe(tmp_path), tmp_path / "tuning"
    short = ("tune", recipe, "--what", "lr", "--out", out, "--stages.pretrain.duration", "12 steps")
    assert_error(fledge(*short), "the stage has 12 steps: too few", "stages.pretrain.duration")
    assert_error(fledge(*short[:-1], "13 steps"), "the stage has 13 steps: too few")


@pytest.mark.slow
def test_a_length_is_found_by_a_law_of_the_loss_or_none_is_used(tmp_path: Path) -> None:
    recipe, out = tiny_recipe(tmp_path), tmp_path / "tuning"
    long = ("--stages.pretrain.duration", "320 steps", "--stages.pretrain.schedule.warmup", "32")
    done = fledge("tune", recipe, "--what", "duration", "--out", out, *long)
    assert done.returncode == 0, done.stderr
    figures = json.loads((out / "tune.json").read_text(encoding="utf-8"))["figures"]
    assert list(figures["losses"]) == ["20", "40", "80", "160"] and figures["cost_in_runs"] == 300 / 320
    assert ("expected at the end" in done.stdout) == (figures["predicted"] is not None)
    patched = load_recipe([recipe, str(out / "patch.yaml")])
    assert patched.stages["pretrain"].duration == f"{figures['steps']} steps"
    if figures["steps"] != 320:
        assert patched.stages["pretrain"].schedule.warmup == 0.1  # as the runs had it
    run = yaml.safe_load((out / "trials/0004/seed1/recipe.yaml").read_text(encoding="utf-8"))["stages"]["pretrain"]
    assert run["duration"] == "160 steps" and run["schedule"]["min_lr"] == "10%"
    short = fledge("tune", recipe, "--what", "duration", "--out", tmp_path / "short")
    assert_error(short, "stages.pretrain.duration", "too few to learn from shorter runs")
