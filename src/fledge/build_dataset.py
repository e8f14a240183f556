"""`fledge data build`: the data of all stages of a recipe, built once into a directory to train from."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from fledge.data import StageDataset, is_complete
from fledge.data.build.directory import check_unchanged, drop_items
from fledge.data.build.executors import Executor
from fledge.data.build.plan import plan_build
from fledge.errors import FledgeError
from fledge.prepare import Preparation
from fledge.recipe import Recipe, differences, load_recipe, to_yaml
from fledge.run import check_layout, exclusive_lock, write_text
from fledge.tokenizer.saving import save_tokenizer


def build(recipe: Recipe, out: Path, executor: Executor | None, log: Callable[[str], None]) -> dict[str, StageDataset]:
    """Build the data of all stages into `out`, to train from with `built_dataset: out`. An interrupted build is continued.

    FledgeError where `out` holds complete data of another recipe, or of files that have changed since.
    """
    recipe = recipe.model_copy(update={"built_dataset": None})
    _check_output_folder(out)
    with exclusive_lock(out):
        preparation = Preparation(recipe, log, lambda name: out / name, resuming=True, executor=executor)
        complete = [name for name in recipe.stages if is_complete(out / name)]
        plans = {name: plan_build(stage, name, preparation.seed(name)) for name, stage in recipe.stages.items()}
        if complete:
            _check_same_recipe(recipe, out)
        else:
            shutil.rmtree(out / "tokenizer", ignore_errors=True)
        for name in complete:
            check_unchanged(out / name, plans[name])
        write_text(out / "recipe.yaml", to_yaml(recipe))
        tokenizer = preparation.tokenizer(out / "tokenizer")
        datasets = {}
        for name in recipe.stages:
            datasets[name] = preparation.stage_data(name, tokenizer)
            save_tokenizer(tokenizer, out / "tokenizer")
        for name in recipe.stages:
            drop_items(out / name)
        return datasets


def _check_output_folder(out: Path) -> None:
    """Raise FledgeError for a folder that holds anything but a build."""
    check_layout(out)
    if (out / "environment.json").exists():
        raise FledgeError("this is the directory of a run", where=str(out), hint="choose another --out")
    if out.exists() and not (out / "recipe.yaml").exists() and any(out.iterdir()):
        raise FledgeError("this folder is not empty", where=str(out), hint="choose another --out")


def _check_same_recipe(recipe: Recipe, out: Path) -> None:
    """Raise FledgeError where a key that the data depends on differs from the recipe that was built."""
    data_keys = re.compile(r"seed|tokenizer\b.*|model\.path|stages\.[^.]+\.(data\b.*|kind|init_from)")
    changed = [line for line in differences(load_recipe([str(out / "recipe.yaml")]), recipe) if data_keys.match(line)]
    if changed:
        raise FledgeError(
            "this directory holds the data of another recipe:\n  " + "\n  ".join(changed),
            where=str(out),
            hint="choose another --out, or remove it",
        )
