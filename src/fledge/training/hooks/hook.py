"""The interface of what is done between two steps."""

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
    """What a hook may read and use. It may change `state`, the state of training: a best loss, a reason to stop."""

    state: TrainState
    total_steps: int
    micro_batch_size: int
    trainable: TrainableModel
    logger: RunLogger
    console: Console
    ranks: DistributedContext
    stop_requested: Callable[[], bool]  # collective; the same on all ranks
    add_seconds: Callable[[str, float], None]  # time of a phase between two steps, for the next `system` event

    def finish_stage(self, reason: str) -> None:
        """End the stage after this step."""
        self.state.stop_reason = reason
        if self.state.step < self.total_steps:
            self.logger.write("stop", self.state.step, reason=reason)
            self.console.log(f"stopping early at step {self.state.step:,}: {reason}", style="yellow")


class Hook(Protocol):
    """Something to do between two steps. It must not change what is learned.

    All ranks call `due` and `run` with equal states, so `run` may be collective. A resumed run asks again at the step of its
    checkpoint and has nothing but the TrainState: what a hook must remember belongs there, such as the step it last ran at.
    """

    def due(self, state: TrainState) -> bool:
        """Whether to run now, after `state.step` updates (0: before the first one)."""
        ...

    def run(self, context: HookContext) -> None:
        """Do it. StopRequested where a stop is requested meanwhile and nothing has changed yet."""
        ...
