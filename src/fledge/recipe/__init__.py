"""The recipe: one frozen configuration from presets, YAML files and dotted overrides."""

from fledge.recipe.diff import differences, to_yaml
from fledge.recipe.load import load_recipe, recipe_from_dict
from fledge.recipe.schema import (
    DataConfig,
    ModelConfig,
    MoeConfig,
    PreferenceStage,
    PretrainStage,
    Recipe,
    SftStage,
    Source,
    Stage,
    TokenizerConfig,
)

__all__ = [
    "DataConfig",
    "ModelConfig",
    "MoeConfig",
    "PreferenceStage",
    "PretrainStage",
    "Recipe",
    "SftStage",
    "Source",
    "Stage",
    "TokenizerConfig",
    "differences",
    "load_recipe",
    "recipe_from_dict",
    "to_yaml",
]
