"""Evaluation on validation data while a stage trains, the best checkpoint, and early stopping."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fledge.checkpoint.state import TrainState
from fledge.findings import Finding
from fledge.model.protocol import LanguageModel
from fledge.plan.evaluation import METRICS, evaluation_interval
from fledge.recipe.schema import StageBase
from fledge.training.hooks.hook import HookContext
from fledge.training.validation import ValidationSet, metrics_line, validate


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Evaluates at its interval and after the last step, with the averaged weights if the stage averages weights.

    `score_answers`: scores of answers that a model generates, called on the main process; None if the stage generates none.
    `initial`: the metrics before the first step: the model that the stage starts from is the first candidate for the best one.
    """

    stage: StageBase
    total_steps: int
    validation: ValidationSet
    score_answers: Callable[[LanguageModel], dict[str, float]] | None = None
    initial: Mapping[str, float | None] = field(default_factory=dict)

    def due(self, state: TrainState) -> bool:
        """Whether to evaluate now: at the interval and after the last step, once each."""
        step = state.step
        if step == 0:
            return self.initial.get(self.stage.metric_for_best_model) is not None and state.best_step is None
        at_interval = step == self.total_steps or step % evaluation_interval(self.stage, self.total_steps) == 0
        return at_interval and state.last_eval_step < step

    def run(self, context: HookContext) -> None:
        """Evaluate, write the `eval` event, update the best value, and check for early stopping. Before the first step the
        known value is the best one."""
        state, started = context.state, time.monotonic()
        if state.step == 0:
            if self.score_answers is not None:
                figures = {f"eval/{name}": value for name, value in self.initial.items() if isinstance(value, int | float)}
                context.logger.write("initial_eval", 0, **figures)
            self._update_best(state, self.initial)
            return
        with context.trainable.averaged():
            measured = validate(
                context.trainable.model,
                self.validation,
                context.micro_batch_size,
                asked_to_stop=context.stop_requested,
                ranks=context.ranks,
            )
            measured |= self._scores(context)
        context.add_seconds("evaluate", time.monotonic() - started)
        values = {f"eval/{name}": value for name, value in measured.items()}
        context.logger.write("eval", state.step, **values)
        context.logger.log_scalars(state.step, values)
        if not math.isfinite(measured["loss"]):
            context.logger.report(_non_finite(measured["loss"]), state.step)
        self._update_best(state, measured)
        self._check_early_stopping(context, measured["loss"])
        context.console.log(f"step {state.step:,}: validation {metrics_line(measured)}")

    def _scores(self, context: HookContext) -> dict[str, float]:
        """The scores of generated answers, equal on all ranks; none if the stage generates no answers."""
        if self.score_answers is None:
            return {}
        model, scores = context.trainable.full_model(), None
        if model is not None and context.ranks.is_main_process:
            scores = self.score_answers(model)
        return context.ranks.broadcast_object(scores)

    def _update_best(self, state: TrainState, metrics: Mapping[str, float | None]) -> None:
        """Count the evaluation, and record its value if it is the best. NaN and infinity (None in a file) never are. Where
        scores are equal, as they are while no answer is right yet, the lower loss is better."""
        state.last_eval_step = state.step
        name = self.stage.metric_for_best_model
        value, loss, best = metrics.get(name), metrics.get("loss"), state.best_metric
        if value is None or not math.isfinite(value):
            state.evals_since_best += 1
            return
        is_better = best is None or METRICS[name].better(value, best, self.stage.early_stopping.threshold)
        if is_better or (name != "loss" and value == best and _is_lower(loss, state.loss_at_best)):
            state.best_metric, state.loss_at_best, state.best_step, state.evals_since_best = value, loss, state.step, 0
        else:
            state.evals_since_best += 1

    def _check_early_stopping(self, context: HookContext, loss: float) -> None:
        config = self.stage.early_stopping
        if config.target_loss is not None and loss <= config.target_loss:
            context.finish_stage(f"validation loss {loss:.4f} reached the target {config.target_loss}")
        elif config.patience is not None and context.state.evals_since_best >= config.patience:
            metric = METRICS[self.stage.metric_for_best_model]
            context.finish_stage(f"{metric.label} has not improved for {config.patience} evaluations")


def _is_lower(loss: float | None, other: float | None) -> bool:
    """Whether a loss is lower than another one, which may be unknown."""
    return loss is not None and math.isfinite(loss) and (other is None or not loss >= other)


def _non_finite(loss: float) -> Finding:
    """The alert for a validation loss that is no number."""
    return Finding(
        check="non_finite_evaluation",
        severity="error",
        message=f"the validation loss is {loss}: this evaluation counts as no improvement",
        hint="look at the validation rows with `fledge data show`, and at the start weights",
    )
