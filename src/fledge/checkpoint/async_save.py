"""Asynchronous checkpointing: a snapshot is copied first, then a thread writes it while training continues."""

import time
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from fledge.checkpoint.checkpoint import CheckpointError, WriteModel, save_checkpoint
from fledge.checkpoint.find import prune, step_name, update_symlink
from fledge.checkpoint.state import Snapshot
from fledge.distributed.context import DistributedContext
from fledge.errors import FledgeError
from fledge.run.threads import start_thread


@dataclass(frozen=True, kw_only=True)
class SaveResult:
    """The outcome of a save. `seconds`: writing time; `problem`: None if the checkpoint is valid; `remark`: what failed
    afterwards, when links were updated and old checkpoints removed."""

    step: int
    path: Path
    bytes: int
    seconds: float
    problem: CheckpointError | None = None
    remark: str | None = None


class AsyncCheckpointer:
    """Writes one checkpoint at a time, updates the links `last` and `best`, and removes old checkpoints.

    The main process writes; if the model is `sharded`, all ranks write.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        write_model: WriteModel,
        *,
        ranks: DistributedContext | None = None,
        sharded: bool = False,
        keep_first: bool = False,
    ) -> None:
        """`keep_first`: never remove the checkpoint of step 0, whose weights the stage still needs."""
        self.folder, self.keep, self.write_model, self.sharded = folder, keep, write_model, sharded
        self.keep_first = keep_first
        self.ranks = ranks or DistributedContext()
        self._write_ranks = self.ranks.new_group() if sharded else DistributedContext()  # the thread's own connections
        self._pending: Future[SaveResult] | None = None

    def save_async(self, snapshot: Snapshot) -> list[SaveResult]:
        """Wait for the previous save, start writing `snapshot`, and return the result of the previous save, if any."""
        finished = self.wait()
        if not (self.ranks.is_main_process or self.sharded):
            return finished
        self._pending = start_thread("fledge-save", self._write, snapshot)
        return finished

    def poll(self) -> list[SaveResult]:
        """The result of a finished save, unless it was returned before; never waits. Always empty if all ranks write, because
        the ranks finish at different moments."""
        return self.wait() if self._pending is not None and not self.sharded and self._pending.done() else []

    def wait(self) -> list[SaveResult]:
        """Wait for a running save and return its result, if there is one."""
        if self._pending is None:
            return []
        future, self._pending = self._pending, None
        return [future.result()]

    def _write(self, snapshot: Snapshot) -> SaveResult:
        start_time, state = time.monotonic(), snapshot.state
        try:
            path, size = save_checkpoint(self.folder, snapshot, self.write_model, self._write_ranks)
        except CheckpointError as problem:
            target, seconds = self.folder / step_name(state.step), time.monotonic() - start_time
            return SaveResult(step=state.step, path=target, bytes=0, seconds=seconds, problem=problem)
        remark = self.update_links_and_prune(path, state.step, state.best_step)
        seconds = time.monotonic() - start_time
        return SaveResult(step=state.step, path=path, bytes=size, seconds=seconds, remark=remark)

    def update_links_and_prune(self, path: Path, step: int, best_step: int | None) -> str | None:
        """Update the links to the newest and the best checkpoint and remove old ones, on the main process.

        Returns a sentence about what failed, or None; the checkpoint itself is valid in both cases. A later call completes the
        work of a process that was killed here.
        """
        if not self.ranks.is_main_process:
            return None
        try:
            update_symlink(self.folder, "last", path)
            if best_step is not None and (self.folder / step_name(best_step)).exists():
                update_symlink(self.folder, "best", self.folder / step_name(best_step))
            prune(self.folder, self.keep, best_step, step, self.keep_first)
        except (OSError, FledgeError) as error:
            return (
                f"the checkpoint of step {step:,} is valid, but updating the links or removing old checkpoints failed: {error}"
            )
        return None

    def close(self) -> None:
        """Wait for a running save."""
        if self._pending is not None:
            futures.wait([self._pending])
