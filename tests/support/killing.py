"""Training that is killed in the middle."""

from typing import Any

import pytest

from fledge.pipeline import Pipeline
from fledge.recipe import Recipe
from fledge.run import Console
from fledge.training.train_step import TrainStep


class Killed(BaseException):
    """The end of the process: no handler catches it."""


def run_until_killed(
    recipe: Recipe, at: int, monkeypatch: pytest.MonkeyPatch, owner: Any = TrainStep, name: str = "_step"
) -> None:
    """Run a recipe until it is killed just before the at-th call of a function, counted over all stages.

    The default function is the update of the weights, after the gradients and before the optimizers.
    """
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
