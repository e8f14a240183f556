"""Checkpoints written while training goes on: what is saved is copied first, the rest happens in a thread of its own."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fledge.checkpoint.checkpoint import (
    CheckpointError,
    Snapshot,
    WriteModel,
    prune,
    save_checkpoint,
    step_name,
    update_symlink,
)
from fledge.distributed.context import DistributedContext


@dataclass(frozen=True)
class SaveResult:
    """What became of a save. `seconds` is how long writing took; `problem` is None where it is whole; `remark` is what could
    not be done afterwards, to the links and to old checkpoints."""

    step: int
    path: Path
    bytes: int
    seconds: float
    problem: CheckpointError | None = None
    remark: str | None = None


class AsyncCheckpointer:
    """Writes one checkpoint at a time, points to the newest and the best one and removes what is not kept.

    Of several ranks the first one writes, or, where the model is `sharded`, all of them do."""

    def __init__(
        self, folder: Path, keep: int, write_model: WriteModel, ranks: DistributedContext | None = None, sharded: bool = False
    ) -> None:
        self.folder, self.keep, self.write_model, self.sharded = folder, keep, write_model, sharded
        self.ranks = ranks or DistributedContext()
        self._ranks = self.ranks.new_group() if sharded else DistributedContext()  # those that the thread writes with
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fledge-save")
        self._writing: Future[SaveResult] | None = None

    def save_async(self, snapshot: Snapshot) -> list[SaveResult]:
        """Start to write; returns what became of the save before, which is waited for."""
        before = self.wait()
        if not (self.ranks.is_main_process or self.sharded):
            return before
        self._writing = self._thread.submit(self._write, snapshot)
        return before

    def poll(self) -> list[SaveResult]:
        """The save that has ended since it was last asked, if there is one; never waits. Nothing where all ranks write: they
        would not agree on the moment."""
        return self.wait() if self._writing is not None and not self.sharded and self._writing.done() else []

    def wait(self) -> list[SaveResult]:
        """The same, once the one under way has ended."""
        if self._writing is None:
            return []
        writing, self._writing = self._writing, None
        return [writing.result()]

    def _write(self, snapshot: Snapshot) -> SaveResult:
        started, state = time.monotonic(), snapshot.state
        try:
            path, size = save_checkpoint(self.folder, snapshot, self.write_model, self._ranks)
        except CheckpointError as problem:
            return SaveResult(state.step, self.folder / step_name(state.step), 0, time.monotonic() - started, problem)
        remark = self.update_links_and_prune(path, state.step, state.best_step)
        return SaveResult(state.step, path, size, time.monotonic() - started, remark=remark)

    def update_links_and_prune(self, path: Path, step: int, best_step: int | None) -> str | None:
        """Point to the newest and the best checkpoint and remove the rest; also after a kill in between. Returns what could
        not be done: the checkpoint is whole all the same. That is up to the first rank."""
        if not self.ranks.is_main_process:
            return None
        try:
            update_symlink(self.folder, "last", path)
            if best_step is not None and (self.folder / step_name(best_step)).exists():
                update_symlink(self.folder, "best", self.folder / step_name(best_step))
            prune(self.folder, self.keep, best_step, step)
        except OSError as error:
            return f"the checkpoint of step {step:,} is whole, but links or old ones could not be put in order: {error}"
        return None

    def close(self) -> None:
        """Let what is under way finish, and end the thread."""
        self._thread.shutdown(wait=True)
