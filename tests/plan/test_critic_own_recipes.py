"""The recipes of the repository, and that of the quickstart, are good: on data of their shape, the critic is silent."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fledge.quickstart.budget import Budget
from fledge.quickstart.recipe import make_recipe
from fledge.recipe import recipe_from_dict
from fledge.tasks.builder import make
from fledge.world import Sizes, build
from tests.plan.critic_data import Critic, changed, save_model
from tests.support.markdown import ROOT

WORLD, TASKS = "world", ("columns", "vehicle")
MODEL = {"model.path": "model"}


def _replaced(value: Any) -> Any:
    """A part of a recipe whose world is the small one."""
    if isinstance(value, dict):
        return {key: _replaced(item) for key, item in value.items()}
    return value.replace("runs/quickstart/world", WORLD) if isinstance(value, str) else value


PUBLIC = {  # of the real data, which is not in the repository: files of the same kinds
    "stages.pretrain.data.train": ["world/pretrain.jsonl"],
    "stages.sft.data.train": {"path": "world/sft.jsonl", "repeat": 2},
    "stages.dpo.data.train": "world/preference.jsonl",
}
CHANGES: dict[str, dict[str, Any]] = {  # what stands for data and models that are not at hand
    "world.yaml": {},
    "real-data.yaml": PUBLIC,
    "lora-columns.yaml": MODEL,
    "lora-vehicle.yaml": MODEL,
    "grpo-quickstart.yaml": MODEL,
    "reward-quickstart.yaml": MODEL,
}
LAID_OVER = {"minimind-tokenizer.yaml"}  # no recipe by itself


@pytest.fixture(scope="module")
def critic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Critic]:
    """A critic in a folder with a small world, small tasks, and a model that knows their texts."""
    folder, before = tmp_path_factory.mktemp("own"), Path.cwd()
    os.chdir(folder)
    build(7, Path(WORLD), Sizes(pretrain=2400, sft=3700, preference=1100, validation=60, questions=20))
    for task in TASKS:
        make(task, Path(task), 7, 400)
    rows = [line for file in Path().glob("*/*.jsonl") for line in file.read_text(encoding="utf-8").splitlines()]
    save_model(Path("model"), rows[::4], 1500, width=256)
    yield Critic()
    os.chdir(before)


@pytest.mark.parametrize("name", CHANGES)
def test_a_recipe_of_the_repository_is_silent(critic: Critic, name: str) -> None:
    tree = yaml.safe_load((ROOT / "recipes" / name).read_text(encoding="utf-8"))
    found = critic.findings(recipe_from_dict(changed(_replaced(tree), CHANGES[name])))
    assert found == [], [(one.where, one.message) for one in found]


def test_every_recipe_of_the_repository_is_looked_at() -> None:
    assert {file.name for file in (ROOT / "recipes").glob("*.yaml")} == {*CHANGES, *LAID_OVER}


def test_the_recipe_of_the_quickstart_is_silent(critic: Critic) -> None:
    """For as many rows as the world here has."""
    budget = Budget(minutes=1, rows_per_second=8)
    recipe = make_recipe(Path(WORLD), "quickstart", "runs", 42, budget)
    found = critic.findings(recipe)
    assert found == [], [(one.where, one.message) for one in found]
