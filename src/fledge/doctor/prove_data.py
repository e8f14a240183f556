"""The data of paired runs: what the run itself has built, read in the order of another seed; or built anew, where the patch
changes the data."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import xxhash

from fledge.build_dataset import build
from fledge.data import PackedDataset, StageDataset, is_complete, load_built_dataset
from fledge.data.build.directory import MANIFEST_FILE, PLAN_FILE, REPORT_FILE, BuildDirectory
from fledge.data.build.load import load_dataset
from fledge.data.build.plan import BuildPlan, requested_data
from fledge.data.report import DataReport
from fledge.errors import FledgeError
from fledge.evaluate.evenly import evenly
from fledge.recipe import Recipe, Stage, recipe_from_dict, to_yaml
from fledge.run import RunDirectory, write_json, write_text
from fledge.run.text_files import read_json
from fledge.tokenizer import Tokenizer

LINKED = ("rows", "keep", "tokens", "tokenizer", "evaluation.safetensors", REPORT_FILE)
FEWEST = 8  # held-out documents that a comparison takes


def folder_of(run: RunDirectory, recipe: Recipe, stage: str) -> Path:
    """The folder of the build that a stage of a run was trained on; it may be gone."""
    return run.stage(stage).data if recipe.built_dataset is None else Path(recipe.built_dataset) / stage


def built_folder(run: RunDirectory, recipe: Recipe, stage: str) -> Path:
    """The build that a stage of a run was trained on. Raises FledgeError if it is not there any more."""
    folder = folder_of(run, recipe, stage)
    if not is_complete(folder):
        raise FledgeError("the data that this stage was trained on is not there any more", where=str(folder),
                          hint="train the stage again, or put the folder back")  # fmt: skip
    return folder


def changes_data(folder: Path, stage: Stage) -> bool:
    """Whether a stage asks for other data than a build holds."""
    plan = BuildPlan.read(folder / PLAN_FILE)
    return plan.requested != requested_data(stage, plan.seed)


def build_patched(recipe: Recipe, tokenizer: Path, out: Path, log: Callable[[str], None]) -> Path:
    """Build the data of the one stage of a patched recipe with the tokenizer of the run, once; returns the folder."""
    tree = recipe.model_dump(mode="json")
    tree["tokenizer"]["path"], tree["built_dataset"] = str(tokenizer), None
    (stage,) = recipe.stages
    if not is_complete(out / stage):
        build(recipe_from_dict(tree), out, None, log)
    return out / stage


def reseeded(folder: Path, recipe: Recipe, seed: int, out: Path, tokenizer: tuple[Path, Tokenizer]) -> Path:
    """A dataset to train from (`built_dataset`), with the rows of a build and the order of another seed.

    `recipe`: has one stage. `tokenizer`: its folder, and itself. Its tokens are links to those of the build: nothing is copied,
    nothing is split anew, so that the held-out documents are the same for all seeds."""
    (stage,) = recipe.stages
    target = out / stage
    if is_complete(target):
        return out
    target.mkdir(parents=True, exist_ok=True)
    for name in LINKED:
        _link(folder / name, target / name)
    plan = replace(BuildPlan.read(folder / PLAN_FILE), seed=seed)
    write_text(target / PLAN_FILE, plan.to_json().decode())
    dataset = load_dataset(BuildDirectory.open(target), DataReport.read(target / REPORT_FILE), tokenizer[1])
    written = {
        "tokenizer": tokenizer[1].fingerprint(),
        "train": dataset.train.summary(),
        "validation": dataset.validation and dataset.validation.summary(),
    }
    _link(tokenizer[0], out / "tokenizer")
    tree = recipe.model_dump(mode="json")
    write_text(out / "recipe.yaml", to_yaml(recipe_from_dict({**tree, "built_dataset": None})))
    write_json(target / MANIFEST_FILE, {**read_json(folder / MANIFEST_FILE, dict), **written})
    return out


def _link(source: Path, link: Path) -> None:
    """A link to a file or folder that may be missing; one of an interrupted proof is replaced."""
    if source.exists():
        link.unlink(missing_ok=True)
        os.symlink(source.resolve(), link)


def load(folder: Path, stage: Stage, tokenizer: Tokenizer) -> StageDataset:
    """The data of a build."""
    return load_built_dataset(folder, stage, tokenizer, BuildPlan.read(folder / PLAN_FILE).seed)


# -- held-out documents --------------------------------------------------------------------------------------------------


def held_out_examples(judging: PackedDataset | None, trained: Sequence[PackedDataset], most: int) -> dict[str, int]:
    """The validation documents of a build by name, spread evenly, at most so many, without those that stand in any of the
    training data, the equal ones once. Where one data set serves all runs and hardly any document is left, documents that stand
    in it stay: they are no less equal for both runs of a pair. Raises FledgeError if fewer than 8 are left."""
    known = {key for data in trained for key in _keys(data)}
    all_of_them = {} if judging is None else {key: number for number, key in enumerate(_keys(judging))}
    found = {key: number for key, number in all_of_them.items() if key not in known}
    if len(found) < FEWEST and len(trained) == 1:
        found = all_of_them
    if len(found) < FEWEST:
        raise FledgeError(
            f"paired runs are judged on {FEWEST} or more documents that no run was trained on, and there are {len(found)}",
            where="data.validation", hint="give the stage more validation data: a share, such as 5%, or files",
        )  # fmt: skip
    names = list(found)
    return {names[n]: found[names[n]] for n in evenly(len(names), most)}


def _keys(data: PackedDataset) -> list[str]:
    """A hash of the tokens of each document."""
    count = data.examples.sequences_per_example
    return [
        xxhash.xxh3_64_hexdigest(
            b"|".join(
                np.ascontiguousarray(data.examples.sequence(number * count + n)[0], np.int64).tobytes() for n in range(count)
            )
        )
        for number in range(data.examples.count)
    ]
