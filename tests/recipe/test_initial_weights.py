"""Which weights a stage starts from: its own directory, else the stage before it, else the recipe's model, else nothing."""

from pathlib import Path
from typing import Any

import pytest

from fledge.recipe import Recipe, recipe_from_dict
from fledge.recipe.initial_weights import InitialWeights, first_initial_weights, initial_weights

DATA = {"data": {"train": "x.jsonl", "max_seq_len": 64}}


def _recipe(model: dict[str, Any] | None = None, **init_from: str | None) -> Recipe:
    stages = {name: {**DATA, **({"init_from": path} if path else {})} for name, path in init_from.items()}
    return recipe_from_dict({"model": model or {}, "stages": stages})


def _weights(directory: str | None = None, previous: str | None = None, config: str | None = None) -> InitialWeights:
    return InitialWeights(
        directory=None if directory is None else Path(directory),
        previous_stage=previous,
        config_directory=None if config is None else Path(config),
    )


def test_a_run_from_nothing_begins_with_fresh_weights_and_each_stage_goes_on_with_the_one_before() -> None:
    recipe = _recipe(pretrain=None, sft=None, dpo=None)
    assert initial_weights(recipe, "pretrain") == _weights() == first_initial_weights(recipe)
    assert initial_weights(recipe, "sft") == _weights(previous="pretrain")
    assert initial_weights(recipe, "dpo") == _weights(previous="sft")


def test_the_recipes_model_directory_is_where_the_first_stage_starts_and_where_all_sizes_come_from() -> None:
    recipe = _recipe({"path": "base"}, sft=None, dpo=None)
    assert initial_weights(recipe, "sft") == _weights("base", config="base") == first_initial_weights(recipe)
    assert initial_weights(recipe, "dpo") == _weights(previous="sft", config="base")


def test_a_stage_with_a_directory_of_its_own_starts_there_and_the_next_one_has_its_sizes() -> None:
    recipe = _recipe({"path": "base"}, pretrain=None, sft="chat", dpo=None)
    assert initial_weights(recipe, "pretrain") == _weights("base", config="base")
    assert initial_weights(recipe, "sft") == _weights("chat", config="chat")
    assert initial_weights(recipe, "dpo") == _weights(previous="sft", config="chat")


def test_the_first_stages_directory_goes_before_the_recipes_model() -> None:
    recipe = _recipe({"path": "base"}, sft="chat", dpo=None)
    assert first_initial_weights(recipe) == _weights("chat", config="chat")


def test_the_directory_to_load_is_that_of_the_previous_stages_model_only_where_there_is_one() -> None:
    def model_of_stage(name: str) -> Path:
        assert name == "pretrain"
        return Path("run/pretrain/checkpoints/last/model")

    assert _weights().resolve(model_of_stage) is None
    assert _weights("base", config="base").resolve(model_of_stage) == Path("base")
    assert _weights(previous="pretrain").resolve(model_of_stage) == Path("run/pretrain/checkpoints/last/model")


def test_a_stage_that_the_recipe_does_not_have_is_an_error() -> None:
    with pytest.raises(KeyError):
        initial_weights(_recipe(sft=None), "dpo")
