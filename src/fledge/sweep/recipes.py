"""The recipes of a sweep: what all trials begin with, and the recipe of one trial.

Stages before the first searched one are trained once for each seed, and the trials go on from their models. The data is built
once for each seed, unless a searched key changes it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.errors import FledgeError
from fledge.recipe import Recipe, load_recipe, recipe_from_dict, to_yaml
from fledge.recipe.earlier_stages import judges_of, name_judges, needed_stages
from fledge.recipe.initial_weights import first_initial_weights, initial_weights
from fledge.run import StageDirectory, write_text
from fledge.run.directory import RunDirectory
from fledge.run.environment import cores
from fledge.sweep.space import Parameter, as_overrides

DATA_KEYS = re.compile(r"seed|tokenizer\b.*|preset|model\.(path|config)|stages\.[^.]+\.(data\b.*|kind|init_from)")
"""Keys that the data of a stage depends on."""

KEEP_ALL = 1_000  # checkpoints: a look needs the one of its step, however fast the training is
Overrides = Sequence[tuple[str, str]]
Tree = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SweepFiles:
    """The files of a sweep, below its folder."""

    folder: Path

    @property
    def journal(self) -> Path:
        """The finished trials, one JSON object a line, as Optuna's journal storage has them."""
        return self.folder / "journal.log"

    @property
    def settings(self) -> Path:
        """What the sweep was begun with."""
        return self.folder / "settings.json"

    @property
    def plan(self) -> Path:
        """The number of trials that was planned."""
        return self.folder / "plan.json"

    @property
    def best(self) -> Path:
        """The recipe with the values of the best trial."""
        return self.folder / "best.yaml"

    def data(self, seed: int) -> Path:
        """The data of a seed, built once."""
        return self.folder / "data" / f"seed{seed}"

    def start(self, seed: int) -> Path:
        """The run of the stages that all trials of a seed begin with."""
        return self.folder / "start" / f"seed{seed}"

    def trial(self, number: int) -> Path:
        """The folder of a trial."""
        return self.folder / "trials" / f"{number:04d}"

    def run(self, number: int, seed: int) -> Path:
        """The run of a trial with one seed."""
        return self.trial(number) / f"seed{seed}"


@dataclass(frozen=True, kw_only=True)
class TrialRecipes:
    """Makes the recipes of a sweep from the recipe files and overrides that a person gives.

    `stage`: the stage whose result is measured; later ones are left out. `first`: the number of the first stage that a trial
    trains. `shares_data`: whether all trials of a seed train on the same data. `keeps_checkpoints`: whether all checkpoints of
    a running trial stay. `processes`: runs at a time, which share the cores.
    """

    files: tuple[str, ...]
    overrides: tuple[tuple[str, str], ...]
    space: tuple[Parameter, ...]
    stage: str
    first: int
    shares_data: bool
    paths: SweepFiles
    keeps_checkpoints: bool = True
    processes: int = 1

    def given(self, values: Mapping[str, Any] | None = None) -> Recipe:
        """The recipe as it was given, with these values."""
        return load_recipe(list(self.files), [*self.overrides, *as_overrides(values or {})])

    def whole(self, seed: int, values: Mapping[str, Any] | None = None) -> Recipe:
        """The stages up to the measured one, with the seed (from 1) of the sweep. Seeds from 2 on take the tokenizer that was
        trained for the first: losses per token compare only under one tokenizer. It sends nothing: no alerts, no figures."""
        tree = self.given(values).model_dump(mode="json")
        names = list(tree["stages"])
        tree["stages"] = {name: tree["stages"][name] for name in names[: names.index(self.stage) + 1]}
        tree |= {"seed": (tree["seed"] + seed - 1) % 2**32, "generation_samples": {}, "alerts": {}}
        tree["logging"] |= {"wandb": None, "trackio": None}
        if self.shares_data and seed > 1 and self._trains_tokenizer():
            tree["tokenizer"]["path"] = str(self.paths.data(1) / "tokenizer")
        return recipe_from_dict(tree)

    def _trains_tokenizer(self) -> bool:
        recipe = self.given()
        return recipe.tokenizer.path is None and first_initial_weights(recipe).config_directory is None

    def with_data(self, seed: int, values: Mapping[str, Any] | None = None) -> Recipe:
        """`whole`, reading the data that was built for the seed, if trials share it."""
        recipe = self.whole(seed, values)
        if not self.shares_data or recipe.built_dataset is not None:
            return recipe
        return recipe.model_copy(update={"built_dataset": str(self.paths.data(seed))})

    def start(self, seed: int) -> Recipe | None:
        """The stages that all trials of a seed begin with; None if there are none, or if trials need none of their models."""
        recipe = self.with_data(seed)
        tree = recipe.model_dump(mode="json")
        names = list(tree["stages"])
        needed = {one for name in names[self.first :] for one in needed_stages(recipe, name)}
        if not needed & set(names[: self.first]):
            return None
        tree["stages"] = {name: tree["stages"][name] for name in names[: self.first]}
        return self._at(tree, self.paths.start(seed))

    def trial(self, number: int, seed: int, values: Mapping[str, Any]) -> Recipe:
        """The recipe of a trial with one seed. Raises FledgeError if the values make none."""
        recipe = self.with_data(seed, values)
        tree = recipe.model_dump(mode="json")
        tree["stages"] = dict(list(tree["stages"].items())[self.first :])
        for name in tree["stages"]:
            before = initial_weights(recipe, name).previous_stage
            if before is not None and before not in tree["stages"]:
                tree["stages"][name]["init_from"] = str(self._start_model(seed, before))
            judges = [one for one in judges_of(recipe, name) if one not in tree["stages"]]
            name_judges(tree["stages"][name], {one: self._start_model(seed, one) for one in judges})
        measured = tree["stages"][self.stage]
        measured["evaluation"]["verdict"]["roll_back"] = False  # the model that was measured is the result, however bad
        if self.keeps_checkpoints:
            measured["checkpoint"] |= {"every_steps": None, "keep_last": KEEP_ALL}
        return self._at(tree, self.paths.run(number, seed))

    def _start_model(self, seed: int, stage: str) -> Path:
        directory = RunDirectory(self.paths.start(seed)).stage(stage)
        result = directory.result()
        return directory.root if result is None else directory.root / result["model"]

    def _at(self, tree: Tree, run: Path) -> Recipe:
        """The recipe of a run in this place. Runs at a time share the cores."""
        if self.processes > 1 and tree["runtime"]["threads"] is None:
            tree["runtime"]["threads"] = max(1, cores() // self.processes)
        return recipe_from_dict({**tree, "name": run.name, "output": str(run.parent)})

    def measured(self, number: int, seed: int) -> StageDirectory:
        """The directory of the measured stage of a trial."""
        return RunDirectory(self.paths.run(number, seed)).stage(self.stage)

    def best(self, values: Mapping[str, Any]) -> str:
        """The given recipe with these values, as YAML."""
        recipe = self.given(values)
        return to_yaml(recipe.model_copy(update={"name": f"{recipe.name}-best"}))


def write_recipe(recipe: Recipe) -> Path:
    """Write the recipe of a run beside its directory, and return the file. The run itself compares it when it is resumed."""
    file = Path(recipe.output) / f"{recipe.name}.yaml"
    write_text(file, to_yaml(recipe))
    return file


def check_space(files: Sequence[str], overrides: Overrides, space: Sequence[Parameter]) -> None:
    """Raise FledgeError, naming the parameter, if the recipe does not take one of its values alone: an unknown key, another
    type, a value out of bounds."""
    load_recipe(list(files), list(overrides))  # the recipe itself comes first
    for one in space:
        for value in one.corners():
            try:
                load_recipe(list(files), [*overrides, *as_overrides({one.key: value})])
            except FledgeError as error:
                raise FledgeError(error.what, where=f"--search {one.describe()}", hint=error.hint) from None


def chosen_stage(recipe: Recipe, stage: str | None) -> str:
    """The stage that is measured: the named one, else the last. Raises FledgeError if there is none of this name."""
    if stage is None:
        return list(recipe.stages)[-1]
    if stage not in recipe.stages:
        raise FledgeError(f"the recipe has no stage '{stage}'", where="--stage", hint=f"it has {', '.join(recipe.stages)}")
    return stage


def first_searched(recipe: Recipe, keys: Sequence[str], stage: str) -> int:
    """The number of the first stage that the keys change: 0 if a key is of the whole recipe. Raises FledgeError for a key of a
    stage behind the measured one, which cannot change its result."""
    names = list(recipe.stages)
    found = []
    for key in keys:
        section, _, rest = key.partition(".")
        name = rest.partition(".")[0]
        if section != "stages":
            found.append(0)
        elif name in names[names.index(stage) + 1 :]:
            raise FledgeError(f"'{key}' comes after the stage that is measured, {stage}", where="--search",
                              hint=f"write --stage {name}")  # fmt: skip
        else:
            found.append(names.index(name))
    return min(found)


def trial_recipes(
    files: Sequence[str], overrides: Overrides, space: Sequence[Parameter], paths: SweepFiles, **settings: Any
) -> TrialRecipes:
    """The recipes of a sweep over a space. `settings`: `stage` (None: the last one), and fields of `TrialRecipes`. Raises
    FledgeError if the recipe does not take the space."""
    check_space(files, overrides, space)
    recipe, keys = load_recipe(list(files), list(overrides)), [one.key for one in space]
    stage = chosen_stage(recipe, settings.pop("stage", None))
    return TrialRecipes(
        files=tuple(files),
        overrides=tuple(overrides),
        space=tuple(space),
        stage=stage,
        first=first_searched(recipe, keys, stage),
        shares_data=not any(DATA_KEYS.fullmatch(key) for key in keys),
        paths=paths,
        **settings,
    )
