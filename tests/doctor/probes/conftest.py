"""One tiny run for all tests of probes, and copies of it that may be spoilt."""

import shutil
from pathlib import Path

import pytest

from fledge.pipeline import Pipeline
from fledge.recipe import recipe_from_dict
from fledge.run import Console
from tests.support import tiny_run

NAME = "tiny"


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of pretraining, SFT, DPO and an adapter, with dropout."""
    folder = tmp_path_factory.mktemp("probed")
    values = tiny_run.tree(folder / "world", folder / "runs")
    pairs = values["stages"]["dpo"]["data"]
    values["stages"]["lora"] = {**values["stages"]["sft"], "kind": "sft", "adapter": {"r": 4}, "duration": "4 steps"}
    for name, stage in values["stages"].items():
        stage.setdefault("kind", {"dpo": "preference"}.get(name, name))
    pairs["max_seq_len"] = 64
    return Pipeline(recipe_from_dict(values), Console(quiet=True)).run()


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, whose files a test may change."""
    return Path(shutil.copytree(run, tmp_path / NAME, symlinks=True))
