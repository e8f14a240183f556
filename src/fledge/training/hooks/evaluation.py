"""Evaluation on validation data while a stage trains, the best loss, and early stopping."""

import math
import time
from dataclasses import dataclass

from fledge.checkpoint.state import TrainState
from fledge.findings import Finding
from fledge.plan.evaluation import evaluation_interval
from fledge.recipe.schema import StageBase
from fledge.training.hooks.hook import HookContext
from fledge.training.validation import ValidationSet, metrics_line, validate


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Evaluates at its interval and after the last step, with the averaged weights if the stage averages weights.

    `initial_loss`: the validation loss before the first step, which was measured before: the model that the stage starts from
    is the first candidate for the best one.
    """

    stage: StageBase
    total_steps: int
    validation: ValidationSet
    initial_loss: float | None = None

    def due(self, state: TrainState) -> bool:
        """Whether to evaluate now: at the interval and after the last step, once each."""
        step = state.step
        if step == 0:
            return self.initial_loss is not None
        at_interval = step == self.total_steps or step % evaluation_interval(self.stage, self.total_steps) == 0
        return at_interval and state.last_eval_step < step

    def run(self, context: HookContext) -> None:
        """Evaluate, write the `eval` event, update the best loss, and check for early stopping. Before the first step the
        known loss is the best one."""
        state, started = context.state, time.monotonic()
        if state.step == 0:
            self._update_best(state, self.initial_loss)
            return
        with context.trainable.averaged():
            measured = validate(
                context.trainable.model,
                self.validation,
                context.micro_batch_size,
                asked_to_stop=context.stop_requested,
                ranks=context.ranks,
            )
        context.add_seconds("evaluate", time.monotonic() - started)
        values = {f"eval/{name}": value for name, value in measured.items()}
        context.logger.write("eval", state.step, **values)
        context.logger.log_scalars(state.step, values)
        if not math.isfinite(measured["loss"]):
            context.logger.report(_non_finite(measured["loss"]), state.step)
        self._update_best(state, measured["loss"])
        self._check_early_stopping(context, measured["loss"])
        context.console.log(f"step {state.step:,}: validation {metrics_line(measured)}")

    def _update_best(self, state: TrainState, loss: float | None) -> None:
        """Count the evaluation, and record its loss if it is the best. NaN and infinity (None in a file) are never the best."""
        state.last_eval_step = state.step
        best, threshold = state.best_loss, self.stage.early_stopping.threshold
        if loss is not None and math.isfinite(loss) and (best is None or loss < best - threshold):
            state.best_loss, state.best_step, state.evals_since_best = loss, state.step, 0
        else:
            state.evals_since_best += 1

    def _check_early_stopping(self, context: HookContext, loss: float) -> None:
        config = self.stage.early_stopping
        if config.target_loss is not None and loss <= config.target_loss:
            context.finish_stage(f"validation loss {loss:.4f} reached the target {config.target_loss}")
        elif config.patience is not None and context.state.evals_since_best >= config.patience:
            context.finish_stage(f"validation loss has not improved for {config.patience} evaluations")


def _non_finite(loss: float) -> Finding:
    """The alert for a validation loss that is no number."""
    return Finding(
        check="non_finite_evaluation",
        severity="error",
        message=f"the validation loss is {loss}: this evaluation counts as no improvement",
        hint="look at the validation rows with `fledge data show`, and at the start weights",
    )
