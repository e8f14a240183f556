"""Checkpoint directories: a model directory and the training state, with a manifest that is written last.

A checkpoint is valid only if every file has the size and hash of the manifest. It is written under a temporary name, flushed to
disk and renamed, so a kill or a full disk at any moment leaves the previous checkpoint untouched.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from fledge.checkpoint.find import ON_REQUEST, REPLACED, WRITING, latest_checkpoint, step_name
from fledge.checkpoint.state import Snapshot, Weights
from fledge.distributed.context import DistributedContext
from fledge.distributed.fsdp import load_sharded, load_unsharded, save_sharded
from fledge.errors import FledgeError, PeerLostError
from fledge.model.weights import write_tensors
from fledge.run.file_hash import hash_files
from fledge.run.text_files import write_and_verify

FORMAT = 1
SHARDED_OPTIMIZER_DIR = "optimizer"  # folder of optimizer states written by several ranks
DISK_MARGIN_BYTES = 2**22  # free disk space required in addition to the tensors
WriteModel = Callable[[Path, Weights], None]


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class CheckpointError(FledgeError):
    """A checkpoint could not be written; earlier checkpoints are untouched."""


def save_checkpoint(
    folder: Path, snapshot: Snapshot, write_model: WriteModel, ranks: DistributedContext | None = None
) -> tuple[Path, int]:
    """Write one checkpoint, read its tensors back, and return its path and size in bytes.

    `write_model` writes a model directory. `ranks`: the ranks that hold the shards of a sharded snapshot; every rank writes,
    and the main process completes the checkpoint (the others return size 0). Raises CheckpointError if the disk is full or
    returns other bytes than were written; earlier checkpoints stay valid."""
    step, ranks = snapshot.state.step, ranks or DistributedContext()
    target, tmp_path = folder / step_name(step), folder / f"{WRITING}{step_name(step)}"
    try:
        main = ranks.is_main_process
        _on_all_ranks(ranks, partial(_prepare_tmp_path, folder, tmp_path, snapshot) if main else None)
        if snapshot.sharded:
            _on_all_ranks(ranks, partial(save_sharded, snapshot.tensors, tmp_path / "state" / SHARDED_OPTIMIZER_DIR, ranks))
        size = _on_all_ranks(ranks, partial(_write_and_commit, tmp_path, target, snapshot, write_model) if main else None) or 0
    except PeerLostError:
        raise
    except Exception as error:  # safetensors wraps system errors in its own type
        shutil.rmtree(tmp_path, ignore_errors=True)
        raise CheckpointError(
            f"cannot write the checkpoint of step {step:,}: {_reason(error)}",
            where=str(folder),
            hint=f"free some space, then run the same command again; {_last_saved(folder)}",
        ) from error
    return target, size


def _on_all_ranks(ranks: DistributedContext, action: Callable[[], Any] | None) -> Any:
    """Run `action` on the ranks that have one and return its result. If it fails on any rank, every rank raises OSError."""
    result, reason, cause = None, None, None
    try:
        if action is not None:
            result = action()
    except PeerLostError:
        raise
    except Exception as error:
        if not ranks.is_distributed:
            raise
        reason, cause = _reason(error), error
    reasons = [message for message in ranks.all_gather_object(reason) if message is not None]
    if reasons:
        raise OSError(reasons[0]) from cause
    return result


def _prepare_tmp_path(folder: Path, tmp_path: Path, snapshot: Snapshot) -> None:
    """Create an empty directory to write to and check the free disk space."""
    shutil.rmtree(tmp_path, ignore_errors=True)
    (tmp_path / "state").mkdir(parents=True)
    if snapshot.sharded:
        (tmp_path / "state" / SHARDED_OPTIMIZER_DIR).mkdir()
    _check_disk_space(folder, snapshot.bytes)


def _write_and_commit(tmp_path: Path, target: Path, snapshot: Snapshot, write_model: WriteModel) -> int:
    """Write the remaining files and the manifest, then rename the directory; returns the size in bytes."""
    for name, weights in snapshot.models.items():
        write_model(tmp_path / name, weights)
    if not snapshot.sharded:
        write_tensors(snapshot.tensors, tmp_path / "state" / "optimizer.safetensors")
    write_and_verify(tmp_path / "state" / "trainer.json", json.dumps(asdict(snapshot.state), indent=1))
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    for path in files:
        _fsync(path)
    entries = {str(path.relative_to(tmp_path)): {"bytes": path.stat().st_size, "xxh3": hash_files(path)} for path in files}
    manifest = tmp_path / "manifest.json"
    step, on_request = snapshot.state.step, snapshot.state.saved_on_request
    write_and_verify(manifest, json.dumps({"format": FORMAT, "step": step, ON_REQUEST: on_request, "files": entries}, indent=1))
    for path in (manifest, *{path.parent for path in files}, tmp_path):
        _fsync(path)
    _commit(tmp_path, target)
    return sum(entry["bytes"] for entry in entries.values())


def _commit(tmp_path: Path, target: Path) -> None:
    """Rename `tmp_path` to `target` and flush the rename to disk."""
    if target.exists():
        replaced = target.with_name(f"{REPLACED}{target.name}")
        shutil.rmtree(replaced, ignore_errors=True)
        target.replace(replaced)
    tmp_path.replace(target)
    _fsync(target.parent)


def _reason(error: Exception) -> str:
    return error.what if isinstance(error, FledgeError) else getattr(error, "strerror", None) or str(error)


def _last_saved(folder: Path) -> str:
    try:
        latest = latest_checkpoint(folder)
    except FledgeError as error:  # the cause of the failed save, which is reported, may also prevent reading
        return f"the checkpoints that are saved cannot be read now: {error.what}"
    return "no checkpoint is saved yet" if latest is None else f"the last saved checkpoint is step {latest[1].step:,}"


def _check_disk_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + DISK_MARGIN_BYTES:
        margin = f"{needed / 2**20:,.1f} MiB, with {DISK_MARGIN_BYTES >> 20} MiB to spare"
        raise FledgeError(f"it needs {margin}, and {free / 2**20:,.1f} MiB are free")


def load_optimizer_state(path: Path, like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Load the tensors that a checkpoint stores in addition to the weights, for any number of ranks that wrote it.

    `like`: parameters by name; each tensor is then this rank's shard, placed like its parameter. None: full tensors.
    """
    unsharded, sharded = path / "state" / "optimizer.safetensors", path / "state" / SHARDED_OPTIMIZER_DIR
    if like is not None:
        return load_sharded(unsharded.parent if unsharded.exists() else sharded, like)
    return load_file(unsharded) if unsharded.exists() else load_unsharded(sharded)
