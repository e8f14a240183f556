"""A complete run: its files, and the values in them."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

from fledge.errors import FledgeError
from fledge.forecast.planning import dry_run
from fledge.model.pretrained import from_pretrained
from fledge.pipeline import Pipeline
from fledge.recipe import load_recipe, recipe_from_dict
from fledge.report import write_report
from fledge.run import Console
from fledge.tokenizer import load_tokenizer
from tests.support import tiny_run
from tests.support.run_directory import events

QUIET = Console(quiet=True)
STAGES = ("pretrain", "sft", "dpo")


def test_every_stage_writes_the_files_of_the_run_directory(finished: Path) -> None:
    for name in ("recipe.yaml", "environment.json", "summary.json", "tokenizer/tokenizer.json"):
        assert (finished / name).exists(), name
    for stage in STAGES:
        for name in ("plan.json", "data_report.json", "compute.json", "result.json", "eval/before.json", "eval/after.json"):
            assert (finished / stage / name).exists(), f"{stage}/{name}"
        assert (finished / stage / "checkpoints" / "last").is_symlink()
        assert (finished / stage / "checkpoints" / "best").is_symlink()


def test_steps_and_tokens_are_as_planned(finished: Path) -> None:
    for stage in STAGES:
        plan = json.loads((finished / stage / "plan.json").read_text())
        steps = events(finished, stage, "step")
        assert [event["step"] for event in steps] == list(range(1, plan["steps"] + 1))
        assert steps[-1]["train/tokens"] == pytest.approx(plan["tokens"], rel=0.1)
        rates = [event["train/lr"] for event in steps]
        assert rates[-1] == min(rates[len(rates) // 2 :]) and 0 < rates[-1] < max(rates)


def test_training_lowers_the_loss_and_the_final_evaluation_equals_the_last_eval_event(finished: Path) -> None:
    for stage in ("pretrain", "sft"):
        before, after = (json.loads((finished / stage / "eval" / f"{when}.json").read_text()) for when in ("before", "after"))
        assert after["perplexity"] < before["perplexity"]
        assert after["loss"] == events(finished, stage, "eval")[-1]["eval/loss"]
        assert math.exp(after["loss"]) == pytest.approx(after["perplexity"])


def test_the_first_preference_step_has_loss_ln_2_and_no_margin(finished: Path) -> None:
    first = events(finished, "dpo", "step")[0]
    # Dropout is on in the policy and off in the reference, so the first margin is near zero, not zero.
    assert first["train/loss"] == pytest.approx(math.log(2), abs=0.02)
    before = json.loads((finished / "dpo" / "eval" / "before.json").read_text())
    assert before["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert before["rewards/accuracies"] == 0.0 and before["rewards/margins"] == 0.0


def test_a_live_and_a_precomputed_reference_give_the_same_losses(world: Path, tmp_path: Path) -> None:
    losses = []
    for kind in (False, True):
        tree = tiny_run.tree(world, tmp_path, name=f"precomputed-{kind}", model={**tiny_run.MODEL, "dropout": 0.0})
        tree["stages"] = {"dpo": {**tree["stages"]["dpo"], "precompute_ref_log_probs": kind}}
        run = Pipeline(recipe_from_dict(tree), QUIET).run()
        losses.append([event["train/loss"] for event in events(run, "dpo", "step")])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert losses[0][0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[0][-1] < math.log(2)


def test_gradient_accumulation_does_not_change_the_losses(world: Path, tmp_path: Path) -> None:
    """8 × 1, 1 × 8 and 2 × 4 rows give equal losses at every step."""
    curves = []
    for micro, accumulation in ((8, 1), (1, 8), (2, 4)):
        tree = tiny_run.tree(world, tmp_path, name=f"a{micro}", model={**tiny_run.MODEL, "dropout": 0.0})
        sft = {
            **tree["stages"]["sft"],
            "batch": {"micro_batch_size": micro, "gradient_accumulation_steps": accumulation},
            "duration": "5 steps",
        }
        tree["stages"] = {"sft": sft}
        run = Pipeline(recipe_from_dict(tree), QUIET).run()
        curves.append([(event["train/loss"], event["train/grad_norm"]) for event in events(run, "sft", "step")])
    for other in curves[1:]:
        for (loss, norm), (loss0, norm0) in zip(other, curves[0], strict=True):
            assert loss == pytest.approx(loss0, abs=2e-5) and norm == pytest.approx(norm0, rel=1e-3)


def test_every_row_is_accounted_for(finished: Path) -> None:
    for stage, rows in (("pretrain", 120), ("sft", 150), ("dpo", 60)):
        sources = json.loads((finished / stage / "data_report.json").read_text())["sources"]
        assert sources[0]["rows"] == rows
        assert all(source["rows"] == source["used_rows"] + sum(source["dropped"].values()) for source in sources)


def test_the_result_loads_in_transformers_with_equal_logits(finished: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = finished / "dpo" / "checkpoints" / "last" / "model"
    ours = from_pretrained(folder).eval()
    tokenizer = load_tokenizer(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = their_tokenizer.apply_chat_template(
        [{"role": "user", "content": "你是谁？"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    from fledge.tokenizer import Message

    assert ids[0].tolist() == tokenizer.encode_prompt([Message("user", "你是谁？")])
    with torch.no_grad():
        assert torch.allclose(ours.logits(ours(ids)), theirs(ids).logits, atol=1e-4)


def test_the_stored_recipe_runs_again_to_the_same_weights(finished: Path, tmp_path: Path) -> None:
    again = load_recipe([str(finished / "recipe.yaml")], [("output", str(tmp_path))])
    run = Pipeline(again, QUIET).run()
    for stage in STAGES:
        weights = "checkpoints/last/model/model.safetensors"
        assert (run / stage / weights).read_bytes() == (finished / stage / weights).read_bytes()


def test_dry_run_writes_nothing_and_prints_steps_warmup_and_batch(world: Path, tmp_path: Path) -> None:
    text = dry_run(tiny_run.recipe(world, tmp_path), QUIET, full=True)
    assert not list(tmp_path.iterdir())
    assert "8 steps" in text and "effective batch 4 rows" in text and "warm-up" in text and "hidden_size: 32" in text
    assert text.index("hidden_size: 32") < text.index("# runtime") < text.index("8 steps, "), "a terminal shows the end"
    (tmp_path / "printed.yaml").write_text(text, encoding="utf-8")
    assert load_recipe([str(tmp_path / "printed.yaml")]) == tiny_run.recipe(world, tmp_path), "what is printed is a recipe"
    assert "precision fp32: set in the recipe" in text and "device cpu: no GPU was found" in text
    assert "warning (certain): stages.pretrain.duration: the stage has only 8 updates" in text
    short = dry_run(tiny_run.recipe(world, tmp_path), QUIET)
    assert "hidden_size: 32" not in short and "8 steps" in short
    needs = re.findall(r"memory: about [\d.]+ of [\d.]+ GiB, it fits", short)
    times = re.findall(r"time: [\d.]+ to [\d.]+ s of training \((?:matrix products of|as .* this machine)", short)
    assert len(needs) == len(times) == len(STAGES) and "this machine (cpu)" in short


def test_what_is_doubtful_is_shown_before_the_error_of_a_plan(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = tiny_run.tree(world, tmp_path)
    tree["stages"] = {"dpo": {**tree["stages"]["dpo"], "schedule": {"warmup": 100}, "duration": "1 steps"}}
    recipe = recipe_from_dict(tree)
    for attempt in (lambda: Pipeline(recipe, Console()).run(), lambda: dry_run(recipe, Console())):
        with pytest.raises(FledgeError, match="warm-up takes 100 steps but the stage has only 1"):
            attempt()
        assert "warning: stages.dpo.init_from: the stage prefers answers with " in capsys.readouterr().err


def test_target_loss_and_patience_stop_the_stage(world: Path, tmp_path: Path) -> None:
    tree = tiny_run.tree(world, tmp_path)
    tree["stages"] = {
        "pretrain": {**tree["stages"]["pretrain"], "duration": "40 steps", "early_stopping": {"target_loss": 5.9}}
    }
    run = Pipeline(recipe_from_dict(tree), QUIET).run()
    (stop,) = events(run, "pretrain", "stop")
    assert "reached the target 5.9" in stop["reason"] and stop["step"] < 40
    assert events(run, "pretrain", "eval")[-1]["eval/loss"] <= 5.9

    tree["name"] = "patient"
    tree["stages"]["pretrain"].update(early_stopping={"patience": 2, "threshold": 10.0}, evaluation={"every_steps": 2})
    run = Pipeline(recipe_from_dict(tree), QUIET).run()
    (stop,) = events(run, "pretrain", "stop")
    assert stop["step"] == 4 and "2 evaluations" in stop["reason"]


def test_select_checkpoint_best_continues_with_the_best_checkpoint(world: Path, tmp_path: Path) -> None:
    tree = tiny_run.tree(world, tmp_path)
    sft = {
        **tree["stages"]["sft"],
        "optimizer": {"learning_rate": 0.5},
        "schedule": {"name": "constant", "warmup": 11},
        "select_checkpoint": "best",
        "duration": "12 steps",
        "evaluation": {"every_steps": 1, "max_packed_rows": 4},
        "guards": {"divergence": "ignore"},
    }
    tree["stages"] = {"pretrain": tree["stages"]["pretrain"], "sft": sft}
    run = Pipeline(recipe_from_dict(tree), QUIET).run()
    losses = {event["step"]: event["eval/loss"] for event in events(run, "sft", "eval")}
    best = min(losses, key=lambda step: losses[step])
    assert best < 12, "the learning rate should have been high enough to diverge"
    assert json.loads((run / "sft" / "result.json").read_text())["model"] == f"checkpoints/step-{best:08d}/model"


def test_a_run_that_diverges_stops_after_its_rollbacks(world: Path, tmp_path: Path) -> None:
    tree = tiny_run.tree(world, tmp_path)
    wild = {**tree["stages"]["pretrain"], "optimizer": {"learning_rate": 1e30, "max_grad_norm": None}, "duration": "30 steps"}
    tree["stages"] = {"pretrain": wild}
    with pytest.raises(FledgeError, match="the gradient is not finite in 3 updates in a row; 3 rollbacks did not help"):
        Pipeline(recipe_from_dict(tree), QUIET).run()


def test_tensorboard_has_every_step(world: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tree = tiny_run.tree(world, tmp_path, logging={"tensorboard": True})
    tree["stages"] = {"pretrain": tree["stages"]["pretrain"]}
    run = Pipeline(recipe_from_dict(tree), QUIET).run()
    board = EventAccumulator(str(run / "pretrain" / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    losses = {point.step: point.value for point in board.Scalars("train/loss")}
    assert losses == pytest.approx({e["step"]: e["train/loss"] for e in events(run, "pretrain", "step")}, rel=1e-6)


def test_logging_changes_no_weight(world: Path, finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tree = tiny_run.tree(world, tmp_path, logging={"tensorboard": True, "every_steps": 1}, generation_samples={})
    run = Pipeline(recipe_from_dict(tree), Console(quiet=False, live=False)).run()
    weights = "dpo/checkpoints/last/model/model.safetensors"
    assert (run / weights).read_bytes() == (finished / weights).read_bytes()


def test_the_report_is_written_from_the_run_directory(finished: Path) -> None:
    page = write_report(finished).read_text(encoding="utf-8")
    assert "你是谁？" in page and "pretrain" in page
    for stage in ("pretrain", "sft", "dpo"):
        cases = [json.loads(line) for line in (finished / stage / "eval" / "errors.jsonl").read_text("utf-8").splitlines()]
        losses = [case["loss"] for case in cases]
        assert (
            losses and losses == sorted(losses, reverse=True) and all(".validation.jsonl:" in case["where"] for case in cases)
        )
        assert all(case["where"].replace("&", "&amp;") in page for case in cases)
