"""The sweep: what is shared is prepared once, then trials run in groups, each proposed from the results of the groups before.

The trials of a group are proposed together and recorded together, in the order of their numbers. So every proposal is a
function of recorded results, however many processes run and whenever the sweep was interrupted.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any

from fledge.errors import FledgeError
from fledge.recipe import Recipe, load_recipe
from fledge.run import Console, exclusive_lock, write_json
from fledge.run.stopping import SignalHandler
from fledge.run.text_files import read_json
from fledge.sweep.budget import PLANNED, number_of_trials, plan_time
from fledge.sweep.documents import ValidationDocuments
from fledge.sweep.journal import Journal, TrialRecord, best_record, check_settings, describe_space
from fledge.sweep.metric import LOSS, Metric
from fledge.sweep.processes import POLL_SECONDS, stop_all
from fledge.sweep.proposals import SAMPLERS, STARTUP, Search, grid_points, import_optuna
from fledge.sweep.recipes import SweepFiles, chosen_stage, trial_recipes
from fledge.sweep.report import trial_line, write_results
from fledge.sweep.shared import build_data, train_start
from fledge.sweep.space import Parameter, own_values
from fledge.sweep.trial import Trial

ALL_FAILED = 3  # trials that fail at first end a sweep: something is wrong with all of them


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """What a sweep does: recipe files and overrides, the space, and how it is searched.

    `stage`: the one that is measured; None: the last. `metric`: what trials are compared by; None: the goal of that stage.
    `trials`, `minutes`: how many, or how long; neither: 20 trials. `seeds`: runs of each trial. `processes`: trials at a time.
    `prune`: whether hopeless trials end early. `keep_checkpoints`: of all trials; else only the best trial keeps its models.
    """

    files: tuple[str, ...]
    out: Path
    space: tuple[Parameter, ...]
    overrides: tuple[tuple[str, str], ...] = ()
    stage: str | None = None
    metric: str | None = None
    sampler: str = "tpe"
    trials: int | None = None
    minutes: float | None = None
    seeds: int = 1
    processes: int = 1
    seed: int = 0
    prune: bool = True
    keep_checkpoints: bool = False


class Sweep:
    """A sweep in its folder. An interrupted one goes on."""

    def __init__(self, settings: SweepSettings, console: Console) -> None:
        """Raises FledgeError if the recipe does not take the space, the metric cannot compare its values, or Optuna is
        missing."""
        import_optuna("fledge sweep")
        self.settings, self.console, self.log = settings, console, console.log
        self.recipe = load_recipe(list(settings.files), list(settings.overrides))
        self.metric = Metric.of(settings.metric, self.recipe.stages[chosen_stage(self.recipe, settings.stage)])
        self.prune = settings.prune and self.metric.name == LOSS
        self.recipes = trial_recipes(
            settings.files,
            settings.overrides,
            settings.space,
            SweepFiles(folder=settings.out),
            stage=settings.stage,
            keeps_checkpoints=self.prune,
            processes=settings.processes,
        )
        if self.recipe.built_dataset is not None and settings.seeds > 1:
            raise FledgeError("built_dataset holds the data of one seed", where="--seeds",
                              hint="leave built_dataset out: a sweep builds the data of each seed once")  # fmt: skip
        higher_is_better = self.metric.higher_is_better  # an unknown metric is told as such
        self.metric.check(self.recipes)
        self.search = Search(
            space=settings.space,
            sampler=settings.sampler,
            seed=settings.seed,
            higher_is_better=higher_is_better,
            first=own_values(self.recipe, settings.space),
        )
        self.documents: dict[int, ValidationDocuments | None] = {}
        self.start_seconds = 0.0  # of the stages that all trials begin with

    def run(self) -> list[TrialRecord]:
        """Run all trials that are left; returns all of them, in order. The results are written beside them."""
        out = self.settings.out
        with (
            exclusive_lock(out),
            SignalHandler(self.log, "stopped on request; what is finished is kept, and the same command goes on"),
        ):
            self._begin()
            journal = Journal(self.recipes.paths.journal, self.search)
            build_data(self.recipes, self.settings.seeds, self.log)
            trials = self._plan()
            self.start_seconds = train_start(self.recipes, self.settings.seeds, self.log)
            if journal.records:
                self.log(f"going on after {len(journal.records):,} finished trials")
            while len(journal.records) < trials and not self._is_out_of_time(journal):
                for record in self._run_group(journal, trials):
                    journal.append(record)
                    self.log(trial_line(record, self.metric.name))
                self._check_failures(journal)
                self._remove_models(journal)
            write_results(self.recipes, self.search, journal.records, self.metric, self.console)
            return journal.records

    # -- what is shared -----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Write the settings, or compare them with those that the sweep was begun with."""
        given, out = self.settings, self.settings.out
        if out.exists() and any(out.iterdir()) and not self.recipes.paths.settings.exists():
            raise FledgeError("this folder is not empty, and holds no sweep", where=str(out), hint="choose another --out")
        settings = {
            "recipe": self.recipe.model_dump(mode="json", exclude={"name", "output", "logging", "alerts"}),
            "space": describe_space(given.space),
            **{name: getattr(given, name) for name in ("sampler", "seeds", "processes", "seed", "prune")},
            "metric": self.metric.name,
            "stage": self.recipes.stage,
        }
        if not check_settings(self.recipes.paths.settings, settings):
            write_json(self.recipes.paths.settings, settings)

    def _plan(self) -> int:
        """The number of trials. The first proposals are planned; they do not depend on any result. A sweep that goes on with
        the same wishes keeps its number, however fast the machine is now."""
        given, trials, file = self.settings, self.settings.trials, self.recipes.paths.plan
        wishes = {"trials": given.trials, "minutes": given.minutes}
        if file.exists() and (before := read_json(file, dict[str, Any])).get("wishes") == wishes:
            return int(before["number"])
        points = len(grid_points(given.space)) if given.sampler == "grid" else None
        count = min(PLANNED, STARTUP, trials or PLANNED, points or PLANNED)
        first = [self.search.propose(number, (), ()) for number in range(1, count + 1)]
        plan = plan_time(self.recipes, first, given.seeds)
        number = number_of_trials(plan, trials, given.minutes, self.log, points)
        write_json(file, {"wishes": wishes, "number": number, "seconds": plan.seconds(number)})
        return number

    def _documents(self, seed: int, recipe: Recipe) -> ValidationDocuments | None:
        """The validation documents of a seed; None where trials are not compared by them."""
        if not (self.recipes.shares_data and self.metric.name == LOSS):
            return None
        if seed not in self.documents:
            found = ValidationDocuments(recipe, self.recipes.stage)
            self.documents[seed] = found if found.are_comparable else None
        return self.documents[seed]

    # -- trials -------------------------------------------------------------------------------------------------------

    def _is_out_of_time(self, journal: Journal) -> bool:
        """Whether the minutes are used up: by the stages that all trials begin with, and the trials so far, whose time the
        processes share. The first group of trials is always run."""
        if self.settings.minutes is None or not journal.records:
            return False
        trials = sum(record.seconds for record in journal.records) / min(self.settings.processes, len(journal.records))
        if self.start_seconds + trials < 60 * self.settings.minutes:
            return False
        self.log(f"the {self.settings.minutes:g} minutes are used up after {len(journal.records):,} trials", style="yellow")
        return True

    def _group(self, journal: Journal, trials: int) -> list[Trial]:
        """The next group of trials."""
        first = len(journal.records) + 1
        size = self.settings.processes
        end = min(trials, (first - 1) // size * size + size)  # a sweep with more trials later keeps its groups
        before = [record for record in journal.records if record.number <= (first - 1) // size * size]
        beside = [record.values for record in journal.records[len(before) :]]
        group: list[Trial] = []
        for number in range(first, end + 1):
            values = self.search.propose(number, [record.outcome() for record in before], beside)
            beside.append(values)
            group.append(
                Trial(
                    number=number,
                    values=values,
                    recipes=self.recipes,
                    seeds=self.settings.seeds,
                    metric=self.metric,
                    earlier=before if self.prune else (),
                    documents=self._documents,
                )
            )
        return group

    def _run_group(self, journal: Journal, trials: int) -> list[TrialRecord]:
        """Run the next group of trials to their ends."""
        group = self._group(journal, trials)
        with self.console.progress("trial", trials, len(journal.records)) as progress:
            try:
                while not all([trial.poll() for trial in group]):
                    sleep(POLL_SECONDS)
                    progress.update(len(journal.records) + sum(trial.record is not None for trial in group))
            finally:
                stop_all([run for trial in group for run in trial.runs])
        return [trial.record for trial in group if trial.record is not None]

    def _check_failures(self, journal: Journal) -> None:
        """Raise FledgeError if the first trials have all failed."""
        if len(journal.records) >= ALL_FAILED and all(record.state == "failed" for record in journal.records):
            raise FledgeError(f"the first {len(journal.records):,} trials have all failed: {journal.records[-1].reason}",
                              where=str(self.recipes.paths.trial(journal.records[-1].number)),
                              hint="mend the recipe and choose another --out")  # fmt: skip

    def _remove_models(self, journal: Journal) -> None:
        """Remove the checkpoints of trials that are not the best: they would fill the disk."""
        if self.settings.keep_checkpoints:
            return
        best = best_record(journal.records, self.search.higher_is_better)
        for record in journal.records:
            if best is None or record.number != best.number:
                for folder in self.recipes.paths.trial(record.number).glob("*/*/checkpoints"):
                    shutil.rmtree(folder, ignore_errors=True)


def sweep(settings: SweepSettings, console: Console) -> list[TrialRecord]:
    """Run a sweep, or go on with it; returns all trials. Results: `sweep.md`, `sweep.json`, `best.yaml`, and figures, if
    matplotlib is installed. Raises FledgeError for settings that cannot work."""
    _check(settings)
    return Sweep(settings, console).run()


def _check(settings: SweepSettings) -> None:
    if settings.sampler not in SAMPLERS:
        raise FledgeError(f"'{settings.sampler}' is no sampler", where="--sampler", hint=f"one of {', '.join(SAMPLERS)}")
    for name in ("trials", "seeds", "processes"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise FledgeError(f"must be 1 or more, not {value}", where=f"--{name}")
    if settings.minutes is not None and not 0 < settings.minutes < float("inf"):
        raise FledgeError("must be a number above zero", where="--minutes")
