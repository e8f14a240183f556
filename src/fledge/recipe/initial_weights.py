"""Where the weights of a stage's model come from before its first step."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fledge.recipe.schema import Recipe


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """The source of a stage's start weights: a model directory that the recipe names, or else the model of the previous stage,
    or, where both are None, fresh weights from the seed of the run.

    `config_directory` is the model directory whose config.json gives the sizes of the model; None: the recipe's `model` does.
    """

    directory: Path | None
    previous_stage: str | None
    config_directory: Path | None

    def resolve(self, model_of_stage: Callable[[str], Path]) -> Path | None:
        """The model directory to load; None for fresh weights. `model_of_stage` gives the final model of a finished stage."""
        return self.directory if self.previous_stage is None else model_of_stage(self.previous_stage)


def initial_weights(recipe: Recipe, name: str) -> InitialWeights:
    """Where the stage called `name` starts from: its `init_from`, else the stage before it, else `model.path`, else nothing."""
    previous_stage, directory = None, recipe.model.path
    config_directory = directory
    for stage_name, stage in recipe.stages.items():
        if stage.init_from:
            previous_stage, directory, config_directory = None, stage.init_from, stage.init_from
        if stage_name == name:
            break
        previous_stage, directory = stage_name, None
    return InitialWeights(
        directory=Path(directory) if directory else None,
        previous_stage=previous_stage,
        config_directory=Path(config_directory) if config_directory else None,
    )


def first_initial_weights(recipe: Recipe) -> InitialWeights:
    """Where the first stage starts from; its model directory, if it has one, also brings the tokenizer of the run."""
    return initial_weights(recipe, next(iter(recipe.stages)))
