"""The earlier stages of a recipe whose results a stage needs: to start from, and to judge its answers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fledge.recipe.initial_weights import initial_weights
from fledge.recipe.schema import Recipe
from fledge.recipe.sections.policy import PolicySettings


def reward_stages_before(recipe: Recipe, name: str) -> list[str]:
    """The stages before the one of this name that train a reward model."""
    names = list(recipe.stages)
    return [one for one in names[: names.index(name)] if recipe.stages[one].trains_reward_model]


def judges_of(recipe: Recipe, name: str) -> list[str]:
    """The stages before the one of this name whose reward models judge its answers."""
    stage = recipe.stages[name]
    named = {one.model for one in stage.rewards} if isinstance(stage, PolicySettings) else set()
    return [one for one in reward_stages_before(recipe, name) if one in named]


def needed_stages(recipe: Recipe, name: str) -> list[str]:
    """The stages before the one of this name that it cannot be trained without: the one whose model it starts from, and those
    whose models judge its answers."""
    before = initial_weights(recipe, name).previous_stage
    return [*([] if before is None else [before]), *judges_of(recipe, name)]


def name_judges(section: dict[str, Any], models: Mapping[str, Path]) -> None:
    """Name the model directories in the rewards of a stage in place of stages that are left out of its recipe. `section`: of
    the stage, as plain data; `models`: the directory of each such stage."""
    for reward in section.get("rewards", ()):
        if reward["model"] in models:
            reward["model"] = str(models[reward["model"]])
