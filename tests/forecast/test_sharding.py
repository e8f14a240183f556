"""What FSDP cannot divide is refused by the plan as by the run."""

from pathlib import Path
from typing import Any

import pytest

from fledge.errors import FledgeError
from fledge.pipeline import check_sharding
from fledge.prepare import Preparation
from fledge.recipe import load_recipe, recipe_from_dict
from tests.support import tiny_run
from tests.support.command import assert_error, fledge


@pytest.mark.parametrize("optimizer", ["adamw8bit", "adafactor"])
def test_a_plan_refuses_an_optimizer_that_is_not_divided(tmp_path: Path, optimizer: str) -> None:
    recipe = tiny_run.write(tmp_path / "r.yaml", tiny_run.tree(tmp_path / "world", tmp_path))
    changes = [("runtime.parallelism", "fsdp"), ("stages.sft.optimizer.name", optimizer)]
    with pytest.raises(FledgeError, match="cannot be divided among processes") as error:
        check_sharding(load_recipe([str(recipe)], changes))
    assert error.value.where == "stages.sft.optimizer.name"
    check_sharding(load_recipe([str(recipe)], changes[1:]))
    words = [word for key, value in changes for word in (f"--{key}", value)]
    assert_error(fledge("plan", recipe, "--device", "8xA100", *words), "stages.sft.optimizer.name", "cannot be divided")


def test_a_micro_batch_is_chosen_for_what_one_process_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 2}
    tree = tiny_run.tree(tmp_path / "world", tmp_path)
    tree["model"] |= {**sizes, "intermediate_size": 1536}
    tree["runtime"] |= {"parallelism": "fsdp", "memory_budget": "900M"}
    stage = tree["stages"]["pretrain"]
    stage["batch"] = {"tokens_per_step": 8 * stage["data"]["max_seq_len"], "micro_batch_size": "auto"}
    tree["stages"] = {"pretrain": {**stage, "optimizer": {"name": "adamw", "learning_rate": 1e-3}}}
    with pytest.raises(FledgeError, match="not even one row"):
        _micro_batch(tree)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert _micro_batch(tree) >= 1


def _micro_batch(tree: dict[str, Any]) -> int:
    preparation = Preparation(recipe_from_dict(tree), lambda text: None)
    return preparation.prepare("pretrain", preparation.tokenizer()).horizon.micro_batch_size
