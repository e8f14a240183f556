"""The time of a sweep: what is planned, what is checked, and what counts as used."""

import time
from pathlib import Path
from typing import Any

import pytest

from fledge.errors import FledgeError
from fledge.run.console import Console
from fledge.run.directory import RunDirectory
from fledge.sweep.budget import TimePlan, number_of_trials, plan_time
from fledge.sweep.journal import Journal, TrialRecord
from fledge.sweep.metric import Metric
from fledge.sweep.processes import RunProcess, stop_all
from fledge.sweep.recipes import SweepFiles, trial_recipes
from fledge.sweep.shared import build_data, train_start
from fledge.sweep.space import Parameter
from fledge.sweep.sweep import Sweep, SweepSettings
from fledge.sweep.trial import Trial
from tests.support import tiny_run

RATE = Parameter(key="stages.sft.optimizer.learning_rate", choices=(1e-3, 2e-3, 3e-3))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "world"
    tiny_run.tree(folder, folder)
    return folder


def _recipe(world: Path, folder: Path, pretrain: Any, sft: Any) -> str:
    """A recipe of two stages with these shares of validation data."""
    tree = tiny_run.tree(world, folder / "runs")
    stages = {name: tree["stages"][name] for name in ("pretrain", "sft")}
    for stage, validation in zip(stages.values(), (pretrain, sft), strict=True):
        stage["data"]["validation"] = validation
    return str(tiny_run.write(folder / "r.yaml", {**tree, "stages": stages, "generation_samples": {}}))


def test_only_the_measured_stage_needs_validation_data(world: Path, tmp_path: Path) -> None:
    recipes = trial_recipes([_recipe(world, tmp_path, 0, "5%")], [], [RATE], SweepFiles(folder=tmp_path / "sweep"))
    build_data(recipes, 1, lambda text: None)
    plan = plan_time(recipes, [{RATE.key: 1e-3}], 1)
    assert plan.start > 0 and plan.run > 0
    other = tmp_path / "other"
    other.mkdir()
    recipes = trial_recipes([_recipe(world, other, "5%", 0)], [], [RATE], SweepFiles(folder=other / "sweep"))
    build_data(recipes, 1, lambda text: None)
    with pytest.raises(FledgeError, match="this stage has none") as caught:
        plan_time(recipes, [{RATE.key: 1e-3}], 1)
    assert caught.value.where == "stages.sft.data.validation"


def test_a_large_grid_is_tried_in_part_where_minutes_are_given() -> None:
    plan, told = TimePlan(run=60.0, start=120.0, seeds=1), list[str]()
    assert number_of_trials(plan, None, 12.0, told.append, points=1000) == 10
    assert "note: 10 of the 1,000 points of the grid fit into 12 minutes" in told
    told.clear()
    assert number_of_trials(plan, None, 12.0, told.append, points=6) == 6 and len(told) == 1
    assert number_of_trials(plan, None, None, told.append, points=1000) == 1000
    assert number_of_trials(plan, 2000, None, told.append, points=1000) == 1000
    assert number_of_trials(plan, None, None, told.append) == 20
    with pytest.raises(FledgeError, match="1,000 trials take") as caught:
        number_of_trials(plan, 2000, 12.0, told.append, points=1000)
    assert caught.value.where == "--trials"


# -- the time that is used ----------------------------------------------------------------------------------------------


def _sweep(world: Path, folder: Path, minutes: float) -> Sweep:
    settings = SweepSettings(
        files=(_recipe(world, folder, 0, "5%"),), out=folder / "sweep", space=(RATE,), sampler="grid", minutes=minutes
    )
    return Sweep(settings, Console(quiet=True))


def _run(sweep: Sweep) -> RunProcess:
    recipe = sweep.recipes.trial(1, 1, {RATE.key: 1e-3})
    return RunProcess(recipe=recipe, last_stage=sweep.recipes.measured(1, 1))


def test_a_run_that_is_interrupted_keeps_its_time(world: Path, tmp_path: Path) -> None:
    sweep = _sweep(world, tmp_path, 1.0)
    run = _run(sweep)
    assert run.seconds == 0.0
    run.start()
    time.sleep(0.3)
    assert run.seconds >= 0.3 and not run.ended()
    stop_all([run])
    stopped = _run(sweep)
    assert stopped.seconds == pytest.approx(run.seconds, abs=1e-3) and run.seconds >= 0.3
    stopped.start()
    time.sleep(0.2)
    stopped.kill()
    assert _run(sweep).seconds >= run.seconds + 0.2


def test_a_trial_that_ends_early_has_the_time_of_the_run_that_it_ends(world: Path, tmp_path: Path) -> None:
    sweep = _sweep(world, tmp_path, 1.0)
    trial = Trial(
        number=1, values={RATE.key: 1e-3}, recipes=sweep.recipes, seeds=1, metric=Metric(name="loss"), earlier=(),
        documents=lambda seed, recipe: None, looks={1: 3.0},
    )  # fmt: skip
    assert not trial.poll()
    try:
        time.sleep(0.3)
        trial._end("pruned", "worse than the median trial")
    finally:
        stop_all(trial.runs)
    assert trial.record is not None and trial.record.state == "pruned" and trial.record.seconds >= 0.3


def test_the_stages_that_all_trials_begin_with_use_minutes_too(world: Path, tmp_path: Path) -> None:
    sweep = _sweep(world, tmp_path, 1.0)
    tmp_path.joinpath("sweep").mkdir()
    journal = Journal(sweep.recipes.paths.journal, sweep.search)
    sweep.start_seconds = 100.0
    assert not sweep._is_out_of_time(journal)  # a sweep has at least one group of trials
    journal.append(TrialRecord(number=1, values={RATE.key: 1e-3}, state="complete", value=2.0, seconds=1.0))
    assert sweep._is_out_of_time(journal)
    sweep.start_seconds = 10.0
    assert not sweep._is_out_of_time(journal)


def test_the_time_of_a_start_that_is_finished_is_that_of_its_runs(world: Path, tmp_path: Path) -> None:
    sweep = _sweep(world, tmp_path, 1.0)
    start = sweep.recipes.start(1)
    assert start is not None
    last = RunDirectory(sweep.recipes.paths.start(1)).stage("pretrain")
    run = RunProcess(recipe=start, last_stage=last)
    run.start()
    time.sleep(0.2)
    run.kill()
    last.result_file.parent.mkdir(parents=True, exist_ok=True)
    last.result_file.write_text("{}", encoding="utf-8")
    assert train_start(sweep.recipes, 1, lambda text: None) == pytest.approx(run.seconds, abs=1e-3) and run.seconds >= 0.2
