"""What the doctor was given: a run of fledge, or a log of another trainer."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from fledge.errors import FledgeError
from fledge.run.directory import RunDirectory, StageDirectory
from fledge.run.text_files import read_json

MOST_LISTED = 12  # runs that an error names
RECIPE, EVENTS, PLAN = "recipe.yaml", "events.jsonl", "plan.json"


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is examined. `path`: as it was named. `run`: the run directory of fledge; None for other logs. `stage`: the stage
    that the path names; None: all."""

    path: Path
    run: Path | None = None
    stage: str | None = None

    @property
    def is_run(self) -> bool:
        """Whether this is a run of fledge, or a stage of one."""
        return self.run is not None

    def stage_directory(self, stage: str) -> StageDirectory:
        """The folder of a stage. Raises ValueError for a log without a run."""
        if self.run is None:
            raise ValueError("a log of another trainer has no stage directories")
        return RunDirectory(self.run).stage(stage)


def find_target(path: Path, stage: str | None = None) -> Target:
    """The target of a path; `stage`: the one to look at.

    Raises FledgeError if nothing is there, if the folder is empty, and if it holds several runs, which are then named.
    """
    if not path.exists():
        hint = "name a run of fledge (`ls runs` shows them), or a log file or output folder of another trainer"
        raise FledgeError("there is no such file or folder", where=str(path), hint=hint)
    if path.is_file():
        return _of_file(path, stage)
    if (path / RECIPE).is_file():
        return Target(path=path, run=path, stage=stage)
    if _is_stage(path) and (path.parent / RECIPE).is_file():
        _check_same_stage(path.name, stage, path)
        return Target(path=path, run=path.parent, stage=path.name)
    if not any(path.iterdir()):
        raise FledgeError("this folder is empty", where=str(path), hint="name the folder that the trainer wrote its log into")
    if runs := sorted(file.parent for file in path.glob("*/" + RECIPE)):
        raise _several_runs(path, runs)
    return Target(path=path, stage=stage)


def _of_file(path: Path, stage: str | None) -> Target:
    if path.name == EVENTS and (path.resolve().parents[1] / RECIPE).is_file():
        folder = path.resolve().parent
        _check_same_stage(folder.name, stage, path)
        return Target(path=path, run=folder.parent, stage=folder.name)
    if path.name == RECIPE:
        hint = "the doctor reads what a run wrote: name its folder; `fledge plan` looks at a recipe before it runs"
        raise FledgeError("this is a recipe, and no log", where=str(path), hint=hint)
    return Target(path=path, stage=stage)


def _is_stage(folder: Path) -> bool:
    return (folder / EVENTS).is_file() or (folder / PLAN).is_file()


def _check_same_stage(found: str, asked: str | None, path: Path) -> None:
    if asked is not None and asked != found:
        raise FledgeError(
            f"this is the stage '{found}', and --stage asks for '{asked}'", where=str(path), hint="leave --stage out"
        )


def _several_runs(path: Path, runs: list[Path]) -> FledgeError:
    names = ", ".join(run.name for run in runs[:MOST_LISTED])
    more = f" and {len(runs) - MOST_LISTED} more" if len(runs) > MOST_LISTED else ""
    what = f"this folder holds {len(runs)} runs: {names}{more}" if len(runs) > 1 else f"the run is in {runs[0].name}"
    return FledgeError(what, where=str(path), hint=f"name one of them: fledge doctor {runs[0]}")


def started_from(stage: StageDirectory) -> str | None:
    """The name of the earlier stage of the same run whose model a stage started from, by its start.json; None if there is
    none."""
    file = stage.root / "start.json"
    source = read_json(file, dict[str, Any]).get("source") if file.is_file() else None
    if not isinstance(source, str):
        return None
    run, parts = stage.root.parent.resolve().name, Path(source).parts  # the run may have been moved since
    return next((below for part, below in pairwise(parts) if part == run), None)
