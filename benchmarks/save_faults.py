"""Faults at every step of a save: no space, I/O error, truncation, a flipped bit, a missing file, a rename that is lost.

A small run saves every three steps. While it saves at step 9, one operation on the disk fails or is spoilt; if the save does
not notice, the process dies at the next update, as in a power cut. Then the run is resumed without faults. It survives if
it continues from the newest checkpoint that verifies, loses at most one interval, reports the checkpoint that it skipped or
could not write, and ends with the bytes of a run without a fault.
"""

import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from kill_resume import recipe as three_stages
from measure import options, report

import fledge.checkpoint.checkpoint as checkpoint
import fledge.model.weights as directory
from fledge.pipeline import Pipeline
from fledge.recipe import Recipe, recipe_from_dict
from fledge.run import Console
from fledge.training.train_step import TrainStep
from fledge.world import Sizes, build

STEPS, EVERY, AT = 15, 3, 9
ERRNO = {"no space": errno.ENOSPC, "I/O error": errno.EIO}
SPOIL = ("truncation", "bit flip", "missing file")


class Killed(BaseException):
    """The end of the process: no handler catches it."""


class Disk:
    """Counts the operations of a save on the disk, and lets one operation fail."""

    def __init__(self, fault: str | None = None, index: int = -1) -> None:
        self.fault, self.index = fault, index
        self.done: list[tuple[str, str]] = []
        self.spoilt = False
        self.active = False

    def __call__(self, kind: str, target: Path, act: Callable[[], Any]) -> Any:
        """Perform an operation of a save on a path, unless the fault is at this operation."""
        if not (self.active and threading.current_thread().name.startswith("fledge-save")):
            return act()
        number = len(self.done)
        self.done.append((kind, target.name))
        if number != self.index:
            return act()
        if self.fault in ERRNO:
            code = ERRNO[self.fault]
            raise OSError(code, os.strerror(code), str(target))
        self.spoilt = True
        if self.fault == "lost rename":
            raise Killed
        result = act()
        self._spoil(target / "model" / "model.safetensors" if target.is_dir() else target)
        return result

    def _spoil(self, file: Path) -> None:
        if self.fault == "missing file":
            file.unlink()
        elif self.fault == "truncation":
            os.truncate(file, file.stat().st_size // 2)
        else:
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)


@contextmanager
def watched(disk: Disk) -> Iterator[None]:
    """Route every write, flush and rename of a save through `disk`."""
    write_text, replace, mkdir, symlink, sync = Path.write_text, Path.replace, Path.mkdir, Path.symlink_to, checkpoint._fsync
    save_file = safetensors.torch.save_file
    swapped: list[tuple[Any, str, Any]] = [
        (Path, "write_text", lambda path, *a, **k: disk("write", path, lambda: write_text(path, *a, **k))),
        (Path, "replace", lambda path, to: disk("rename", Path(to), lambda: replace(path, to))),
        (Path, "mkdir", lambda path, *a, **k: disk("mkdir", path, lambda: mkdir(path, *a, **k))),
        (Path, "symlink_to", lambda path, to: disk("link", path, lambda: symlink(path, to))),
        (checkpoint, "_fsync", lambda path: disk("flush", path, lambda: sync(path))),
        (directory, "save_file", lambda t, path, **k: disk("write", Path(path), lambda: save_file(t, path, **k))),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in swapped]
    for owner, name, new in swapped:
        setattr(owner, name, new)
    try:
        yield
    finally:
        for owner, name, old in before:
            setattr(owner, name, old)


class RecordingConsole(Console):
    """A console that keeps its lines and prints nothing."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def log(self, text: str = "", style: str | None = None) -> None:
        """Keep a line."""
        self.lines.append(text)


def make_recipe(world: Path, output: Path) -> Recipe:
    """The pretraining stage of `kill_resume` with fewer steps."""
    tree = three_stages(world)
    stage = {**tree["stages"]["pretrain"], "duration": f"{STEPS} steps", "checkpoint": {"every_steps": EVERY}}
    return recipe_from_dict({**tree, "output": str(output), "stages": {"pretrain": stage}})


def run(recipe: Recipe, disk: Disk, console: Console) -> bool:
    """Train, with the fault in the save of step AT; whether the run came to its end."""
    step = TrainStep._step

    def watching(updater: TrainStep, *arguments: Any) -> Any:
        if disk.spoilt:
            raise Killed
        return step(updater, *arguments)

    begin = checkpoint.save_checkpoint

    def saving(folder: Path, snapshot: Any, *arguments: Any) -> Any:
        disk.active = snapshot.state.step == AT
        return begin(folder, snapshot, *arguments)

    import fledge.checkpoint.async_save as saver

    TrainStep._step, saver.save_checkpoint = watching, saving  # type: ignore[method-assign]
    try:
        with watched(disk):
            Pipeline(recipe, console).run()
    except Killed:
        return False
    finally:
        TrainStep._step, saver.save_checkpoint = step, begin  # type: ignore[method-assign]
    return True


def final(folder: Path) -> bytes:
    """The weights and the optimizer state at the end of the run."""
    last = folder / "run" / "pretrain" / "checkpoints" / "last"
    return (last / "model" / "model.safetensors").read_bytes() + (last / "state" / "optimizer.safetensors").read_bytes()


def trial(base: Path, prepared: Path, fault: str, index: int, expected: bytes) -> str | None:
    """None if the run survives, else the problem."""
    folder = base / "trial"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(prepared, folder, symlinks=True)
    recipe, disk, console = make_recipe(base / "world", folder), Disk(fault, index), RecordingConsole()
    ended = run(recipe, disk, console)
    reported = any("the checkpoint of step 9" in line for line in console.lines)
    if not ended:
        again = RecordingConsole()
        Pipeline(recipe, again).run(resume=True)
        going = [line for line in again.lines if line.startswith("resuming from step")]
        reached = int(going[0].split()[3].rstrip(",")) if going else -1
        reported = reported or any("is not used" in line for line in again.lines) or reached in (AT - EVERY, AT)
        if reached < AT - EVERY:
            return f"went on from step {reached}"
    if not reported:
        return "reported nothing"
    return None if final(folder) == expected else "ended with other bytes"


def main() -> None:
    """Measure and print the results as one line of JSON."""
    chosen = options(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        build(5, base / "world", Sizes(pretrain=300, sft=10, preference=10, validation=60, questions=20))
        undisturbed = Disk()
        if not run(make_recipe(base / "world", base / "whole"), undisturbed, Console(quiet=True)):
            raise SystemExit("the run without faults did not end")
        expected = final(base / "whole")
        prepared = base / "prepared"
        prepared.mkdir()
        trials = [(fault, n) for n in range(len(undisturbed.done)) for fault in faults(undisturbed.done[n][0])]
        if chosen.quick:
            trials = trials[:: max(1, len(trials) // 15)]
        bad = []
        for fault, n in trials:
            problem = trial(base, prepared, fault, n, expected)
            print(f"{fault} at operation {n + 1} ({' '.join(undisturbed.done[n])}): {problem or 'survived'}", flush=True)
            bad += [[fault, *undisturbed.done[n], problem]] if problem else []
    report({"faults": len(trials), "survived": len(trials) - len(bad), "operations": len(undisturbed.done), "bad": bad})
    if bad:
        raise SystemExit(1)


def faults(kind: str) -> list[str]:
    """The faults that an operation of this kind can have."""
    return [*ERRNO, *(SPOIL if kind == "write" else ()), *((*SPOIL, "lost rename") if kind == "rename" else ())]


if __name__ == "__main__":
    main()
