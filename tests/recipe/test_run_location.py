"""The recipe.yaml of a moved or renamed run means the run where it lies."""

from pathlib import Path

import pytest
import yaml

from fledge.recipe import load_recipe

TREE = {"name": "first", "stages": {"sft": {"data": {"train": "rows.jsonl"}}}}


def _run(folder: Path, **changes: object) -> Path:
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "environment.json").write_text("{}")
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({**TREE, "output": str(folder.parent), **changes}))
    return file


def test_a_run_in_its_place_keeps_its_name_and_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe([str(_run(tmp_path / "runs" / "first", output="runs"))])
    assert (recipe.name, recipe.output) == ("first", "runs")


def test_a_moved_and_renamed_run_is_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "runs" / "first" / "sft" / "model"
    _run(tmp_path / "runs" / "first", stages={**TREE["stages"], "dpo": {"init_from": str(model), "data": {"train": "pairs"}}})
    model.mkdir(parents=True)
    moved = tmp_path / "elsewhere" / "second"
    moved.parent.mkdir()
    (tmp_path / "runs" / "first").rename(moved)
    monkeypatch.chdir(moved)
    recipe = load_recipe(["recipe.yaml"])
    assert (recipe.name, Path(recipe.output)) == ("second", moved.parent)
    assert recipe.stages["dpo"].init_from == str(moved / "sft" / "model")
    named = load_recipe([str(moved / "recipe.yaml")], [("name", "third")])
    assert (named.name, Path(named.output)) == ("third", moved.parent)


def test_a_recipe_beside_other_files_is_an_ordinary_one(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(TREE))
    recipe = load_recipe([str(tmp_path / "recipe.yaml")])
    assert (recipe.name, recipe.output) == ("first", "runs")
