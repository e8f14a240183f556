"""The state of training that a checkpoint stores."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt

if TYPE_CHECKING:  # `fledge runs` reads names of checkpoints, and no weights
    from torch import Tensor

Weights = dict[str, "Tensor"]


@dataclass(kw_only=True)
class TrainState:
    """The progress of a stage. Randomness is a function of (seed, step), so no generator state is stored.

    Attributes:
        step: Number of finished steps.
        tokens: Positions of packed rows that were read; padding is not counted.
        target_tokens: Tokens that contributed to the loss.
        by_source: Tokens read from each source, in the order of the recipe.
        clipped_steps: Steps whose gradient norm was clipped.
        micro_batch_size: Rows per micro-batch, if it was reduced because memory ran out.
        grad_scaler: State of the fp16 gradient scaler.
        seconds: Training time.
        last_eval_step: Step of the last evaluation.
        last_prompt_test_step: Step of the last prompt tests.
        last_set_step: Step of the last evaluation sets.
        failing_prompt_tests: Names of the prompt tests that failed last time; None before the first time.
        best_metric: Best value of the stage's `metric_for_best_model`, reached at `best_step`.
        loss_at_best: Validation loss at `best_step`; decides where values of that metric are equal.
        evals_since_best: Evaluations since then.
        stop_reason: Reason for ending the stage early.
        skipped_rows: [first, count] ranges of the row stream that rollbacks left out.
        lr_factor: Factor on the learning rate, below 1 after rollbacks that reduce it.
        rollbacks: Number of rollbacks.
        saved_on_request: Whether this state was saved only because the run had to stop.
    """

    step: NonNegativeInt = 0
    tokens: NonNegativeInt = 0
    target_tokens: NonNegativeInt = 0
    by_source: list[NonNegativeInt] = field(default_factory=list)
    clipped_steps: NonNegativeInt = 0
    micro_batch_size: PositiveInt | None = None
    grad_scaler: dict[str, FiniteFloat] | None = None
    seconds: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    last_eval_step: NonNegativeInt = 0
    last_prompt_test_step: NonNegativeInt = 0
    last_set_step: NonNegativeInt = 0
    failing_prompt_tests: list[str] | None = None
    best_metric: float | None = None
    loss_at_best: float | None = None
    best_step: NonNegativeInt | None = None
    evals_since_best: NonNegativeInt = 0
    stop_reason: str | None = None
    skipped_rows: list[Annotated[list[NonNegativeInt], Field(min_length=2, max_length=2)]] = field(default_factory=list)
    lr_factor: Annotated[FiniteFloat, Field(gt=0, le=1)] = 1.0
    rollbacks: NonNegativeInt = 0
    saved_on_request: bool = False


@dataclass(frozen=True)
class Snapshot:
    """A copy of the training state at one step, which can be written while training continues.

    `models`: weights by directory name, `model` (current) and, with EMA, `averaged`. `tensors`: state of the optimizers and the
    average. If `sharded`, `tensors` are this rank's shards and only the main process has `models`.
    """

    state: TrainState
    models: dict[str, Weights]
    tensors: Weights
    sharded: bool = False

    @property
    def bytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(tensor.nbytes for weights in (*self.models.values(), self.tensors) for tensor in weights.values())


def to_cpu_copy(tensors: Mapping[str, "Tensor"]) -> Weights:
    """Copies of the tensors in main memory that share no storage with the originals."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
