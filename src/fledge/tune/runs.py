"""The short runs of a search: the measured stage of a recipe with a few keys changed, each once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from time import sleep
from typing import Any

from fledge.errors import FledgeError
from fledge.plan import StagePlan
from fledge.prepare import Preparation
from fledge.recipe import Stage
from fledge.run import Console, StageDirectory
from fledge.run.console import silent
from fledge.run.directory import resolve_model_path
from fledge.sweep.documents import Losses, ValidationDocuments, stored_losses
from fledge.sweep.processes import POLL_SECONDS, RunProcess, stop_all
from fledge.sweep.recipes import TrialRecipes


@dataclass(kw_only=True)
class ShortRuns:
    """Runs the stage with other values, `processes` at a time. Runs are numbered in the order in which they are asked for, so
    that a search that is repeated finds those that are finished. `compares`: whether their validation losses are compared."""

    recipes: TrialRecipes
    console: Console
    processes: int = 1
    compares: bool = True
    count: int = 0
    _documents: list[ValidationDocuments] = field(default_factory=list)

    @property
    def prefix(self) -> str:
        """The beginning of the keys of the stage."""
        return f"stages.{self.recipes.stage}"

    @cached_property
    def stage(self) -> Stage:
        """The stage as the recipe has it."""
        return self.recipes.whole(1).stages[self.recipes.stage]

    def plan(self, values: Mapping[str, Any]) -> StagePlan:
        """The plan of the stage with these values. Raises FledgeError if they cannot work, or if runs are compared and the
        stage has no validation data."""
        preparation = Preparation(self.recipes.with_data(1, values), silent)
        prepared = preparation.prepare(self.recipes.stage, preparation.tokenizer())
        if self.compares and prepared.data.validation is None:
            raise FledgeError("runs are compared on validation data, and this stage has none",
                              where=f"{self.prefix}.data.validation", hint="write a share, such as 5%, or files")  # fmt: skip
        return prepared.plan

    def run(self, several: Sequence[Mapping[str, Any]]) -> list[StageDirectory | None]:
        """Train the stage with each of these values; returns its directories, None for a run that failed."""
        numbers = range(self.count + 1, self.count + 1 + len(several))
        self.count += len(several)
        runs = [
            RunProcess(recipe=self.recipes.trial(number, 1, values), last_stage=self.recipes.measured(number, 1))
            for number, values in zip(numbers, several, strict=True)
        ]
        waiting, running = [run for run in runs if not run.is_finished], list[RunProcess]()
        try:
            while waiting or running:
                while waiting and len(running) < self.processes:
                    running.append(waiting.pop(0))
                    running[-1].start()
                sleep(POLL_SECONDS)
                running = [run for run in running if not run.ended()]
        finally:
            stop_all(running)
        for run in runs:
            if not run.is_finished:
                self.console.log(f"note: a run failed: {run.message()}")
        return [run.last_stage if run.is_finished else None for run in runs]

    def documents(self, directory: StageDirectory) -> Losses | None:
        """The losses of the validation documents under the model of a run; None where its loss is not that of tokens."""
        if not self.recipes.shares_data:
            return None
        if not self._documents:
            self._documents.append(ValidationDocuments(self.recipes.with_data(1), self.recipes.stage))
        found = self._documents[0]
        if not found.are_comparable:
            return None
        model = resolve_model_path(str(directory.root))
        return stored_losses(directory.root.parent.parent / "documents.json", lambda: found.losses(model))
