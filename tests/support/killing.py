"""A process that dies in the middle of training."""

from typing import Any

import pytest

from fledge.pipeline import Pipeline
from fledge.recipe import Recipe
from fledge.run import Console
from fledge.training.train_step import TrainStep


class Killed(BaseException):
    """The process is gone: no handler runs."""


def run_until_killed(
    recipe: Recipe, at: int, monkeypatch: pytest.MonkeyPatch, owner: Any = TrainStep, name: str = "_step"
) -> None:
    """Run a recipe until it dies just before the at-th call of a function: by default that of the updates, which comes after
    the gradients and before the optimizers, counted over all stages."""
    count, act = 0, getattr(owner, name)

    def dying(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == at:
            raise Killed
        return act(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, name, dying)
        Pipeline(recipe, Console(quiet=True)).run()
