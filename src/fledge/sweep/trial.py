"""One trial: its runs, seed after seed, and the looks at which it may end early."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from fledge.checkpoint.find import verify
from fledge.errors import FledgeError
from fledge.plan.evaluation import evaluation_interval
from fledge.recipe import Recipe
from fledge.run.directory import StageDirectory, resolve_model_path
from fledge.run.events import read_events
from fledge.run.text_files import read_json
from fledge.sweep.documents import Losses, ValidationDocuments, stored_losses
from fledge.sweep.journal import TrialRecord
from fledge.sweep.metric import LOSS, Metric
from fledge.sweep.processes import RunProcess
from fledge.sweep.proposals import State
from fledge.sweep.pruning import Look, end_of_seed, look_steps, why_pruned
from fledge.sweep.recipes import TrialRecipes


@dataclass(kw_only=True)
class Trial:
    """A trial that runs. `earlier`: the finished trials that it is compared with at its looks; `documents`: the validation
    documents of each seed, empty where trials are not compared by documents."""

    number: int
    values: Mapping[str, Any]
    recipes: TrialRecipes
    seeds: int
    metric: Metric
    earlier: Sequence[TrialRecord]
    documents: Callable[[int, Recipe], ValidationDocuments | None]
    record: TrialRecord | None = None
    seed_values: list[float] = field(default_factory=list)
    looks: dict[int, float] = field(default_factory=dict)
    runs: list[RunProcess] = field(default_factory=list)

    def poll(self) -> bool:
        """Start, look and go on; returns whether the trial has ended, so that `record` is there."""
        try:
            return self.record is not None or self._poll()
        except FledgeError as error:
            self._end("failed", error.text())
            return True

    def _poll(self) -> bool:
        if not self.runs:
            self._next_seed()
        run = self.runs[-1]
        if run.process is None and not run.is_finished:
            if self._look_while_training(run):
                return True
            run.start()
            return False
        if run.process is not None and not run.ended():
            return self._look_while_training(run)
        if not run.is_finished:
            self._end("failed", run.message())
            return True
        return self._look_while_training(run) or self._end_of_seed(run)

    def _next_seed(self) -> None:
        seed = len(self.runs) + 1
        recipe = self.recipes.trial(self.number, seed, self.values)
        self.runs.append(RunProcess(recipe=recipe, last_stage=self.recipes.measured(self.number, seed)))

    def _end_of_seed(self, run: RunProcess) -> bool:
        seed = len(self.runs)
        self.seed_values.append(self.metric.value(run.last_stage))
        if (documents := self.documents(seed, run.recipe)) is not None:
            loss = Metric(name=LOSS).value(run.last_stage)
            is_last = seed == self.seeds
            if self._look(end_of_seed(seed), loss, resolve_model_path(str(run.last_stage.root)), documents, ends=not is_last):
                return True
        if seed == self.seeds:
            self._end("complete", "")
            return True
        self._next_seed()
        return False

    # -- looks --------------------------------------------------------------------------------------------------------

    def _look_while_training(self, run: RunProcess) -> bool:
        """Look at the checkpoints of the first seed that are there and were not looked at; returns whether the trial ends."""
        directory = run.last_stage
        if len(self.runs) > 1 or not directory.plan.exists():
            return False
        if (documents := self.documents(1, run.recipe)) is None:
            return False
        steps = int(read_json(directory.plan, dict[str, Any])["steps"])
        interval = evaluation_interval(run.recipe.stages[self.recipes.stage], steps)
        for number, step in look_steps(steps, interval).items():
            if number in self.looks:
                continue
            checkpoint = directory.checkpoints / f"step-{step:08d}"
            value = _loss_at(directory, step)
            if value is None or not (checkpoint / "manifest.json").exists() or verify(checkpoint) is not None:
                return False
            if self._look(number, value, resolve_model_path(str(checkpoint)), documents):
                run.kill()
                return True
        return False

    def _look(self, number: int, value: float, model: Path, documents: ValidationDocuments, *, ends: bool = True) -> bool:
        """Look at the trial, and end it if it is worse than the median trial; returns whether it has ended. Without `ends` its
        figures are only stored."""
        self.looks[number] = value
        own = stored_losses(self._file(self.number, number), lambda: documents.losses(model))
        if not ends:
            return False
        looks = [
            Look(trial=one.number, value=one.looks[number], file=self._file(one.number, number))
            for one in self.earlier
            if number in one.looks and one.state != "failed"
        ]
        if (reason := why_pruned(looks, own, _Stored(looks))) is None:
            return False
        self._end("pruned", reason)
        return True

    def _file(self, trial: int, look: int) -> Path:
        return documents_file(self.recipes, trial, look)

    def _end(self, state: State, reason: str) -> None:
        value = None
        if state == "complete":
            value = sum(self.seed_values) / len(self.seed_values)
            if not isfinite(value):
                state, value, reason = "failed", None, f"{self.metric.name} is no number"
        elif state == "pruned":
            value = self.looks[max(self.looks)]
        self.record = TrialRecord(
            number=self.number,
            values=dict(self.values),
            state=state,
            value=value,
            seed_values=tuple(self.seed_values),
            looks=dict(self.looks),
            reason=reason,
            seconds=round(sum(run.seconds for run in self.runs), 3),
        )


class _Stored(dict[int, Losses]):
    """The losses of trials at a look, read when they are needed."""

    def __init__(self, looks: Sequence[Look]) -> None:
        super().__init__()
        self.files = {look.trial: look.file for look in looks}

    def __missing__(self, trial: int) -> Losses:
        self[trial] = stored_losses(self.files[trial], dict)
        return self[trial]


def documents_file(recipes: TrialRecipes, trial: int, look: int) -> Path:
    """The file with the losses of the documents of a trial at a look."""
    return recipes.paths.trial(trial) / f"documents-{look}.json"


def _loss_at(directory: StageDirectory, step: int) -> float | None:
    """The validation loss that was recorded at a step; infinite for one that is no number, None if none was."""
    for event in read_events(directory.events):
        if event["kind"] == "eval" and event["step"] == step:
            value = event.get("eval/loss")
            return float("inf") if value is None else float(value)
    return None
