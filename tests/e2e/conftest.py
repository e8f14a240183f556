"""Finished runs, shared by the tests that only read them: a tiny one of all stages, and a reward model."""

from pathlib import Path

import pytest

from fledge.pipeline import Pipeline
from fledge.run import Console
from tests.support import small_runs, tiny_run
from tests.support.reward_runs import run, tree


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small generated world."""
    folder = tmp_path_factory.mktemp("data") / "world"
    tiny_run.tree(folder, folder)
    return folder


@pytest.fixture(scope="session")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a whole run: pretrain, sft, dpo."""
    return Pipeline(tiny_run.recipe(world, tmp_path_factory.mktemp("runs")), Console(quiet=True)).run()


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of rows, with a link to a model that knows a half of them."""
    folder = tmp_path_factory.mktemp("reward start")
    (folder / "model").symlink_to(small_runs.start_model(folder))
    return folder


@pytest.fixture(scope="session")
def trained(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned that one answer is better than others."""
    return run(tree(start, tmp_path_factory.mktemp("trained"), duration="12 steps", center_rewards_coefficient=0.01))
