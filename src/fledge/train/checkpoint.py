"""Checkpoints: a model directory and the state to go on from, under a manifest that is written last.

A checkpoint exists only if every file has the size and hash of its manifest. It is written beside, flushed to disk
and renamed, so a kill or a full disk at any moment leaves the one before it untouched.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import xxhash
from safetensors.torch import load_file, save_file
from torch import Tensor

from fledge.errors import FledgeError

FORMAT = 1


@dataclass
class TrainState:
    """Where training is. Everything random is a function of (seed, step), so there is no generator to save.

    `micro` is set where memory ran out and micro-batches became smaller; `scale` is the loss scale of fp16.
    """

    step: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    by_source: list[int] = field(default_factory=list)
    clipped: int = 0
    micro: int | None = None
    scale: dict[str, float] | None = None
    seconds: float = 0.0
    best_loss: float | None = None
    best_step: int | None = None
    evaluations_without_gain: int = 0
    stop: str | None = None


def step_name(step: int) -> str:
    """Folder of a step's checkpoint."""
    return f"step-{step:08d}"


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_checkpoint(
    folder: Path, state: TrainState, write_models: Callable[[Path], None], tensors: dict[str, Tensor]
) -> tuple[Path, int]:
    """Write one checkpoint; returns its path and size in bytes. `write_models` writes `model/` (and what else is to be used)
    into a folder. FledgeError if the disk refuses, with nothing lost."""
    target, beside = folder / step_name(state.step), folder / f".writing-{step_name(state.step)}"
    try:
        shutil.rmtree(beside, ignore_errors=True)
        (beside / "state").mkdir(parents=True)
        write_models(beside)
        save_file(tensors, beside / "state" / "optimizer.safetensors")
        (beside / "state" / "trainer.json").write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
        files = sorted(path for path in beside.rglob("*") if path.is_file())
        entries = {str(path.relative_to(beside)): {"bytes": path.stat().st_size, "xxh3": _hash(path)} for path in files}
        for path in files:
            _sync(path)
        manifest = beside / "manifest.json"
        manifest.write_text(json.dumps({"format": FORMAT, "step": state.step, "files": entries}, indent=1), encoding="utf-8")
        _sync(manifest)
        _sync(beside)
        if target.exists():
            shutil.rmtree(target)
        beside.replace(target)
        _sync(folder)
    except Exception as error:  # safetensors wraps the system's error in its own
        shutil.rmtree(beside, ignore_errors=True)
        if isinstance(error, FledgeError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        kept = newest_checkpoint(folder)
        raise FledgeError(
            f"cannot write the checkpoint of step {state.step:,}: {reason}",
            where=str(folder),
            hint=f"free some space, then --resume goes on from {'step ' + str(kept[1].step) if kept else 'the beginning'}",
        ) from error
    return target, sum(entry["bytes"] for entry in entries.values())


def point(folder: Path, name: str, target: Path) -> None:
    """Make `best` or `last` point to a checkpoint, atomically."""
    beside = folder / f".{name}"
    beside.unlink(missing_ok=True)
    beside.symlink_to(target.name)
    beside.replace(folder / name)


def verify(path: Path) -> str | None:
    """None if the checkpoint is whole, else what is wrong with it."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        for name, entry in manifest["files"].items():
            file = path / name
            if not file.exists():
                return f"{name} is missing"
            if file.stat().st_size != entry["bytes"]:
                return f"{name} has {file.stat().st_size:,} bytes, its manifest says {entry['bytes']:,}"
            if _hash(file) != entry["xxh3"]:
                return f"{name} does not have the hash of its manifest"
    except FileNotFoundError:
        return "it has no manifest"
    except (ValueError, KeyError, TypeError, OSError) as error:
        return f"its manifest is damaged: {error}"
    return None


def newest_checkpoint(folder: Path, refused: Callable[[Path, str], None] | None = None) -> tuple[Path, TrainState] | None:
    """The newest checkpoint that verifies; those that do not are reported to `refused` and passed over."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        problem = verify(path)
        if problem is None:
            state = json.loads((path / "state" / "trainer.json").read_text(encoding="utf-8"))
            return path, TrainState(**state)
        if refused:
            refused(path, problem)
    return None


def optimizer_file(path: Path) -> dict[str, Tensor]:
    """The optimizer's tensors of a checkpoint."""
    return load_file(path / "state" / "optimizer.safetensors")


def prune(folder: Path, keep: int, best_step: int | None, step: int) -> None:
    """Remove all but the newest `keep` up to `step` and the best one, and what a killed process left half written.

    A checkpoint beyond `step` is one that did not verify when the run was resumed: it must not crowd out good ones.
    """
    paths = sorted(folder.glob("step-*"))
    kept = {path.name for path in [path for path in paths if path.name <= step_name(step)][-keep:]} | (
        {step_name(best_step)} if best_step is not None else set()
    )
    for path in paths:
        if path.name not in kept:
            shutil.rmtree(path)
    for path in folder.glob(".writing-*"):
        shutil.rmtree(path, ignore_errors=True)
