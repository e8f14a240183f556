"""The interface of hooks, which run between two steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fledge.checkpoint.state import TrainState
from fledge.distributed.context import DistributedContext
from fledge.monitor.run_logger import RunLogger
from fledge.run import Console
from fledge.training.trainable import TrainableModel


@dataclass(frozen=True, kw_only=True)
class HookContext:
    """The objects that a hook may use. It may change `state`, for example the best loss or the reason to stop."""

    state: TrainState
    total_steps: int
    micro_batch_size: int
    trainable: TrainableModel
    logger: RunLogger
    console: Console
    ranks: DistributedContext
    stop_requested: Callable[[], bool]  # collective; equal on all ranks
    add_seconds: Callable[[str, float], None]  # time of a phase between two steps, for the next `system` event

    def finish_stage(self, reason: str) -> None:
        """End the stage after this step."""
        self.state.stop_reason = reason
        if self.state.step != self.total_steps:
            self.logger.write("stop", self.state.step, reason=reason)
            self.console.log(f"stopping early at step {self.state.step:,}: {reason}", style="yellow")


class Hook(Protocol):
    """Work between two steps that must not change the weights.

    All ranks call `due` and `run` with equal states, so `run` may be collective. A resumed run calls `due` again at the step of
    its checkpoint, and only the TrainState is restored: everything that a hook must remember, such as the step of its last run,
    is a field of TrainState.
    """

    def due(self, state: TrainState) -> bool:
        """Whether to run now, after `state.step` updates (0: before the first one)."""
        ...

    def run(self, context: HookContext) -> None:
        """Do the work. Raises StopRequested if a stop is requested before the state has changed."""
        ...
