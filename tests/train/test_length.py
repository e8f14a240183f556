"""How many steps a length means."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.recipe.schema import BatchConfig
from fledge.train.length import extent


@given(st.integers(1, 500), st.integers(1, 9), st.integers(1, 5), st.floats(0.1, 5))
@settings(deadline=None, max_examples=80)
def test_epochs_read_every_row_exactly_that_often(rows: int, micro: int, accumulation: int, epochs: float) -> None:
    made = extent(f"{epochs!r} epochs", BatchConfig(micro=micro, accumulation=accumulation), lambda n: n * rows, 64)
    assert made.rows == math.ceil(epochs * rows)
    assert (made.steps - 1) * made.window < made.rows <= made.steps * made.window


def test_steps_and_tokens() -> None:
    batch = BatchConfig(micro=4, accumulation=2)
    assert extent("5 steps", batch, lambda n: n * 1000, 64).rows == 40
    made = extent("10k tokens", batch, lambda n: n * 1000, 100)
    assert (made.rows, made.steps) == (100, 13)
