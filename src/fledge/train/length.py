"""How many steps a stage has."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from fledge.recipe.schema import BatchConfig
from fledge.recipe.units import Length


@dataclass(frozen=True)
class Extent:
    """`rows` packed rows of the endless stream of epochs are read, `window` in each of `steps` updates; where the
    last window is not full, the rest of it is empty rows of weight 0."""

    steps: int
    rows: int
    window: int


def extent(length: str, batch: BatchConfig, rows_in: Callable[[float], float], row_length: int) -> Extent:
    """Steps and rows of a length such as `3 epochs`, `500 steps` or `20M tokens` (tokens are positions of rows).

    `rows_in(epochs)` says how many rows so many epochs have."""
    wanted = Length.parse(length)
    window = batch.micro * batch.accumulation
    if wanted.unit == "steps":
        steps = int(wanted.amount)
        return Extent(steps, steps * window, window)
    rows = rows_in(wanted.amount) if wanted.unit == "epochs" else wanted.amount / row_length
    rows = max(1, math.ceil(rows))
    return Extent(math.ceil(rows / window), rows, window)
