"""Checkpoints: a model directory and the state to go on from, under a manifest that is written last.

A checkpoint exists only if every file has the size and hash of its manifest. It is written beside, flushed to disk
and renamed, so a kill or a full disk at any moment leaves the one before it untouched.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import xxhash
from safetensors.torch import load_file
from torch import Tensor

from fledge.distributed.context import DistributedContext
from fledge.distributed.fsdp import load_sharded, load_unsharded, save_sharded
from fledge.errors import FledgeError, PeerLostError
from fledge.model.weights import write_tensors
from fledge.run.text_files import write_and_verify

FORMAT = 1
SHARDED_OPTIMIZER_DIR = "optimizer"  # folder of what several ranks have written
DISK_MARGIN_BYTES = 2**22  # bytes on the disk beside the tensors
WRITING, REPLACED = ".writing-", ".replaced-"  # what is not whole yet, what is about to go
Weights = dict[str, Tensor]
WriteModel = Callable[[Path, Weights], None]


@dataclass
class TrainState:
    """Where training is. Everything random is a function of (seed, step), so there is no generator to save.

    `micro_batch_size` is set where memory ran out and micro-batches became smaller; `grad_scaler` is the loss scale of fp16.
    `failing_prompt_tests` are the names of the prompt tests that failed the last time; None before the first time. After
    roll-backs, `skipped_rows` are [first, count] of the stream of rows that are passed over, and `lr_factor` multiplies the
    learning rate.
    """

    step: int = 0
    tokens: int = 0
    target_tokens: int = 0
    by_source: list[int] = field(default_factory=list)
    clipped_steps: int = 0
    micro_batch_size: int | None = None
    grad_scaler: dict[str, float] | None = None
    seconds: float = 0.0
    last_eval_step: int = 0
    last_prompt_test_step: int = 0
    failing_prompt_tests: list[str] | None = None
    best_loss: float | None = None
    best_step: int | None = None
    evals_since_best: int = 0
    stop_reason: str | None = None
    skipped_rows: list[list[int]] = field(default_factory=list)
    lr_factor: float = 1.0
    rollbacks: int = 0


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


@dataclass(frozen=True)
class Snapshot:
    """A moment of training, copied, so that training may go on while it is written. `models` are weights by the name of
    their folder: `model`, to go on from, and `averaged`, to use, where weights are averaged. `divided`: `tensors` are this
    rank's part, and `models` are there on the first rank only."""

    state: TrainState
    models: dict[str, Weights]
    tensors: Weights
    divided: bool = False

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.nbytes for weights in (*self.models.values(), self.tensors) for tensor in weights.values())


class CheckpointError(FledgeError):
    """A checkpoint could not be written; those before it are untouched."""


def to_cpu_copy(tensors: Mapping[str, Tensor]) -> Weights:
    """In main memory, apart from the originals."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def save_checkpoint(
    folder: Path, snapshot: Snapshot, write_model: WriteModel, ranks: DistributedContext | None = None
) -> tuple[Path, int]:
    """Write one checkpoint and read its tensors back; returns its path and size in bytes. `write_model` writes a model
    directory. CannotSave where the disk refuses, or has not kept what was written, with nothing lost.

    `ranks`: those that a divided snapshot is of. All of them write; the first one makes it whole. Size 0 for the others."""
    step, ranks = snapshot.state.step, ranks or DistributedContext()
    target, beside = folder / step_name(step), folder / f"{WRITING}{step_name(step)}"
    try:
        _on_all_ranks(ranks, ranks.is_main_process and partial(_begin, folder, beside, snapshot))
        if snapshot.divided:
            _on_all_ranks(ranks, partial(save_sharded, snapshot.tensors, beside / "state" / SHARDED_OPTIMIZER_DIR, ranks))
        size = _on_all_ranks(ranks, ranks.is_main_process and partial(_complete, beside, target, snapshot, write_model)) or 0
    except PeerLostError:
        raise
    except Exception as error:  # safetensors wraps the system's error in its own
        shutil.rmtree(beside, ignore_errors=True)
        kept = latest_checkpoint(folder)
        raise CheckpointError(
            f"cannot write the checkpoint of step {step:,}: {_reason(error)}",
            where=str(folder),
            hint=f"free some space, then go on with the same command; what is saved is {_named(kept)}",
        ) from error
    return target, size


def _on_all_ranks(ranks: DistributedContext, act: Callable[[], Any] | bool) -> Any:
    """Do something on the ranks that have something to do, and return what comes of it; OSError on all of them where it
    fails on one."""
    result, reason, cause = None, None, None
    try:
        if callable(act):
            result = act()
    except PeerLostError:
        raise
    except Exception as error:
        if ranks.alone:
            raise
        reason, cause = _reason(error), error
    reasons = [found for found in ranks.all_gather_object(reason) if found is not None]
    if reasons:
        raise OSError(reasons[0]) from cause
    return result


def _begin(folder: Path, beside: Path, snapshot: Snapshot) -> None:
    """An empty place to write to."""
    shutil.rmtree(beside, ignore_errors=True)
    (beside / "state").mkdir(parents=True)
    if snapshot.divided:
        (beside / "state" / SHARDED_OPTIMIZER_DIR).mkdir()
    _check_disk_space(folder, snapshot.bytes)


def _complete(beside: Path, target: Path, snapshot: Snapshot, write_model: WriteModel) -> int:
    """Write what is not written yet, the manifest last, and put all where it belongs; returns the size."""
    for name, weights in snapshot.models.items():
        write_model(beside / name, weights)
    if not snapshot.divided:
        write_tensors(snapshot.tensors, beside / "state" / "optimizer.safetensors")
    write_and_verify(beside / "state" / "trainer.json", json.dumps(asdict(snapshot.state), indent=1))
    files = sorted(path for path in beside.rglob("*") if path.is_file())
    for path in files:
        _sync(path)
    entries = {str(path.relative_to(beside)): {"bytes": path.stat().st_size, "xxh3": _hash(path)} for path in files}
    manifest = beside / "manifest.json"
    write_and_verify(manifest, json.dumps({"format": FORMAT, "step": snapshot.state.step, "files": entries}, indent=1))
    for place in (manifest, *{path.parent for path in files}, beside):
        _sync(place)
    _commit(beside, target)
    return sum(entry["bytes"] for entry in entries.values())


def _commit(beside: Path, target: Path) -> None:
    """Rename, and keep it so on the disk."""
    if target.exists():
        replaced = target.with_name(f"{REPLACED}{target.name}")
        shutil.rmtree(replaced, ignore_errors=True)
        target.replace(replaced)
    beside.replace(target)
    _sync(target.parent)


def _reason(error: Exception) -> str:
    return error.what if isinstance(error, FledgeError) else getattr(error, "strerror", None) or str(error)


def _named(kept: tuple[Path, TrainState] | None) -> str:
    return "nothing yet" if kept is None else f"step {kept[1].step:,}"


def _check_disk_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + DISK_MARGIN_BYTES:
        raise FledgeError(f"it takes {needed / 2**20:,.0f} MiB and {free / 2**20:,.0f} MiB are free")


def update_symlink(folder: Path, name: str, target: Path) -> None:
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


def latest_checkpoint(
    folder: Path, refused: Callable[[Path, str], None] | None = None, before: int | None = None
) -> tuple[Path, TrainState] | None:
    """The newest checkpoint (of a step below `before`) that verifies; those that do not are reported to `refused` and
    passed over."""
    paths = sorted(folder.glob("step-*"), reverse=True)
    return _first_whole([path for path in paths if before is None or path.name < step_name(before)], refused)


def _first_whole(paths: list[Path], refused: Callable[[Path, str], None] | None = None) -> tuple[Path, TrainState] | None:
    for path in paths:
        problem = verify(path)
        if problem is None:
            state = json.loads((path / "state" / "trainer.json").read_text(encoding="utf-8"))
            return path, TrainState(**state)
        if refused:
            refused(path, problem)
    return None


def latest_before(folder: Path, since: int) -> tuple[Path, TrainState] | None:
    """The newest whole checkpoint from before update number `since`; where all of those are gone, the oldest one."""
    return latest_checkpoint(folder, before=since) or _first_whole(sorted(folder.glob("step-*")))


def load_optimizer_state(path: Path, like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The tensors of a checkpoint beside its weights, by however many ranks they were written: whole, or this rank's parts of
    them, divided as the parameters are that they belong to."""
    file, parts = path / "state" / "optimizer.safetensors", path / "state" / SHARDED_OPTIMIZER_DIR
    if like is not None:
        return load_sharded(file.parent if file.exists() else parts, like)
    return load_file(file) if file.exists() else load_unsharded(parts)


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
    for mark in (WRITING, REPLACED):
        for path in folder.glob(f"{mark}*"):
            shutil.rmtree(path, ignore_errors=True)
