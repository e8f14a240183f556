"""What all trials of a sweep share: the data of each seed, and the model that they begin with."""

from collections.abc import Callable
from time import sleep

from fledge.build_dataset import build
from fledge.errors import FledgeError
from fledge.run.directory import RunDirectory
from fledge.sweep.processes import POLL_SECONDS, RunProcess, stop_all
from fledge.sweep.recipes import TrialRecipes

Log = Callable[[str], None]


def build_data(recipes: TrialRecipes, seeds: int, log: Log) -> None:
    """Build the data of each seed once, if no trial changes it. What is built stays as it is."""
    if not recipes.shares_data:
        log("note: a searched key changes the data: each run builds its own, and no trial ends early")
        return
    if recipes.given().built_dataset is not None:
        return
    for seed in range(1, seeds + 1):
        build(recipes.whole(seed), recipes.paths.data(seed), None, log)


def train_start(recipes: TrialRecipes, seeds: int, log: Log) -> float:
    """Train the stages that all trials begin with, once for each seed; returns the seconds that this took, those before an
    interruption too. Raises FledgeError if they cannot be trained."""
    seconds = 0.0
    for seed in range(1, seeds + 1):
        recipe = recipes.start(seed)
        if recipe is None:
            return seconds
        last = RunDirectory(recipes.paths.start(seed)).stage(list(recipe.stages)[-1])
        run = RunProcess(recipe=recipe, last_stage=last)
        if run.is_finished:
            seconds += run.seconds
            continue
        log(f"training {', '.join(recipe.stages)} of seed {seed}, which all trials begin with …")
        try:
            run.start()
            while not run.ended():
                sleep(POLL_SECONDS)
        finally:
            stop_all([run])
        if not run.is_finished:
            raise FledgeError(run.message(), where=str(run.log))
        seconds += run.seconds
    return seconds
