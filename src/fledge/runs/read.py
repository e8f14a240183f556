"""Runs, stages and checkpoints as a person names them, and what their directories say."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.checkpoint.find import step_name, step_number
from fledge.errors import FledgeError
from fledge.evaluate.records import AFTER, SetResult, read_set_results, set_result_files
from fledge.recipe import load_recipe
from fledge.report.read_run import check_is_run, is_stage_directory, stage_names
from fledge.run import RunDirectory, StageDirectory, check_layout
from fledge.run.events import read_events

RUNS = "runs"  # where runs are, unless a recipe says otherwise
STEP = re.compile(r"(.+)@(?:step-)?(\d+)")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is looked at or compared: a run, one of its stages, a step of a stage, or a folder of results of `fledge eval`.

    `name`: as the person named it. `run`: None for a folder of results. `step`: None for the end of the stage.
    """

    name: str
    folder: Path
    run: Path | None = None
    stage: str | None = None
    step: int | None = None

    @property
    def stages(self) -> list[str]:
        """The stages of the run, or the one that is meant."""
        if self.run is None:
            return []
        return stages_of(self.run) if self.stage is None else [self.stage]

    def directory(self, stage: str) -> StageDirectory:
        """The directory of one of the stages."""
        assert self.run is not None
        return RunDirectory(self.run).stage(stage)


def find_subject(name: str) -> Subject:
    """The run, stage, step or folder that a person names: a path, or the name of a run in `runs`, or a stage with a step such
    as `runs/mine/sft@step-200`. Raises FledgeError if there is none."""
    match = None if Path(name).exists() else STEP.fullmatch(name)
    found = _find(match[1] if match else name, name)
    if match is None:
        return found
    step = int(match[2])
    if found.run is None:
        raise FledgeError("a step belongs to a stage", where=name, hint="write RUN/STAGE@step-N")
    stage = found.stage or found.stages[-1]
    known = metrics_by_step(found.directory(stage))
    if step not in known:
        hint = f"there are {', '.join(f'step-{one}' for one in known)}" if known else "the stage has not been evaluated yet"
        raise FledgeError(f"nothing was evaluated at step {step:,} of {stage}", where=name, hint=hint)
    return Subject(name=name, folder=found.directory(stage).root, run=found.run, stage=stage, step=step)


def _find(location: str, name: str) -> Subject:
    path = Path(location).expanduser()
    if not path.is_dir() and not path.is_absolute() and (Path(RUNS) / path).is_dir():
        path = Path(RUNS) / path
    if not path.is_dir():
        what = "this is a file" if path.exists() else "there is no such run"
        raise FledgeError(what, where=name, hint="`fledge runs list` shows the runs")
    if is_stage_directory(path) and (path.parent / "recipe.yaml").exists():
        check_layout(path.parent)
        return Subject(name=name, folder=path, run=path.parent, stage=path.name)
    if set_result_files(path) and not (path / "recipe.yaml").exists():
        return Subject(name=name, folder=path)
    check_layout(path)
    check_is_run(path)
    if not stages_of(path):
        raise FledgeError("no stage of this run has begun", where=name)
    return Subject(name=name, folder=path, run=path)


def stages_of(run: Path) -> list[str]:
    """The stages of a run that have begun, in order."""
    return [name for name in stage_names(run, None) if (run / name).is_dir()]


def metrics_by_step(directory: StageDirectory) -> dict[int, dict[str, Any]]:
    """The metrics on validation data at each step at which a stage was evaluated, or at which sets were asked, in the order of
    the steps; empty where there was no evaluation of the step."""
    found = {
        event["step"]: {name.removeprefix("eval/"): value for name, value in event.items() if name.startswith("eval/")}
        for event in read_events(directory.events)
        if event["kind"] == "eval"
    }
    asked = (step_number(path.name) for path in directory.evaluations.glob("step-*"))
    return {step: found.get(step, {}) for step in sorted({*found, *(step for step in asked if step is not None)})}


def plan_values(directory: StageDirectory) -> dict[str, Any]:
    """The plan of a stage as it was begun; empty where it cannot be read."""
    try:
        plan = json.loads(directory.plan.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return plan if isinstance(plan, dict) else {}


def planned_steps(plan: Mapping[str, Any]) -> int | None:
    """The steps of a stage by its plan; None where it does not say."""
    steps = plan.get("steps")
    return steps if isinstance(steps, int) else None


def metrics(subject: Subject, stage: str) -> dict[str, Any]:
    """The metrics on validation data of a subject, after a stage or at its step."""
    directory = subject.directory(stage)
    return directory.metrics(AFTER) if subject.step is None else metrics_by_step(directory).get(subject.step, {})


def sets(subject: Subject, stage: str | None, moment: str | None = None) -> dict[str, SetResult]:
    """The results of sets of a subject by name: of a stage at a moment (after it, or at its step), or in its folder."""
    if stage is None:
        folder = subject.folder
    else:
        at = moment or (AFTER if subject.step is None else step_name(subject.step))
        folder = subject.directory(stage).set_results(at)
    return read_set_results(folder)


def recipe_values(run: Path) -> dict[str, Any]:
    """The recipe of a run as plain values, with the defaults of keys that it lacks. Raises FledgeError if it cannot be read."""
    return load_recipe([str(RunDirectory(run).recipe)]).model_dump(mode="json")
