"""The source of the weights that a stage starts from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fledge.recipe.schema import Recipe


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """The source of a stage's initial weights: a model directory of the recipe, or the model of the previous stage, or, if both
    are None, fresh weights from the seed of the run.

    `config_directory`: the directory whose config.json gives the sizes of the model; None: the recipe's section `model`.
    """

    directory: Path | None
    previous_stage: str | None
    config_directory: Path | None

    @property
    def are_fresh(self) -> bool:
        """Whether the stage starts from fresh weights."""
        return self.directory is None and self.previous_stage is None

    def resolve(self, model_of_stage: Callable[[str], Path]) -> Path | None:
        """The model directory to load, or None for fresh weights. `model_of_stage` returns the final model of a finished
        stage."""
        return self.directory if self.previous_stage is None else model_of_stage(self.previous_stage)


def initial_weights(recipe: Recipe, name: str) -> InitialWeights:
    """The initial weights of a stage: its own `init_from`, else the previous stage; for the first stage `model.path`, else
    fresh ones.

    Raises KeyError if there is no stage of this name.
    """
    init_from = recipe.stages[name].init_from
    before = recipe.stages_before(name)
    previous_stage = before[-1] if before and not init_from else None
    directory = init_from or (None if before else recipe.model.path)
    named = [recipe.model.path or recipe.model.config, *(recipe.stages[stage].init_from for stage in (*before, name))]
    config_directory = next((path for path in reversed(named) if path), None)
    return InitialWeights(
        directory=Path(directory) if directory else None,
        previous_stage=previous_stage,
        config_directory=Path(config_directory) if config_directory else None,
    )


def first_initial_weights(recipe: Recipe) -> InitialWeights:
    """The initial weights of the first stage; its model directory, if any, also provides the tokenizer of the run."""
    return initial_weights(recipe, next(iter(recipe.stages)))
