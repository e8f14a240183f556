"""The time of a sweep, planned before anything is trained: how many trials fit into a number of minutes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fledge.autotune.benchmark import fastest_product
from fledge.autotune.compute_config import chosen_device, known_precision
from fledge.errors import FledgeError
from fledge.plan.estimate import minutes_text
from fledge.prediction import expected_seconds, stage_inputs
from fledge.prepare import Preparation
from fledge.recipe import Recipe
from fledge.run.console import silent
from fledge.sweep.recipes import TrialRecipes

START_SECONDS = 8.0  # of a run besides training: libraries, documents, report; measured 5 to 9 s on two cores
PLANNED = 8  # proposals whose time is averaged
DEFAULT_TRIALS = 20


@dataclass(frozen=True, kw_only=True)
class TimePlan:
    """Estimated seconds: of one run of a trial on all cores, and of the stages before, for each seed. Runs at a time share the
    machine, so that the sum counts; pruning makes it less."""

    run: float
    start: float
    seeds: int

    def seconds(self, trials: int) -> float:
        """Of so many trials."""
        return self.seeds * (self.start + trials * self.run)

    def trials_in(self, seconds: float) -> int:
        """The most trials that fit."""
        return max(0, int((seconds / self.seeds - self.start) / self.run))


def plan_time(recipes: TrialRecipes, proposals: Sequence[dict[str, Any]], seeds: int) -> TimePlan:
    """Plan the runs of these proposals as a run would, and estimate their time. Raises FledgeError if one cannot be trained, or
    if the measured stage has no validation data."""
    recipe = recipes.with_data(1)
    flops = fastest_product(chosen_device(recipe.runtime), known_precision(recipe.runtime))
    names = list(recipe.stages)
    start = recipes.start(1)
    before = 0.0 if start is None else START_SECONDS + _seconds(recipe, list(start.stages), flops)
    runs = []
    for number, values in enumerate(proposals, 1):
        try:
            planned = recipes.with_data(1, values)
            runs.append(START_SECONDS + _seconds(planned, names[recipes.first :], flops))
        except FledgeError as error:
            shown = ", ".join(f"{key}={value}" for key, value in values.items())
            raise FledgeError(f"trial {number} ({shown}) cannot be trained: {error.what}", where=error.where,
                              hint=error.hint) from None  # fmt: skip
    return TimePlan(run=sum(runs) / len(runs), start=before, seeds=seeds)


def _seconds(recipe: Recipe, stages: Sequence[str], flops: float) -> float:
    """Seconds of training these stages of a recipe, whose last stage is the measured one."""
    preparation = Preparation(recipe, silent)
    tokenizer, measured = preparation.tokenizer(), list(recipe.stages)[-1]
    total = 0.0
    for name in stages:
        prepared, cost = preparation.prepare(name, tokenizer), preparation.model_cost(name, tokenizer)
        if name == measured and prepared.data.validation is None:
            raise FledgeError("trials are compared on validation data, and this stage has none",
                              where=f"stages.{name}.data.validation", hint="write a share, such as 5%, or files")  # fmt: skip
        total += expected_seconds(stage_inputs(prepared, cost, recipe.runtime), flops)
    return total


def number_of_trials(
    plan: TimePlan, trials: int | None, minutes: float | None, log: Callable[[str], None], points: int | None = None
) -> int:
    """The number of trials: as asked for, or as many as fit into the minutes; at most `points`, those of a grid (None: there is
    none), and all of them where nothing is asked for. Raises FledgeError if fewer than two fit, or fewer than are asked for."""
    if trials is not None and points is not None:
        trials = min(trials, points)
    wanted = (points or DEFAULT_TRIALS) if trials is None else trials
    if minutes is not None:
        fitting = plan.trials_in(60 * minutes)
        one = minutes_text(plan.seeds * plan.run)
        if fitting < 2:
            raise FledgeError(
                f"{minutes:g} minutes are not enough for two trials: one takes {one}",
                where="--minutes",
                hint=f"write at least --minutes {plan.seconds(2) / 60 + 0.5:.0f}, fewer --seeds, or a shorter duration",
            )
        if trials is not None and trials > fitting:
            raise FledgeError(
                f"{trials:,} trials take {minutes_text(plan.seconds(trials))}, as planned, and {minutes:g} minutes are given",
                where="--trials",
                hint=f"{fitting:,} trials fit; or write --minutes {plan.seconds(trials) / 60 + 0.5:.0f}",
            )
        if trials is None:
            wanted = fitting if points is None else min(fitting, points)
            if points is not None and wanted < points:
                log(f"note: {wanted:,} of the {points:,} points of the grid fit into {minutes:g} minutes")
    runs = f"{wanted:,} trials of {plan.seeds} seed{'s' if plan.seeds > 1 else ''}"
    log(f"planned: {runs}, {minutes_text(plan.seconds(wanted))} in all if none ends early")
    return wanted
