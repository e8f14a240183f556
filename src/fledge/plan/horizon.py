"""The number of steps of a stage, and the rows that each step reads."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fledge.data import PackedDataset
from fledge.plan.lr_schedule import resolve_steps
from fledge.recipe.schema import BatchConfig
from fledge.recipe.units import Duration

MICRO_BATCHES = (32, 16, 8, 4, 2, 1)
LARGEST_AUTO = 16
LEAST_ROWS = {"kto": 8}  # its estimate of the KL divergence is over the answers of a batch
WANTED_UPDATES = 300


@dataclass(frozen=True, kw_only=True)
class TrainingHorizon:
    """The steps of a stage and the packed rows that each reads: `rows` rows of the endless stream of epochs in `steps` steps.

    A step has `gradient_accumulation_steps` micro-batches of `micro_batch_size` rows. If rows run out, the last step is filled
    with empty rows of weight 0. With a batch warm-up, step 0 has `initial_accumulation_steps` micro-batches, and the number
    grows within the first `batch_warmup_steps` steps: of the d = gradient_accumulation_steps − initial_accumulation_steps
    additional micro-batches, the k-th is added at step ⌈k · batch_warmup_steps / d⌉.
    """

    steps: int
    rows: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    initial_accumulation_steps: int
    batch_warmup_steps: int = 0

    @property
    def global_batch_rows(self) -> int:
        """Rows of a full batch, i.e. of one step after the batch warm-up."""
        return self.micro_batch_size * self.gradient_accumulation_steps

    def accumulation_steps_at(self, step: int) -> int:
        """Number of micro-batches of a step."""
        if step >= self.batch_warmup_steps:
            return self.gradient_accumulation_steps
        additional = self.gradient_accumulation_steps - self.initial_accumulation_steps
        return self.initial_accumulation_steps + step * additional // self.batch_warmup_steps

    def first_row(self, step: int) -> int:
        """Index in the row stream of a step's first row; for `steps`, the number of rows in total."""
        return min(self.rows, self.micro_batch_size * self.micro_batches(step))

    def micro_batches(self, steps: int) -> int:
        """Number of micro-batches of the first `steps` steps."""
        additional = self.gradient_accumulation_steps - self.initial_accumulation_steps
        added_at = [-(-k * self.batch_warmup_steps // additional) for k in range(1, additional + 1)]
        return self.initial_accumulation_steps * steps + sum(max(0, steps - step) for step in added_at)


def resolve_batch_warmup(batch: BatchConfig, steps: int) -> int:
    """Steps of the batch warm-up; 0 without one. Raises FledgeError if it takes the whole stage."""
    return (
        0 if batch.warmup is None else resolve_steps(batch.warmup.ramp_steps, steps, "batch warm-up", "batch.warmup.ramp_steps")
    )


def compute_steps(duration: str, batch: BatchConfig, rows_in: Callable[[float], float], row_length: int) -> TrainingHorizon:
    """The horizon of a duration such as `3 epochs`, `500 steps` or `20M tokens` (positions of packed rows).

    `rows_in(epochs)` is the number of packed rows of so many epochs. Raises FledgeError if a batch warm-up takes the whole
    stage.
    """
    length = Duration.parse(duration)
    start = batch.gradient_accumulation_steps if batch.warmup is None else batch.warmup.initial_accumulation_steps

    def horizon(steps: int, rows: int, warmup: int) -> TrainingHorizon:
        return TrainingHorizon(
            steps=steps,
            rows=rows,
            micro_batch_size=batch.micro_batch_rows,
            gradient_accumulation_steps=batch.gradient_accumulation_steps,
            initial_accumulation_steps=start,
            batch_warmup_steps=warmup,
        )

    if length.unit == "steps":
        steps = int(length.amount)
        warmup = resolve_batch_warmup(batch, steps)
        return horizon(steps, batch.micro_batch_rows * horizon(steps, 0, warmup).micro_batches(steps), warmup)
    rows = rows_in(length.amount) if length.unit == "epochs" else length.amount / row_length
    rows = max(1, math.ceil(rows))
    micro_batches = math.ceil(rows / batch.micro_batch_rows)
    low, high = math.ceil(micro_batches / batch.gradient_accumulation_steps), math.ceil(micro_batches / start)
    # Bisection for the fewest steps that read all rows: each further step reads more, even if the warm-up is a fraction.
    while low < high:
        steps = (low + high) // 2
        reads_all = horizon(steps, rows, _batch_warmup_unchecked(batch, steps)).micro_batches(steps) >= micro_batches
        low, high = (low, steps) if reads_all else (steps + 1, high)
    return horizon(low, rows, resolve_batch_warmup(batch, low))


def batch_for_updates(rows: float, kind: str, largest: int) -> int:
    """Rows of a micro-batch with which `rows` packed rows give a stage enough updates.

    The most, up to `largest`, that leave 300 of them; as few as the kind of stage can do with where there are too few rows.
    """
    least = LEAST_ROWS.get(kind, 1)
    sizes = [size for size in MICRO_BATCHES if least <= size <= largest]
    return next((size for size in sizes if rows / size >= WANTED_UPDATES), least)


def sized_batch(batch: BatchConfig, kind: str, duration: str, train: PackedDataset) -> tuple[BatchConfig, list[str]]:
    """The batch of a stage without `tokens_per_step`: a number in place of `auto`, which the data can fill; and sentences about
    what was chosen."""
    batch, chosen = auto_batch(batch, kind, duration, train)
    batch, capped = capped_batch(batch, duration, train)
    return batch, [*chosen, *capped]


def auto_batch(batch: BatchConfig, kind: str, duration: str, train: PackedDataset) -> tuple[BatchConfig, list[str]]:
    """The batch with a number in place of an `auto` that no `tokens_per_step` belongs to, and a sentence that says so."""
    if batch.micro_batch_size != "auto" or batch.tokens_per_step is not None:
        return batch, []
    length = Duration.parse(duration)
    if length.unit == "steps":
        size, why = LARGEST_AUTO, f"the stage has {length.amount:,.0f} steps"
    else:
        in_rows = length.unit == "epochs"
        rows = train.packed_rows_in(length.amount) if in_rows else length.amount / train.packed_length
        size = batch_for_updates(rows / batch.gradient_accumulation_steps, kind, LARGEST_AUTO)
        why = f"{rows:,.0f} packed rows are about {rows / size / batch.gradient_accumulation_steps:,.0f} updates"
    return batch.model_copy(update={"micro_batch_size": size}), [f"micro-batches of {size} rows (auto): {why}"]


def capped_batch(batch: BatchConfig, duration: str, train: PackedDataset) -> tuple[BatchConfig, list[str]]:
    """The batch with a micro-batch that the data can fill, and a sentence if that is a smaller one.

    Rows beyond the last one of the stage would be empty. A stage of a number of steps reads its data again and again; there a
    micro-batch above an epoch would hold rows several times, whose mean gradient is that of the epoch.
    """
    length, size = Duration.parse(duration), batch.micro_batch_rows
    if length.unit == "steps":
        rows, what = float(len(train)), "an epoch has"
    elif length.unit == "epochs":
        rows, what = train.packed_rows_in(length.amount), "the stage has"
    else:
        rows, what = length.amount / train.packed_length, "the stage has"
    fillable = max(1, math.ceil(rows))
    if size <= fillable:
        return batch, []
    note = f"micro-batches of {fillable:,} rows instead of {size:,}: {what} only {fillable:,} packed rows"
    return batch.model_copy(update={"micro_batch_size": fillable}), [note]


def pinned_batch(batch: BatchConfig, rows: int) -> dict[str, Any]:
    """The keys with which the updates of a batch keep their `rows` rows under another duration, which `auto` and
    `capped_batch` follow; none where the rows follow from no duration. Micro-batches are merged as before."""
    micro = rows // batch.gradient_accumulation_steps
    if batch.tokens_per_step is not None or micro == batch.micro_batch_size:
        return {}
    is_merged = batch.merge_micro_batches and batch.gradient_accumulation_steps > 1
    return {"micro_batch_size": micro, **({"merge_micro_batches": True} if is_merged else {})}


def _batch_warmup_unchecked(batch: BatchConfig, steps: int) -> int:
    """`resolve_batch_warmup` without the check, for a candidate number of steps."""
    ramp = 0.0 if batch.warmup is None else batch.warmup.ramp_steps
    return int(ramp) if ramp >= 1 else round(ramp * steps)
