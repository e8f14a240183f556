"""One finished tiny run, shared by the tests that only read it."""

from pathlib import Path

import pytest

from fledge.pipeline import Pipeline
from fledge.run import Console
from tests.support import tiny_run


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
