"""A run with any preference loss: it begins with the loss of an untrained pair, resumes bit for bit, and learns real pairs."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from fledge.pipeline import Pipeline, dry_run
from fledge.recipe import recipe_from_dict
from fledge.report import write_report
from fledge.run import Console
from tests.support import tiny_run
from tests.support.killing import run_until_killed
from tests.support.run_directory import events, final_results

QUIET = Console(quiet=True)
FIRST_LOSS = {"sigmoid": math.log(2), "hinge": 1.0, "ipo": 25.0}  # of a pair, at β = 0.1


def _tree(world: Path, output: Path, **stage: Any) -> dict[str, Any]:
    """A recipe of a preference stage only, without dropout."""
    tree = tiny_run.tree(world, output, model={**tiny_run.MODEL, "dropout": 0.0})
    tree["stages"] = {"dpo": {**tree["stages"]["dpo"], **stage}}
    tree["generation_samples"] = {}
    return tree


def _events(run: Path, kind: str) -> list[dict[str, Any]]:
    return events(run, "dpo", kind)


@pytest.mark.parametrize("loss_type", ["hinge", "ipo"])
def test_a_run_with_another_loss_begins_at_its_known_value_and_resumes_bit_for_bit(
    loss_type: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted = Pipeline(recipe_from_dict(_tree(world, tmp_path / "whole", loss_type=loss_type)), QUIET).run()
    recipe = recipe_from_dict(_tree(world, tmp_path / "killed", loss_type=loss_type))
    run_until_killed(recipe, 5, monkeypatch)
    assert final_results(Pipeline(recipe, QUIET).run(resume=True), ("dpo",)) == final_results(uninterrupted, ("dpo",))
    assert _events(uninterrupted, "step")[0]["train/loss"] == pytest.approx(FIRST_LOSS[loss_type], rel=1e-5)
    assert json.loads((uninterrupted / "dpo" / "eval" / "before.json").read_text())["loss"] == pytest.approx(
        FIRST_LOSS[loss_type]
    )
    assert json.loads((uninterrupted / "dpo" / "plan.json").read_text())["loss_unit"] == "per pair"
    page = write_report(uninterrupted).read_text(encoding="utf-8")
    assert re.search(r"validation loss fell from [\d.]+ to [\d.]+ per pair", page) and "nats/pair" not in page


def test_a_live_reference_model_and_its_precomputed_table_train_identical_weights(world: Path, tmp_path: Path) -> None:
    """Micro-batches have one row, so that model and table score equal batches."""
    runs = {}
    for precompute in (True, False):
        batch = {"micro_batch_size": 1, "gradient_accumulation_steps": 4}
        tree = _tree(world, tmp_path / str(precompute), precompute_ref_log_probs=precompute, batch=batch)
        runs[precompute] = Pipeline(recipe_from_dict(tree), QUIET).run()
    assert final_results(runs[True], ("dpo",)) == final_results(runs[False], ("dpo",))
    assert [len(list((run / "dpo").glob("reference.*"))) for run in runs.values()] == [2, 0]


def test_memory_is_planned_for_the_reference_model_only_where_one_is_kept(world: Path, tmp_path: Path) -> None:
    planned, plans = [], []
    for precompute in (True, False):
        batch = {"micro_batch_size": "auto", "tokens_per_step": 512}
        tree = _tree(world, tmp_path, precompute_ref_log_probs=precompute, batch=batch)
        tree["model"] = {**tree["model"], "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8}
        tree["runtime"] = {**tree["runtime"], "memory_budget": "8 GB"}
        text = dry_run(recipe_from_dict(tree), QUIET)
        planned += re.findall(r"a step takes about ([\d.]+) of", text)
        plans += re.findall(r"plan: ([\d.]+)M parameters", text)
    assert plans[0] == plans[1]
    assert float(planned[1]) - float(planned[0]) == pytest.approx(4e6 * float(plans[0]) / 2**30, abs=0.011)


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", FIRST_LOSS)
def test_training_on_real_pairs_lowers_the_loss_of_an_untrained_model(
    loss_type: str, shared_data: Path, world: Path, tmp_path: Path
) -> None:
    files = [shared_data / "llamafactory" / f"dpo_{language}_demo.json" for language in ("zh", "en")]
    sources = [{"path": str(path), "max_samples": 20} for path in files]
    data = {"train": sources, "validation": sources, "max_seq_len": 256, "clean": {"decontaminate": False}}
    tree = _tree(world, tmp_path, loss_type=loss_type, data=data, duration="12 steps")
    tree["stages"]["dpo"]["optimizer"] = {"learning_rate": 3e-3}
    tree["stages"]["dpo"]["evaluation"] = {"every_steps": 12}
    tree["model"] = {**tree["model"], "max_position_embeddings": 256}
    run = Pipeline(recipe_from_dict(tree), QUIET).run()
    before, after = (json.loads((run / "dpo" / "eval" / f"{name}.json").read_text()) for name in ("before", "after"))
    assert before["loss"] == pytest.approx(FIRST_LOSS[loss_type], rel=1e-5) and before["rewards/margins"] == 0
    assert after["loss"] < before["loss"] and after["rewards/margins"] > 0 and after["rewards/accuracies"] > 0.5
