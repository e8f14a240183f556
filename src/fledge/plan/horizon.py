"""How many steps a stage has, and how many rows each of them reads."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from fledge.plan.lr_schedule import resolve_steps
from fledge.recipe.schema import BatchConfig
from fledge.recipe.units import Length


@dataclass(frozen=True)
class TrainingHorizon:
    """`rows` packed rows of the endless stream of epochs are read in `steps` updates, `micro` of them at a time; where the
    last window is not full, the rest of it is empty rows of weight 0.

    A window has `accumulation` micro-batches. With a batch warm-up the first has `start`, and the others join one by one,
    in equal parts of the first `over` steps: the k-th of d = accumulation − start at step ⌈k · over / d⌉.
    """

    steps: int
    rows: int
    micro: int
    accumulation: int
    start: int
    batch_warmup_steps: int = 0

    @property
    def global_batch_rows(self) -> int:
        """Rows of a full window."""
        return self.micro * self.accumulation

    def window_at(self, step: int) -> int:
        """Micro-batches of the window of a step."""
        return (
            self.accumulation
            if step >= self.batch_warmup_steps
            else self.start + step * (self.accumulation - self.start) // self.batch_warmup_steps
        )

    def first_row(self, step: int) -> int:
        """The row of the stream at which a step begins; after the last step, all rows."""
        return min(self.rows, self.micro * self.micro_batches(step))

    def micro_batches(self, steps: int) -> int:
        """Micro-batches of the first `steps` windows."""
        joining = self.accumulation - self.start
        joined = [-(-k * self.batch_warmup_steps // joining) for k in range(1, joining + 1)]
        return self.start * steps + sum(max(0, steps - step) for step in joined)


def warmup_of_batch(batch: BatchConfig, steps: int) -> int:
    """Steps that the batch warm-up takes; FledgeError where it would take the whole run."""
    return (
        0 if batch.warmup is None else resolve_steps(batch.warmup.ramp_steps, steps, "batch warm-up", "batch.warmup.ramp_steps")
    )


def compute_steps(length: str, batch: BatchConfig, rows_in: Callable[[float], float], row_length: int) -> TrainingHorizon:
    """Steps and rows of a length such as `3 epochs`, `500 steps` or `20M tokens` (tokens are positions of rows).

    `rows_in(epochs)` says how many rows so many epochs have. FledgeError where a batch warm-up takes the whole stage."""
    wanted = Length.parse(length)
    start = batch.gradient_accumulation_steps if batch.warmup is None else batch.warmup.initial_accumulation_steps

    def of(steps: int, rows: int, over: int) -> TrainingHorizon:
        return TrainingHorizon(steps, rows, batch.micro_batch_rows, batch.gradient_accumulation_steps, start, over)

    if wanted.unit == "steps":
        steps = int(wanted.amount)
        over = warmup_of_batch(batch, steps)
        return of(steps, batch.micro_batch_rows * of(steps, 0, over).micro_batches(steps), over)
    rows = rows_in(wanted.amount) if wanted.unit == "epochs" else wanted.amount / row_length
    rows = max(1, math.ceil(rows))
    micro_batches = math.ceil(rows / batch.micro_batch_rows)
    low, high = math.ceil(micro_batches / batch.gradient_accumulation_steps), math.ceil(micro_batches / start)
    while low < high:  # the fewest steps that read them all; a step more always reads more, although `over` may be a share
        steps = (low + high) // 2
        enough = of(steps, rows, _over(batch, steps)).micro_batches(steps) >= micro_batches
        low, high = (low, steps) if enough else (steps + 1, high)
    return of(low, rows, warmup_of_batch(batch, low))


def _over(batch: BatchConfig, steps: int) -> int:
    """As `warmup_of_batch`, for a number of steps that is only tried."""
    over = 0.0 if batch.warmup is None else batch.warmup.ramp_steps
    return int(over) if over >= 1 else round(over * steps)
