"""`fledge runs list`: the runs in a folder."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fledge.errors import FledgeError
from fledge.evaluate.records import AFTER
from fledge.run import RunDirectory
from fledge.run.events import read_events
from fledge.runs.read import plan_values, planned_steps, stages_of


@dataclass(frozen=True, kw_only=True)
class ListedRun:
    """A run in a folder. `stages`: the steps of each, trained and planned. `state`: finished, at a stage, or damaged with the
    reason. `loss`: the last validation loss; `verdict`: on the last finished stage; None where there is none."""

    name: str
    path: str
    stages: dict[str, tuple[int, int | None]]
    state: str
    bytes: int
    loss: float | None
    verdict: str | None


def list_runs(folder: Path) -> list[ListedRun]:
    """The runs in a folder, the newest last. Raises FledgeError if there is no such folder."""
    if not folder.is_dir():
        raise FledgeError("there is no such folder of runs", where=str(folder), hint="name the folder that holds the runs")
    found = [path for path in folder.iterdir() if (path / "recipe.yaml").is_file() and (path / "environment.json").is_file()]
    return [_listed(path) for path in sorted(found, key=lambda path: ((path / "recipe.yaml").stat().st_mtime, path.name))]


def _listed(path: Path) -> ListedRun:
    try:
        return _read(path)
    except FledgeError as error:
        state = f"damaged: {error.what}"
        return ListedRun(name=path.name, path=str(path), stages={}, state=state, bytes=size_of(path), loss=None, verdict=None)


def _read(path: Path) -> ListedRun:
    run, stages, names = RunDirectory(path), {}, stages_of(path)
    loss, verdict, results = None, None, {}
    for name in names:
        directory = run.stage(name)
        results[name] = result = directory.result()
        steps, last = 0, None
        for event in read_events(directory.events):
            steps = max(steps, event["step"])
            last = event.get("eval/loss", last)
        stages[name] = steps, planned_steps(plan_values(directory))
        loss = last if result is None else directory.metrics(AFTER).get("loss", last)
        if result is not None and result.get("verdict"):
            verdict = result["verdict"]["decision"]
    unfinished = [name for name in names if results[name] is None]
    state = "finished" if run.summary.exists() and not unfinished else f"at {unfinished[0]}" if unfinished else "between stages"
    return ListedRun(
        name=path.name, path=str(path), stages=stages, state=state, bytes=size_of(path), loss=loss, verdict=verdict
    )


def size_of(path: Path) -> int:
    """Bytes of all files in a folder; those that cannot be read count as none, links as themselves."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue
    return total


def as_json(runs: list[ListedRun]) -> list[dict[str, Any]]:
    """The runs as JSON values."""
    return [asdict(run) for run in runs]
