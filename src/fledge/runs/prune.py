"""`fledge runs prune`: checkpoints of finished stages that nothing goes on from are removed."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fledge.checkpoint.find import DAMAGED, REMOVED, REPLACED, WRITING, remove_checkpoint, step_name
from fledge.errors import FledgeError
from fledge.run import RunDirectory, StageDirectory, exclusive_lock
from fledge.run.directory import checkpoint_paths
from fledge.runs.listing import size_of
from fledge.runs.read import find_subject, stages_of

LINKS = ("last", "best")


@dataclass(frozen=True, kw_only=True)
class PrunedStage:
    """A stage of a run. `removed`: names of checkpoints that are not needed, with their bytes. `kept`: the others. `skipped`:
    why nothing of it is removed; empty otherwise."""

    stage: Path
    removed: dict[str, int]
    kept: list[str]
    skipped: str = ""

    @property
    def bytes(self) -> int:
        """What is freed."""
        return sum(self.removed.values())


def prune_runs(names: Sequence[str], remove: bool) -> list[PrunedStage]:
    """What is not needed of the checkpoints of runs; with `remove` it is gone afterwards.

    Of a finished stage the model that goes on, the first, the last and the best checkpoint stay, so that a report, a chat, a
    longer training and a way back find what they need; those between them, damaged ones and remains of killed processes go.
    Stages that are not finished stay as they are, and so do those whose links `last` and `best` are gone. Raises FledgeError
    for what is no run, before anything is removed, and for a run that another process writes."""
    runs = []
    for name in names:
        subject = find_subject(name)
        if subject.run is None or subject.stage is not None or subject.step is not None:
            raise FledgeError("this is no run", where=name, hint="name the folder of a run")
        runs.append(subject.run)
    found: list[PrunedStage] = []
    for run in dict.fromkeys(runs):
        with exclusive_lock(run):
            stages = [_of_stage(RunDirectory(run).stage(name)) for name in stages_of(run)]
            found += stages
            for stage in stages if remove else ():
                _remove(stage)
    return found


def _of_stage(directory: StageDirectory) -> PrunedStage:
    result, folder = directory.result(), directory.checkpoints
    steps = [path.name for path in checkpoint_paths(folder)]
    if result is None:
        return PrunedStage(stage=directory.root, removed={}, kept=steps, skipped="it is not finished")
    named = {step_name(step) for step in (0, result.get("step"), result.get("best_step")) if step is not None}
    needed = {(directory.root / result["model"]).resolve()} | {(folder / name).resolve() for name in LINKS}
    kept = [name for name in steps if name in named or any(_is_inside(one, folder / name) for one in needed)]
    if broken := [name for name in LINKS if not (folder / name).is_symlink() or not (folder / name).exists()]:
        why = f"checkpoints/{broken[0]} is no link to a checkpoint: the folder was copied or changed"
        return PrunedStage(stage=directory.root, removed={}, kept=steps, skipped=why)
    others = sorted(path.name for prefix in (DAMAGED, WRITING, REPLACED, REMOVED) for path in folder.glob(f"{prefix}*"))
    gone = [*(name for name in steps if name not in kept), *others]
    return PrunedStage(stage=directory.root, removed={name: size_of(folder / name) for name in gone}, kept=kept)


def _is_inside(path: Path, folder: Path) -> bool:
    return path.is_relative_to(folder.resolve())


def _remove(stage: PrunedStage) -> None:
    folder = StageDirectory(stage.stage).checkpoints
    for name in stage.removed:
        path = folder / name
        try:
            remove_checkpoint(path)
        except OSError as error:
            raise FledgeError(f"cannot be removed: {error.strerror}", where=os.fspath(path)) from None
