"""Stages that train an adapter: exact resume, small checkpoints, one adapter through several stages, and merging."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import fledge
from fledge.errors import FledgeError
from fledge.model.adapters import merge_adapter, trained_parameters
from fledge.model.loading import load_model
from fledge.pipeline import Pipeline
from fledge.recipe import Recipe, recipe_from_dict
from fledge.run import Console, resolve_model_path
from fledge.training.start_weights import weights_fingerprint
from tests.support import tiny_run
from tests.support.killing import run_until_killed
from tests.support.run_directory import events, final_results

QUIET = Console(quiet=True)
ADAPTER = {"r": 4, "lora_dropout": 0.1}
PREFIX = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4}


def _recipe(world: Path, output: Path, base: Path, adapters: dict[str, Any], **changes: Any) -> Recipe:
    """SFT and then DPO of the model in `base`, with these adapters."""
    tree = tiny_run.tree(world, output, model={"path": str(base)}, **changes)
    tree["tokenizer"] = changes.get("tokenizer", {})
    tree["stages"] = {name: {**tree["stages"][name], "adapter": adapters[name]} for name in ("sft", "dpo")}
    return recipe_from_dict(tree)


@pytest.fixture(scope="session")
def base(finished: Path) -> Path:
    """A pretrained model."""
    return resolve_model_path(str(finished / "pretrain"))


def _without_dropout(model: Path, folder: Path) -> Path:
    """A copy of a model directory that transformers computes as fledge does."""
    shutil.copytree(model, folder)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "fledge": {}}))
    return folder


@pytest.fixture(scope="session")
def adapted(world: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose two stages train one adapter."""
    recipe = _recipe(world, tmp_path_factory.mktemp("runs"), base, {"sft": ADAPTER, "dpo": ADAPTER})
    return Pipeline(recipe, QUIET).run()


@pytest.mark.parametrize("at", [2, 5, 10, 13])
def test_a_killed_run_resumes_bit_for_bit(
    at: int, world: Path, base: Path, adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _recipe(world, tmp_path, base, {"sft": ADAPTER, "dpo": ADAPTER})
    run_until_killed(recipe, at, monkeypatch)
    stages = ("sft", "dpo")
    assert final_results(Pipeline(recipe, QUIET).run(resume=True), stages) == final_results(adapted, stages)


@pytest.mark.parametrize(("at", "implementation"), [(5, "auto"), (13, "auto"), (5, "transformers")])
def test_a_killed_run_that_trains_a_prefix_resumes_bit_for_bit(
    at: int, implementation: str, world: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = {"sft": PREFIX, "dpo": PREFIX}
    base = _without_dropout(base, tmp_path / "base")

    def recipe(folder: Path) -> Recipe:
        tree = _recipe(world, folder, base, both).model_dump(mode="json")
        tree["model"]["implementation"] = implementation
        tree["runtime"]["attention"] = "sdpa"
        return recipe_from_dict(tree)

    whole = Pipeline(recipe(tmp_path / "whole"), QUIET).run()
    run_until_killed(recipe(tmp_path / "killed"), at, monkeypatch)
    resumed = Pipeline(recipe(tmp_path / "killed"), QUIET).run(resume=True)
    assert final_results(resumed, ("sft", "dpo")) == final_results(whole, ("sft", "dpo"))
    before, after = (load_model(resolve_model_path(str(whole / name))).state_dict() for name in ("sft", "dpo"))
    moved = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert moved == ["prefix.prompt_embeddings"] and before[moved[0]].shape[0] == 4
    assert isinstance(fledge.load(str(whole)).chat("你是谁？", max_new_tokens=4), str)


@pytest.mark.parametrize("at", [2, 13])
def test_with_a_live_reference_a_run_learns_the_same_and_resumes_bit_for_bit(
    at: int, world: Path, base: Path, adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recipe(folder: Path) -> Recipe:
        tree = _recipe(world, folder, base, {"sft": ADAPTER, "dpo": ADAPTER}).model_dump(mode="json")
        tree["stages"]["dpo"]["precompute_ref_log_probs"] = False
        return recipe_from_dict(tree)

    whole = Pipeline(recipe(tmp_path / "whole"), QUIET).run()
    run_until_killed(recipe(tmp_path / "killed"), at, monkeypatch)
    resumed = Pipeline(recipe(tmp_path / "killed"), QUIET).run(resume=True)
    assert final_results(resumed, ("sft", "dpo")) == final_results(whole, ("sft", "dpo"))
    steps = [[step["train/loss"] for step in events(run, "dpo", "step")] for run in (whole, adapted)]
    assert steps[0] and steps[0] == pytest.approx(steps[1], abs=1e-5)


def test_checkpoints_hold_the_adapter_and_no_other_weight_changes(base: Path, adapted: Path) -> None:
    folders = sorted(adapted.glob("*/checkpoints/step-*/model"))
    assert len(folders) >= 4
    for folder in folders:
        assert [file.name for file in folder.glob("*.safetensors")] == ["adapter_model.safetensors"]
        loaded, start = load_model(folder), load_model(base).state_dict()
        assert all(torch.equal(loaded.state_dict()[name], value) for name, value in start.items())
    assert sum(file.stat().st_size for file in folder.iterdir()) < (base / "model.safetensors").stat().st_size


def test_the_numbers_of_trained_and_of_all_parameters_are_stored(base: Path, adapted: Path) -> None:
    model = load_model(resolve_model_path(str(adapted / "sft")))
    for stage in ("sft", "dpo"):
        result = json.loads((adapted / stage / "result.json").read_text())
        assert (result["trained_parameters"], result["parameters"]) == trained_parameters(model)
    assert 0 < result["trained_parameters"] < result["parameters"] / 4


def test_the_adapter_of_sft_goes_on_in_dpo_and_answers(adapted: Path) -> None:
    moved = [load_model(resolve_model_path(str(adapted / name))).state_dict() for name in ("sft", "dpo")]
    names = [name for name in moved[0] if name.endswith("lora_B")]
    assert len(names) == 14 and all(not torch.equal(moved[0][name], moved[1][name]) for name in names)
    assert isinstance(fledge.load(str(adapted)).chat("你是谁？", max_new_tokens=4), str)


def test_a_stage_without_an_adapter_trains_the_merged_weights(world: Path, base: Path, adapted: Path, tmp_path: Path) -> None:
    run = Pipeline(_recipe(world, tmp_path, base, {"sft": ADAPTER, "dpo": None}), QUIET).run()
    merged = load_model(resolve_model_path(str(run / "sft")))
    assert merged.adapter is not None
    merge_adapter(merged)
    assert json.loads((run / "dpo" / "start.json").read_text())["weights"] == weights_fingerprint(merged)
    assert load_model(resolve_model_path(str(run / "dpo"))).adapter is None


def test_recipes_that_cannot_work_are_refused(world: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(FledgeError, match=r"stages.dpo.adapter differs from stages.sft.adapter"):
        _recipe(world, tmp_path, base, {"sft": ADAPTER, "dpo": {"r": 2}})
    with pytest.raises(FledgeError, match=r"the prefix of stages.sft cannot be merged"):
        _recipe(world, tmp_path, base, {"sft": PREFIX, "dpo": None})
    tree = tiny_run.tree(world, tmp_path)
    tree["stages"]["pretrain"]["adapter"] = ADAPTER
    with pytest.raises(FledgeError, match=r"stages.pretrain.adapter needs a model to adapt"):
        recipe_from_dict(tree)
    tree = _recipe(world, tmp_path, base, {"sft": ADAPTER, "dpo": None}).model_dump(mode="json")
    tree["stages"]["dpo"]["quantization"] = {}
    with pytest.raises(FledgeError, match="weights in 4 bits cannot be trained"):
        recipe_from_dict(tree)
    with pytest.raises(FledgeError, match="cannot be sharded"):
        _recipe(world, tmp_path, base, {"sft": ADAPTER, "dpo": ADAPTER}, runtime={"parallelism": "fsdp"})


def test_another_adapter_and_missing_rows_are_refused(world: Path, base: Path, adapted: Path, tmp_path: Path) -> None:
    last = resolve_model_path(str(adapted / "sft"))
    with pytest.raises(FledgeError, match="has an adapter with other settings"):
        Pipeline(_recipe(world, tmp_path, last, {"sft": {"r": 2}, "dpo": None}), QUIET).run()
    words = {"tokenizer": {"special_tokens": ["<think>"]}}
    with pytest.raises(FledgeError, match="an adapter cannot add rows"):
        Pipeline(_recipe(world, tmp_path, base, {"sft": ADAPTER, "dpo": None}, name="rows", **words), QUIET).run()


@pytest.mark.parametrize("at", [5, 13])
def test_a_killed_run_beside_weights_in_4_bits_resumes_bit_for_bit(
    at: int, world: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")

    def recipe(folder: Path) -> Recipe:
        tree = _recipe(world, folder, base, {"sft": ADAPTER, "dpo": ADAPTER}).model_dump(mode="json")
        for stage in tree["stages"].values():
            stage["quantization"] = {"quant_type": "nf4"}
        return recipe_from_dict(tree)

    whole = Pipeline(recipe(tmp_path / "whole"), QUIET).run()
    run_until_killed(recipe(tmp_path / "killed"), at, monkeypatch)
    resumed = Pipeline(recipe(tmp_path / "killed"), QUIET).run(resume=True)
    assert final_results(resumed, ("sft", "dpo")) == final_results(whole, ("sft", "dpo"))
    for stage in ("sft", "dpo"):
        result = json.loads((whole / stage / "result.json").read_text())
        loaded = load_model(resolve_model_path(str(whole / stage)))  # beside the whole weights of the base
        assert (result["trained_parameters"], result["parameters"]) == trained_parameters(loaded)
        losses = [step["train/loss"] for step in events(whole, stage, "step")]
        assert losses[-1] < losses[0]
    assert isinstance(fledge.load(str(whole)).chat("你是谁？", max_new_tokens=4), str)
