"""Writing of the events of each update."""

import math
import time

from fledge.checkpoint.state import TrainState
from fledge.monitor.run_logger import RunLogger
from fledge.run import Console
from fledge.run.console import Progress, step_line
from fledge.training.context import TrainContext
from fledge.training.host_copy import PendingOutput
from fledge.training.metrics import step_metrics, system_metrics
from fledge.training.train_step import StepOutput


class StepRecorder:
    """Writes `step` and `system` events, TensorBoard and the progress line. An update on a GPU is written one step later: its
    figures are copied in one piece while the next update computes, so that the device never waits for the host."""

    def __init__(
        self, context: TrainContext, logger: RunLogger, console: Console, progress: Progress, seconds_before: float
    ) -> None:
        """`seconds_before`: training time of the stage before this process."""
        self.context, self.logger, self.console, self.progress = context, logger, console, progress
        self.cost = context.model.cost
        self.peak_flops = (context.compute.matmul_peak or 0.0) * context.ranks.world_size
        self._pending: StepOutput | PendingOutput | None = None
        self._other_seconds: dict[str, float] = {}  # of phases between two steps
        self._reward: float | None = None  # of the last rollout
        self._started = time.monotonic() - seconds_before

    def submit(self, output: StepOutput, state: TrainState) -> None:
        """Submit an update that `state` counts already. It is written now on a CPU, at the next flush on a GPU."""
        if self.context.compute.device == "cpu":
            self._pending = output
            self.flush(state)
        else:
            self._pending = PendingOutput(output)

    def flush(self, state: TrainState) -> None:
        """Write the pending update, if there is one; `state` is the state after the update."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        output = pending.read() if isinstance(pending, PendingOutput) else pending
        grad_norm, limit = float(output.grad_norm), self.context.stage.optimizer.max_grad_norm
        state.clipped_steps += limit is not None and math.isfinite(grad_norm) and grad_norm > limit
        self._write(output, state)

    def _write(self, output: StepOutput, state: TrainState) -> None:
        context, step = self.context, state.step
        metrics = step_metrics(output, state, context.data.sources, context.stage.loss_unit == "nats/token")
        self.logger.write("step", step, **metrics)
        seconds_before, state.seconds = state.seconds, time.monotonic() - self._started
        system = system_metrics(
            output,
            state,
            total_steps=context.horizon.steps,
            device=context.compute.device,
            seconds_before=seconds_before,
            other_seconds=self._other_seconds,
            cost=self.cost,
            mean_context=context.data.mean_context,
            peak_flops=self.peak_flops,
            folder=context.log.directory.root,
        )
        self._other_seconds = {}
        self._write_startup(step, state.seconds - seconds_before)
        self.logger.write("system", step, **system)
        self.logger.log_scalars(step, {**metrics, **system})
        shown = {"loss": float(output.loss), "perplexity": metrics.get("train/perplexity") or 0.0, **metrics, **system}
        if "train/rewards/accuracies" in metrics:
            shown["accuracy"] = metrics["train/rewards/accuracies"]
        self._reward = metrics.get("train/reward", self._reward)
        shown["reward"] = self._reward
        self.progress.update(step, step_line(shown))

    def _write_startup(self, step: int, first_step_seconds: float) -> None:
        """Write the `startup` event with the time of each phase before the first step and of the first step; once per
        process."""
        startup = self.context.log.take_startup_report()
        if startup is None:
            return
        startup.phases["first_step"] = first_step_seconds
        self.logger.write("startup", step, **startup.as_dict())
        self.console.log(startup.line())

    def add_seconds(self, phase: str, seconds: float) -> None:
        """Add the time of a phase between two steps to the next `system` event."""
        self._other_seconds[phase] = self._other_seconds.get(phase, 0.0) + seconds

    def discard(self) -> None:
        """Drop the pending update and times, because training goes back to an earlier step."""
        self._pending, self._other_seconds = None, {}
