"""`fledge plan --tokens`: the model, the reward models and the findings of a recipe whose data is not at hand."""

from pathlib import Path
from typing import Any

import pytest

from fledge.cli import main
from fledge.forecast.forecast import KnownRecipe, know_recipe
from fledge.model.cost import ModelCost
from fledge.model.hf_config import read_config
from fledge.recipe import Recipe, recipe_from_dict
from fledge.run import Console
from tests.support.decoders import make_decoder

ROWS = {"train": "none.jsonl", "max_seq_len": 64}
GRPO = {"data": ROWS, "rollout": {"max_new_tokens": 14}, "rewards": [{"model": "reward"}]}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model directory without a tokenizer."""
    make_decoder(0, vocab=97, num_hidden_layers=3).save_pretrained(tmp_path / "model", bos=None, eos=[0], pad=0)
    return tmp_path / "model"


def _known(recipe: Recipe, tokens: int = 64_000) -> KnownRecipe:
    return know_recipe(recipe, Console(quiet=True), tokens=dict.fromkeys(recipe.stages, tokens))


def _recipe(stages: dict[str, Any], **more: Any) -> Recipe:
    return recipe_from_dict({"tokenizer": {"vocab_size": 500}, "runtime": {"device": "cpu"}, "stages": stages, **more})


def _costs(recipe: Recipe) -> dict[str, ModelCost]:
    return {name: stage.inputs.cost for name, stage in _known(recipe).stages.items()}


def test_the_model_of_a_configuration_is_planned_with_the_tokenizer_that_will_be_trained(model: Path) -> None:
    costs = _costs(_recipe({"pretrain": {"data": ROWS}, "sft": {"data": ROWS}}, model={"config": str(model)}))
    assert costs["pretrain"] == costs["sft"] == ModelCost(read_config(model)[0], 500)


def test_a_later_stage_is_planned_with_the_model_that_it_names(model: Path) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 96}
    stages = {"pretrain": {"data": ROWS}, "sft": {"data": ROWS, "init_from": str(model)}}
    costs = _costs(_recipe(stages, model=sizes))
    assert costs["pretrain"].config.hidden_size == 64 and costs["sft"] == ModelCost(read_config(model)[0], 500)


def test_a_reward_model_has_no_head_for_tokens_and_takes_memory_where_it_judges() -> None:
    known = _known(_recipe({"sft": {"data": ROWS}, "reward": {"data": ROWS}, "grpo": GRPO}))
    reward, grpo = known.stages["reward"].inputs, known.stages["grpo"].inputs
    assert not reward.cost.has_lm_head and grpo.cost.has_lm_head
    assert grpo.reward_models == 4 * reward.cost.parameters().total and reward.reward_models == 0


def test_what_needs_no_data_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = {
        "pretrain": {"data": ROWS, "optimizer": {"name": "muon", "learning_rate": 10.0}},
        "preference": {"data": ROWS, "duration": "30 epochs", "beta": 5.0},
    }
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0}
    known = _known(_recipe(stages, model={"qk_norm": True, "moe": experts}))
    first, second = ({one.check: one for one in stage.findings} for stage in known.stages.values())
    assert {"large rate", "unbalanced experts"} <= set(first)
    assert "many epochs" not in second  # whether validation data chooses a checkpoint is not known
    assert second["beta"].message.startswith("beta 5 multiplies sums of log-probabilities: ")
    assert any("need the data and are left out" in note for note in known.notes)
    file = tmp_path / "r.yaml"
    file.write_text("stages: {pretrain: {data: {train: none.jsonl}}}\npreset: 26m\n", encoding="utf-8")
    words = ["plan", str(file), "--tokens", "256M", "--device", "T4", "--strict"]
    assert main(words) == 0
    assert main([*words, "--stages.pretrain.optimizer.learning_rate", "10"]) == 2
    assert "learning rate 10 is large for fresh weights" in capsys.readouterr().out
