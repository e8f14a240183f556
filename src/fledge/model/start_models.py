"""The models that a recipe names, as directories: where the stages of a run start from."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fledge.errors import FledgeError
from fledge.model.hub import hub_copy, is_hub_name, parse_hub_name
from fledge.model.locate import locate_named
from fledge.recipe.initial_weights import InitialWeights, first_initial_weights, initial_weights
from fledge.recipe.schema import Recipe
from fledge.run.directory import RunDirectory
from fledge.run.text_files import read_json, write_json


class StartModels:
    """The model directories of a recipe. What it names as a GGUF file is converted when it is asked for, and what it names as a
    model of the hub downloaded. A run keeps the commits that it began with."""

    def __init__(self, recipe: Recipe, log: Callable[[str], None], run: RunDirectory | None = None) -> None:
        self.recipe, self.log, self.run = recipe, log, run
        self._commits: dict[str, str] = {}
        self._found: dict[Path, Path] = {}

    def of_stage(self, name: str) -> InitialWeights:
        """The initial weights of a stage. Raises FledgeError for a file that is no model, and for a model of the hub that is
        not to be had, except for a stage that has begun: it goes on from its own checkpoint."""
        weights = initial_weights(self.recipe, name)
        try:
            directory, config_directory = (self._located(path) for path in (weights.directory, weights.config_directory))
        except FledgeError as error:
            if self.run is None or not self.run.stage(name).checkpoint_paths():
                raise
            self.log(f"note: {error.what} ({error.where})")
            return weights
        return replace(weights, directory=directory, config_directory=config_directory)

    def tokenizer_source(self) -> tuple[str, Path | None]:
        """The recipe key and the path of the tokenizer that the recipe names; None: the run trains one."""
        if self.recipe.tokenizer.path is not None:
            return "tokenizer.path", self._located(Path(self.recipe.tokenizer.path))
        first, path = next(iter(self.recipe.stages)), first_initial_weights(self.recipe).directory
        return f"stages.{first}.init_from" if self.recipe.stages[first].init_from else "model.path", self._located(path)

    def directories(self) -> dict[Path, str]:
        """Every model directory that a stage starts from, with the name of the first such stage."""
        found: dict[Path, str] = {}
        for name in self.recipe.stages:
            directory = self.of_stage(name).directory
            if directory is not None:
                found.setdefault(directory, name)
        return found

    def pin(self) -> None:
        """Write the commits of models of the hub into the run, which takes these whatever their revisions mean later."""
        if self._commits and self.run is not None:
            write_json(self.run.models, {**self._pinned(), **self._commits})

    def _located(self, path: Path | None) -> Path | None:
        if path is None:
            return None
        if path not in self._found:
            self._found[path] = self._downloaded(path) if is_hub_name(str(path)) else locate_named(path, self.log)
        return self._found[path]

    def _downloaded(self, path: Path) -> Path:
        is_start = str(path) == self.recipe.model.path
        model = parse_hub_name(str(path), self.recipe.model.revision if is_start else None)
        copy = hub_copy(model, self._pinned().get(str(model)), self.log)
        self._commits[str(model)] = copy.commit
        return copy.folder

    def _pinned(self) -> dict[str, str]:
        """The commits that the run began with, by model; none for a new run."""
        if self.run is None or not self.run.recipe.exists() or not self.run.models.exists():
            return {}
        return read_json(self.run.models, dict[str, str])
