"""Checkpoints while a stage trains: when one is written, how its result is reported, and which one training resumes from."""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from fledge.checkpoint.async_save import AsyncCheckpointer, SaveResult
from fledge.checkpoint.checkpoint import CheckpointError
from fledge.checkpoint.find import checkpoint_to_resume, latest_before, set_aside_later
from fledge.checkpoint.state import TrainState
from fledge.findings import Finding
from fledge.run import Console
from fledge.training.hooks.hook import HookContext

Moment = tuple[int, int, int, int]  # steps: of the state, of the last evaluation, of the last prompt tests, of the last sets


def _moment(state: TrainState) -> Moment:
    return state.step, state.last_eval_step, state.last_prompt_test_step, state.last_set_step


def _finding(problem: CheckpointError) -> Finding:
    """The alert for a checkpoint that could not be written."""
    return Finding(
        check="checkpoint", severity="error", message=problem.what, where=problem.where or "", hint=problem.hint or ""
    )


class Checkpointing:
    """Saves the state before the first step, at an interval, at a best evaluation and at the end of a stage.

    A checkpoint is written while training continues. A failed write is reported, and the next save writes again.
    """

    def __init__(self, checkpointer: AsyncCheckpointer, every_steps: int, total_steps: int) -> None:
        self.checkpointer, self.every_steps, self.total_steps = checkpointer, every_steps, total_steps
        self.folder, self.ranks = checkpointer.folder, checkpointer.ranks
        self._saved: Moment | None = None  # of the newest checkpoint
        self._refused: CheckpointError | None = None  # why the newest save was not begun

    # -- saving -----------------------------------------------------------------------------------------------------

    def due(self, state: TrainState) -> bool:
        """Whether to save now: at the interval, at the best evaluation so far, and at the end of the stage."""
        at_interval = state.step == self.total_steps or state.step % self.every_steps == 0
        return at_interval or state.best_step == state.step or state.stop_reason is not None

    def run(self, context: HookContext) -> None:
        """Begin to write a checkpoint, unless the newest checkpoint has this state already."""
        if self._saved != _moment(context.state):
            self.save(context)

    def save(self, context: HookContext) -> None:
        """Wait for the previous checkpoint, then begin to write a new one."""
        started = time.monotonic()
        self._refused = None if self.ranks.broadcast_object(context.logger.flush()) else self._events_missing(context)
        if self._refused is not None:
            return
        self._report(context, self.checkpointer.save_async(context.trainable.snapshot(context.state)))
        self._saved = _moment(context.state)
        context.add_seconds("save", time.monotonic() - started)

    def poll(self, context: HookContext) -> None:
        """Report a checkpoint whose write has finished, if there is one."""
        self._report(context, self.checkpointer.poll())

    def wait(self, context: HookContext, must_succeed: bool = False) -> None:
        """Wait for the checkpoint that is being written, and report it. Raises CheckpointError if it `must_succeed` and cannot
        be written."""
        self._report(context, self.checkpointer.wait(), must_succeed)
        if must_succeed and self._refused is not None:
            raise self._refused

    def _events_missing(self, context: HookContext) -> CheckpointError:
        """Report that no checkpoint is written: a run that goes on from one has all events before it."""
        step = context.state.step
        error = CheckpointError(
            f"cannot write the checkpoint of step {step:,}: the disk refuses the events before it",
            where=str(self.folder),
            hint="free some space, then run the same command again",
        )
        self._saved = None
        context.logger.report(_finding(error), step)
        return error

    def _report(self, context: HookContext, results: list[SaveResult], must_succeed: bool = False) -> None:
        for result in results:
            if result.problem is None:
                values = {"path": result.path.name, "bytes": result.bytes, "seconds": round(result.seconds, 3)}
                context.logger.write("checkpoint", result.step, **values)
                if result.remark is not None:
                    finding = Finding(check="checkpoint", severity="warning", message=result.remark)
                    context.logger.report(finding, result.step)
                continue
            self._saved = None
            problem = result.problem
            context.logger.report(_finding(problem), result.step)
            if must_succeed:
                raise problem

    def close(self) -> None:
        """Wait for the checkpoint that is being written, and end its thread."""
        self.checkpointer.close()

    # -- resuming ---------------------------------------------------------------------------------------------------

    def latest(self, console: Console) -> tuple[Path, TrainState] | None:
        """The newest whole checkpoint, broadcast to all ranks; damaged checkpoints are reported on the console.

        Raises FledgeError if one cannot be read, or if there are checkpoints and none is whole."""

        def warn(path: Path, problem: str) -> None:
            console.log(f"warning: {path} is not used: {problem}", style="yellow")

        return self._broadcast(lambda: checkpoint_to_resume(self.folder, warn))

    def latest_before(self, step: int) -> tuple[Path, TrainState] | None:
        """The newest valid checkpoint before update number `step`, else the oldest valid one, broadcast to all ranks."""
        return self._broadcast(lambda: latest_before(self.folder, step))

    def _broadcast(self, find: Callable[[], tuple[Path, TrainState] | None]) -> tuple[Path, TrainState] | None:
        """The result of `find` on the main process, broadcast to all ranks."""
        checkpoint = find() if self.ranks.is_main_process else None
        fields = self.ranks.broadcast_object(checkpoint and [str(checkpoint[0]), asdict(checkpoint[1])])
        return fields and (Path(fields[0]), TrainState(**fields[1]))

    def resumed(self, path: Path, state: TrainState) -> str | None:
        """Record that training resumes from this checkpoint, set damaged later ones aside, update the links and remove old
        checkpoints. Returns a sentence about a failure, or None."""
        self._saved = None if state.saved_on_request else _moment(state)
        state.saved_on_request = False
        if self.ranks.is_main_process:
            try:
                set_aside_later(self.folder, state.step)
            except OSError as error:
                return f"damaged checkpoints beyond step {state.step:,} could not be renamed: {error}"
        return self.checkpointer.update_links_and_prune(path, state.step, state.best_step)
