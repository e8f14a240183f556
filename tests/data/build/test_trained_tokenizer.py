"""A tokenizer is trained on the collected rows of all stages, also after an interruption."""

from pathlib import Path

import pytest

from fledge.errors import FledgeError
from fledge.recipe import Source
from tests.support.documents import documents, ignore_line, pretraining_recipe
from tests.support.sources import jsonl


def test_an_interrupted_run_with_a_tokenizer_to_train_can_be_started_again(tmp_path: Path) -> None:
    from fledge.prepare import Preparation

    file = jsonl(tmp_path / "a.jsonl", documents(40))
    recipe = pretraining_recipe(file)
    recipe = recipe.model_copy(update={"stages": {**recipe.stages, "y": recipe.stages["x"]}})
    first = Preparation(recipe, ignore_line, lambda name: tmp_path / name)
    fingerprint = first.stage_data("x", first.tokenizer()).train.fingerprint()  # here it ends; the tokenizer was not saved
    again = Preparation(recipe, ignore_line, lambda name: tmp_path / name)
    assert again.stage_data("x", again.tokenizer()).train.fingerprint() == fingerprint


def test_a_tokenizer_is_trained_on_the_rows_of_all_stages_after_they_are_collected(tmp_path: Path) -> None:
    from fledge.prepare import Preparation

    one, two = (
        jsonl(tmp_path / "a.jsonl", documents(40)),
        jsonl(tmp_path / "b.jsonl", [{"text": "zebra quartz " * n} for n in range(9, 49)]),
    )
    recipe = pretraining_recipe(one)
    other = recipe.stages["x"].model_copy(
        update={"data": recipe.stages["x"].data.model_copy(update={"train": [Source(path=str(two))]})}
    )
    recipe = recipe.model_copy(update={"stages": {"x": recipe.stages["x"], "y": other}})
    lines: list[str] = []
    preparation = Preparation(recipe, lines.append)
    two.rename(tmp_path / "hidden.jsonl")
    assert preparation.load_tokenizer() is None  # no row is read for that
    with pytest.raises(FledgeError, match="there is no file"):
        preparation.tokenizer()
    assert lines == []  # nothing was trained before all rows were there
    (tmp_path / "hidden.jsonl").rename(two)
    tokenizer = preparation.tokenizer()
    assert lines[0].startswith("training a tokenizer")
    of_one_stage = preparation.train_tokenizer([preparation.collect_rows("x")])
    assert len(tokenizer.encode(" zebra quartz")) < len(of_one_stage.encode(" zebra quartz"))
