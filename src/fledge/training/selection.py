"""The checkpoint with which a stage ends: the last one, or the one with the best evaluation."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from fledge.checkpoint.checkpoint import step_name
from fledge.checkpoint.state import TrainState


def selected_step(
    select: Literal["auto", "last", "best"], state: TrainState, checkpoints: Path, log: Callable[[str, str], None]
) -> int:
    """The step of the checkpoint that is the result of a stage: the last one, or the best one if `select` is best and it was
    saved. `log` gets warnings, with their style."""
    best = state.best_step
    if select != "best" or best == state.step:
        return state.step
    if best is None:
        log("warning: no evaluation gave a finite loss: the last checkpoint is the result", "yellow")
        return state.step
    if not (checkpoints / step_name(best)).exists():
        log(f"warning: the best checkpoint, of step {best:,}, was not saved: the last one is the result", "yellow")
        return state.step
    return best
