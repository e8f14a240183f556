"""The recipe: one frozen configuration from presets, YAML files and dotted overrides."""

from typing import TYPE_CHECKING

from fledge.lazy import lazy_names

if TYPE_CHECKING:
    from fledge.recipe.diff import differences, to_yaml
    from fledge.recipe.load import load_recipe, recipe_from_dict
    from fledge.recipe.schema import (
        DataConfig,
        KtoStage,
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

_HOMES = {
    "fledge.recipe.diff": ("differences", "to_yaml"),
    "fledge.recipe.load": ("load_recipe", "recipe_from_dict"),
    "fledge.recipe.schema": (
        "DataConfig", "KtoStage", "ModelConfig", "MoeConfig", "PreferenceStage", "PretrainStage", "Recipe", "SftStage",
        "Source", "Stage", "TokenizerConfig",
    ),
}  # fmt: skip

__all__ = [
    "DataConfig",
    "KtoStage",
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

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
