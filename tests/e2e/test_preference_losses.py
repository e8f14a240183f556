"""A run with any preference loss: it begins with the loss of an untrained pair, resumes bit for bit, and learns real pairs."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fledge.errors import FledgeError
from fledge.forecast.planning import dry_run
from fledge.pipeline import Pipeline
from fledge.recipe import recipe_from_dict
from fledge.report import write_report
from fledge.run import Console
from tests.e2e.test_processes import assert_same_losses
from tests.support import tiny_run
from tests.support.killing import run_until_killed
from tests.support.ranks import run_ranks, run_recipe
from tests.support.run_directory import events, final_results

QUIET = Console(quiet=True)
FIRST_LOSS = {"sigmoid": math.log(2), "hinge": 1.0, "ipo": 25.0, "sigmoid_norm": math.log(2)}  # of a pair, at default β


def _tree(world: Path, output: Path, **stage: Any) -> dict[str, Any]:
    """A recipe of a preference stage only, without dropout."""
    tree = tiny_run.tree(world, output, model={**tiny_run.MODEL, "dropout": 0.0})
    tree["stages"] = {"dpo": {**tree["stages"]["dpo"], **stage}}
    tree["generation_samples"] = {}
    return tree


def _events(run: Path, kind: str) -> list[dict[str, Any]]:
    return events(run, "dpo", kind)


def _whole_and_resumed(tree: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Path:
    """An uninterrupted run; one that is killed and resumed ends with the same bytes. `tree`: the recipe, by a folder's name."""
    uninterrupted = Pipeline(recipe_from_dict(tree("whole")), QUIET).run()
    recipe = recipe_from_dict(tree("killed"))
    run_until_killed(recipe, 5, monkeypatch)
    assert final_results(Pipeline(recipe, QUIET).run(resume=True), ("dpo",)) == final_results(uninterrupted, ("dpo",))
    return uninterrupted


@pytest.mark.parametrize("loss_type", ["hinge", "ipo"])
def test_a_run_with_another_loss_begins_at_its_known_value_and_resumes_bit_for_bit(
    loss_type: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted = _whole_and_resumed(lambda name: _tree(world, tmp_path / name, loss_type=loss_type), monkeypatch)
    assert _events(uninterrupted, "step")[0]["train/loss"] == pytest.approx(FIRST_LOSS[loss_type], rel=1e-5)
    assert json.loads((uninterrupted / "dpo" / "eval" / "before.json").read_text())["loss"] == pytest.approx(
        FIRST_LOSS[loss_type]
    )
    plan = json.loads((uninterrupted / "dpo" / "plan.json").read_text())
    assert plan["loss_unit"] == "per pair" and any("the prompt of a pair is computed once" in note for note in plan["notes"])
    page = write_report(uninterrupted).read_text(encoding="utf-8")
    assert re.search(r"validation loss fell from [\d.]+ to [\d.]+ per pair", page) and "nats/pair" not in page


@pytest.mark.parametrize("loss_type", ["simpo", "orpo"])
def test_a_loss_without_reference_loads_none_computes_none_and_resumes_bit_for_bit(
    loss_type: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted = _whole_and_resumed(lambda name: _tree(world, tmp_path / name, loss_type=loss_type), monkeypatch)
    assert not list((uninterrupted / "dpo").glob("reference.*"))
    steps = _events(uninterrupted, "step")
    assert (
        not any(key.startswith("train/drift") for key in steps[0]) and steps[-1]["train/log_odds"] > steps[0]["train/log_odds"]
    )


def _labelled(world: Path, folder: Path) -> dict[str, str]:
    """The pairs of the world as labelled answers: of each pair one answer, two of three the chosen one."""
    files = {}
    for name in ("preference", "preference.validation"):
        rows = [json.loads(line) for line in (world / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        files[name] = folder / f"{name}.labelled.jsonl"
        lines = []
        for n, row in enumerate(rows):
            answer = row.pop("rejected" if n % 3 == 1 else "chosen")
            prompt = {key: value for key, value in row.items() if key not in ("chosen", "rejected")}
            lines.append(json.dumps({**prompt, "completion": answer, "label": n % 3 != 1}))
        files[name].write_text("\n".join(lines), encoding="utf-8")
    return {"train": str(files["preference"]), "validation": str(files["preference.validation"])}


def _kto_tree(world: Path, output: Path, folder: Path, **stage: Any) -> dict[str, Any]:
    data = {**_labelled(world, folder), "max_seq_len": 64}
    return _tree(world, output, kind="kto", data=data, **stage)


@pytest.mark.parametrize("precompute", [True, False])
def test_kto_begins_at_a_half_resumes_bit_for_bit_and_has_one_kl_estimate_for_any_micro_batches(
    precompute: bool, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage: dict[str, Any] = {"precompute_ref_log_probs": precompute}
    uninterrupted = _whole_and_resumed(lambda name: _kto_tree(world, tmp_path / name, tmp_path, **stage), monkeypatch)
    first, *_ = _events(uninterrupted, "step")
    assert first["train/loss"] == pytest.approx(0.5, abs=1e-5) and first["train/kl"] == pytest.approx(0, abs=1e-5)
    before, after = (json.loads((uninterrupted / "dpo" / "eval" / f"{name}.json").read_text()) for name in ("before", "after"))
    assert before["loss"] == pytest.approx(0.5, abs=1e-5) and before["answers"] >= 4
    assert after["loss"] < before["loss"]
    assert "per answer" in write_report(uninterrupted).read_text(encoding="utf-8")
    stage["batch"] = {"micro_batch_size": 1, "gradient_accumulation_steps": 4}
    other = Pipeline(recipe_from_dict(_kto_tree(world, tmp_path / "other", tmp_path, **stage)), QUIET).run()
    for one, two in zip(_events(uninterrupted, "step"), _events(other, "step"), strict=True):
        for name in ("loss", "kl", "rewards/margins", "grad_norm"):
            assert one[f"train/{name}"] == pytest.approx(two[f"train/{name}"], rel=1e-3, abs=1e-5), name


@pytest.mark.slow
def test_two_processes_have_the_kto_losses_and_the_kl_estimate_of_one_process(world: Path, tmp_path: Path) -> None:
    stage = {"batch": {"micro_batch_size": 1, "gradient_accumulation_steps": 5}, "duration": "5 steps"}
    one, two = (_kto_tree(world, tmp_path / name, tmp_path, **stage) for name in ("one", "two"))
    Pipeline(recipe_from_dict(one), QUIET).run()
    run_ranks(2, run_recipe, two)
    runs = [tmp_path / name / "tiny" for name in ("one", "two")]
    assert_same_losses(*runs, ("dpo",))
    for alone, shared in zip(*(_events(run, "step")[1:] for run in runs), strict=True):  # before, no reward varies
        for name in ("kl", "rewards/chosen", "rewards/margins", "length_correlation"):
            assert alone[f"train/{name}"] == pytest.approx(shared[f"train/{name}"], rel=1e-3, abs=1e-5), name


def test_a_batch_that_cannot_hold_both_labels_is_refused_with_the_size_that_can(world: Path, tmp_path: Path) -> None:
    tree = _kto_tree(world, tmp_path / "out", tmp_path, batch={"micro_batch_size": 1})
    file = Path(tree["stages"]["dpo"]["data"]["train"])
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    with pytest.raises(FledgeError, match="updates would read answers of one label only") as caught:
        dry_run(recipe_from_dict(tree), QUIET)
    assert caught.value.where == "stages.dpo.batch" and "packed rows" in (caught.value.hint or "")
    file.write_text("".join(json.dumps({**row, "label": True}) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(FledgeError, match="answers are labelled desirable: KTO needs both labels"):
        dry_run(recipe_from_dict(tree), QUIET)


def test_a_table_of_another_model_stops_the_stage_before_its_first_step(world: Path, tmp_path: Path) -> None:
    """The table of a run is put under the fingerprint of another run, which begins with other weights."""
    runs = [Pipeline(recipe_from_dict(_tree(world, tmp_path / str(seed), loss_type="sigmoid")), QUIET).run() for seed in (1, 2)]
    file = runs[1] / "dpo" / "reference.training.safetensors"
    with safe_open(file, framework="pt") as table:
        metadata, values = table.metadata(), table.get_tensor("log_probabilities")
    save_file({"log_probabilities": values - torch.tensor([[0.0, 3.0]])}, file, metadata=metadata)
    for name in ("checkpoints", "events.jsonl", "eval", "result.json"):
        path = runs[1] / "dpo" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FledgeError, match="the reference is not the model that the stage starts from") as caught:
        Pipeline(recipe_from_dict(_tree(world, tmp_path / "2", loss_type="sigmoid")), QUIET).run(resume=True)
    assert "has to be 0.6931 and is" in caught.value.what and "remove reference" in (caught.value.hint or "")


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
