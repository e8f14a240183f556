"""The recipes of the tasks: they load, and train on what `fledge data make` writes."""

from pathlib import Path

import pytest

from fledge.recipe import load_recipe
from fledge.tasks import TASKS
from tests.support import markdown

SETTINGS = {"vehicle": (256, "5 epochs", 2e-4), "columns": (512, "8 epochs", 1e-4)}


@pytest.mark.parametrize("name", TASKS)
def test_the_recipe_of_a_task_has_its_settings_and_its_files(name: str) -> None:
    file = markdown.ROOT / "recipes" / f"lora-{name}.yaml"
    stage = load_recipe([str(file)]).stages["sft"]
    train, validation = stage.data.train, stage.data.validation
    assert (stage.data.max_seq_len, str(stage.duration), stage.optimizer.learning_rate) == SETTINGS[name]
    assert Path(train[0].path or "") == Path(name) / "train.jsonl"
    assert not isinstance(validation, float) and Path(validation[0].path or "") == Path(name) / "validation.jsonl"
    assert f"fledge data make {name} --out {name}" in file.read_text(encoding="utf-8")
