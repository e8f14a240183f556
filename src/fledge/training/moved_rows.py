"""Rows that a stage passes over, or reads twice, when its duration is changed while it trains.

The rows of a step follow from the duration: the last step of a stage may be filled only partly, and a batch warm-up may be a
share of the steps.
"""

from fledge.data import PackedDataset
from fledge.findings import Finding
from fledge.plan.horizon import TrainingHorizon, compute_steps
from fledge.recipe.schema import BatchConfig


def moved_rows(step: int, duration: str, batch: BatchConfig, data: PackedDataset, horizon: TrainingHorizon) -> Finding | None:
    """The finding that rows are passed over or read twice in a stage that goes on from `step` with `horizon`, after it was
    trained with another `duration` until then; None if every row has its turn."""
    before = compute_steps(duration, batch, data.packed_rows_in, data.packed_length)
    read, start = before.first_row(min(step, before.steps)), horizon.first_row(step)
    if start == read:
        return None
    count, first, last = abs(start - read), min(start, read) + 1, max(start, read)
    rows = f"{count:,} packed rows (row {first:,} to {last:,} since the stage began)" if count > 1 else f"packed row {first:,}"
    be = "are" if count > 1 else "is"
    fate = f"{be} passed over" if start > read else f"{be} read twice"
    cause = f"the first {step:,} steps have read {read:,} rows, and the new duration goes on from row {start + 1:,}"
    return Finding(
        check="moved_rows",
        severity="warning",
        message=f"{rows} {fate}: {cause}",
        hint="train under another --name with the whole duration if every row must have its turn",
        evidence={"passed_over": max(0, start - read), "read_twice": max(0, read - start), "rows": [first, last]},
    )
