"""How many steps a length means."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.errors import FledgeError
from fledge.plan.horizon import compute_steps
from fledge.recipe.schema import BatchConfig


@given(st.integers(1, 500), st.integers(1, 9), st.integers(1, 5), st.floats(0.1, 5))
@settings(deadline=None, max_examples=80)
def test_epochs_read_every_row_exactly_that_often(rows: int, micro: int, accumulation: int, epochs: float) -> None:
    made = compute_steps(
        f"{epochs!r} epochs",
        BatchConfig(micro_batch_size=micro, gradient_accumulation_steps=accumulation),
        lambda n: n * rows,
        64,
    )
    assert made.rows == math.ceil(epochs * rows)
    assert (made.steps - 1) * made.global_batch_rows < made.rows <= made.steps * made.global_batch_rows


def test_steps_and_tokens() -> None:
    batch = BatchConfig(micro_batch_size=4, gradient_accumulation_steps=2)
    assert compute_steps("5 steps", batch, lambda n: n * 1000, 64).rows == 40
    made = compute_steps("10k tokens", batch, lambda n: n * 1000, 100)
    assert (made.rows, made.steps) == (100, 13)


def warming(micro: int, accumulation: int, start: int, over: float) -> BatchConfig:
    return BatchConfig(
        micro_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        warmup={"initial_accumulation_steps": start, "ramp_steps": over},
    )  # type: ignore[arg-type]


@given(
    rows=st.integers(1, 3000), micro=st.integers(1, 5), start=st.integers(1, 4), more=st.integers(1, 9),
    over=st.one_of(st.integers(1, 40), st.floats(0.01, 0.9)),
)  # fmt: skip
@settings(deadline=None, max_examples=200)
def test_a_batch_that_warms_up_reads_every_row_once_in_the_fewest_steps(
    rows: int, micro: int, start: int, more: int, over: float
) -> None:
    try:
        made = compute_steps("1 epochs", warming(micro, start + more, start, over), lambda n: n * rows, 64)
    except FledgeError as error:
        assert error.where == "batch.warmup.ramp_steps" and (over >= 1 or rows <= 5 * micro * (start + more))
        return
    counts = [made.window_at(step) for step in range(made.steps)]
    places = [sum(counts[:step]) * micro for step in range(made.steps + 1)]
    assert [made.first_row(step) for step in range(made.steps)] == places[:-1]
    assert places[-2] < rows == made.rows == made.first_row(made.steps) <= places[-1]
    assert made.batch_warmup_steps == (over if over >= 1 else round(over * made.steps))
    assert counts == sorted(counts) and counts[0] == (start if made.batch_warmup_steps else start + more)
    assert set(counts[made.batch_warmup_steps :]) <= {start + more}
    assert len(set(counts[: made.batch_warmup_steps])) == min(made.batch_warmup_steps, more)


def test_a_warm_up_of_steps_is_tabulated() -> None:
    made = compute_steps("10 steps", warming(2, 4, 1, 6), lambda n: n * 1000, 64)
    assert [made.window_at(step) for step in range(10)] == [1, 1, 2, 2, 3, 3, 4, 4, 4, 4]
    assert [made.first_row(step) for step in range(11)] == [0, 2, 4, 8, 12, 18, 24, 32, 40, 48, 56]
    assert (made.rows, made.global_batch_rows, made.micro_batches(10)) == (56, 8, 28)


def test_without_a_warm_up_every_window_is_full() -> None:
    made = compute_steps("5 steps", BatchConfig(micro_batch_size=4, gradient_accumulation_steps=2), lambda n: n * 1000, 64)
    assert [made.window_at(step) for step in range(5)] == [2] * 5
    assert [made.first_row(step) for step in range(6)] == [0, 8, 16, 24, 32, 40]


def test_a_batch_warm_up_that_takes_the_stage_or_grows_to_nothing_is_refused() -> None:
    with pytest.raises(FledgeError, match="batch warm-up takes 50 steps but the stage has only 10"):
        compute_steps("10 steps", warming(2, 4, 1, 50), lambda n: n * 1000, 64)
    with pytest.raises(ValueError, match=r"warmup.initial_accumulation_steps 4 is not below the gradient_accumulation_steps 4"):
        warming(2, 4, 4, 0.5)
    with pytest.raises(ValueError, match=r"ramp_steps 1.5 is neither a whole number of steps nor a share below 1"):
        warming(2, 4, 1, 1.5)
