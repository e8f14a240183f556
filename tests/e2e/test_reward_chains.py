"""A reward model between other stages: adapters go on into it, and several processes train on its rewards."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fledge import load_reward_model
from fledge.distributed.context import DistributedContext
from fledge.errors import FledgeError
from fledge.evaluate.reward_models import reward_model_costs
from fledge.forecast.planning import dry_run
from fledge.pipeline import Pipeline
from fledge.plan.memory import memory_inputs
from fledge.prepare import Preparation
from fledge.recipe import recipe_from_dict
from fledge.run import Console
from fledge.tokenizer import load_tokenizer
from tests.support.ranks import run_ranks
from tests.support.reward_runs import chain, conversation, model_of, run, tree
from tests.support.run_directory import events

ADAPTED = {"adapter": {"r": 2}, "optimizer": {"learning_rate": 1e-2}}


def after_sft(start: Path, output: Path, reward: dict[str, Any], **sft: Any) -> dict[str, Any]:
    """A recipe whose reward stage starts from an sft stage with an adapter."""
    values = tree(start, output, duration="2 steps", **reward)
    values["model"] = {"path": str(start / "model")}
    values["stages"]["reward"].pop("init_from")
    stage = {"kind": "sft", "data": {"train": str(start / "known.jsonl"), "validation": 0, "max_seq_len": 64}}
    values["stages"] = {"sft": {**stage, "duration": "2 steps", **ADAPTED, **sft}, **values["stages"]}
    return values


def test_the_adapter_of_sft_goes_on_in_the_reward_stage(start: Path, tmp_path: Path) -> None:
    folder = run(after_sft(start, tmp_path, {**ADAPTED, "optimizer": {"learning_rate": 1e-9}}))
    before, after = (load_file(model_of(folder, stage) / "adapter_model.safetensors") for stage in ("sft", "reward"))
    assert set(after) - set(before) == {"base_model.model.score.weight"} and set(before) < set(after)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-6, rtol=0)
    bases = [json.loads((model_of(folder, stage) / "fledge_base.json").read_text()) for stage in ("sft", "reward")]
    assert bases[0]["weights_hash"] == bases[1]["weights_hash"]
    assert len(load_reward_model(folder / "reward").score([conversation("a"), conversation("b")])) == 2


def test_a_reward_stage_without_an_adapter_trains_the_merged_weights_of_sft(start: Path, tmp_path: Path) -> None:
    folder = run(after_sft(start, tmp_path, {}))
    assert (model_of(folder) / "model.safetensors").exists() and not (model_of(folder) / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("sft", "reward", "message"),
    [
        ({"r": 2}, {"r": 4}, "stages.reward.adapter differs from stages.sft.adapter"),
        ({"peft_type": "PREFIX_TUNING"}, None, "stages.reward has no adapter, and the prefix of stages.sft cannot be merged"),
        ({"peft_type": "PREFIX_TUNING"}, {"r": 4}, "another adapter, and .* write stages.reward.init_from"),
        (None, {"modules_to_save": ["lm_head"]}, "a reward model has no lm_head"),
    ],
)
def test_adapters_that_cannot_follow_each_other_are_refused_before_anything_is_trained(
    sft: dict[str, Any] | None, reward: dict[str, Any] | None, message: str, start: Path, tmp_path: Path
) -> None:
    with pytest.raises(FledgeError, match=message):
        recipe_from_dict(after_sft(start, tmp_path, {"adapter": reward}, adapter=sft))


def test_an_adapter_is_scored_at_the_token_that_it_was_trained_at(start: Path, tmp_path: Path) -> None:
    """Its base names another padding token than the tokenizer that the adapter was trained with."""
    base = tmp_path / "base"
    shutil.copytree(start / "model", base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "pad_token_id": load_tokenizer(base).pad + 1}))
    folder = run(tree(start, tmp_path, **ADAPTED, duration="1 steps", init_from=str(base)))
    model = load_reward_model(folder)
    assert model.pad == model.tokenizer.pad


def _train_and_linger(ranks: DistributedContext, values: dict[str, Any]) -> str:
    """Run a recipe whose main process is later done with each stage than the others."""
    return str(Pipeline(recipe_from_dict(values), Console(quiet=True), lambda *stage: time.sleep(1.5), ranks=ranks).run())


def test_several_processes_train_on_the_rewards_of_a_stage_that_they_have_just_trained(start: Path, tmp_path: Path) -> None:
    values = chain(start, tmp_path, duration="1 steps")
    values["stages"]["reward"]["duration"] = "1 steps"
    folders = run_ranks(2, _train_and_linger, values)
    assert len(events(Path(folders[0]), "grpo", "step")) == 1


@pytest.mark.parametrize("named", ["reward", "a directory"])
def test_a_reward_model_with_too_few_positions_is_refused_before_anything_is_trained(
    named: str, start: Path, trained: Path, tmp_path: Path
) -> None:
    values = chain(start, tmp_path, evaluation={"every_steps": 2, "generated_answers": None}, metric_for_best_model="loss")
    grpo = values["stages"]["grpo"]
    grpo["rollout"]["max_new_tokens"] = 50
    if named != "reward":
        grpo["rewards"] = [{"model": str(trained), "name": "judge"}]
    with pytest.raises(FledgeError, match="can have 65 tokens, and the reward model has 64 positions") as caught:
        dry_run(recipe_from_dict(values), Console(quiet=True))
    assert caught.value.where == f"stages.grpo.rewards.{'model' if named == 'reward' else 'judge'}.model"
    assert "data.max_seq_len: 63" in (caught.value.hint or "")
    grpo["data"]["max_seq_len"] = 63
    assert "rewards" in dry_run(recipe_from_dict(values), Console(quiet=True), full=True)


def test_the_estimate_of_memory_counts_the_reward_models(start: Path, trained: Path, tmp_path: Path) -> None:
    recipe = recipe_from_dict(chain(start, tmp_path, rewards=[{"model": "reward"}, {"model": str(trained), "name": "judge"}]))
    preparation = Preparation(recipe, lambda line: None)
    tokenizer = preparation.tokenizer()
    costs = reward_model_costs(recipe, "grpo", lambda name: preparation.model_cost(name, tokenizer))
    parameters = sum(tensor.numel() for tensor in load_file(model_of(trained) / "model.safetensors").values())
    assert {label: cost.parameters().total for label, cost in costs.items()} == {"model": parameters, "judge": parameters}
    train, cost = preparation.stage_data("grpo", tokenizer).train, preparation.model_cost("grpo", tokenizer)
    alone, beside = (memory_inputs(recipe.stages["grpo"], cost, train, "cpu", more) for more in (0.0, 8.0 * parameters))
    assert beside.reward_models - alone.reward_models == 8.0 * parameters


def test_a_reward_by_a_stage_that_comes_later_is_refused_with_what_to_do(start: Path, tmp_path: Path) -> None:
    values = chain(start, tmp_path)
    values["stages"] = dict(reversed(values["stages"].items()))
    with pytest.raises(FledgeError, match="reward is a stage of this recipe, and none that trains a reward model before"):
        dry_run(recipe_from_dict(values), Console(quiet=True))
