"""The number of steps of a duration, and the rows that each step reads."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.errors import FledgeError
from fledge.plan.horizon import compute_steps
from fledge.recipe.schema import BatchConfig


@given(st.integers(1, 500), st.integers(1, 9), st.integers(1, 5), st.floats(0.1, 5))
@settings(deadline=None, max_examples=80)
def test_epochs_read_every_row_once_per_epoch(rows: int, micro: int, accumulation: int, epochs: float) -> None:
    horizon = compute_steps(
        f"{epochs!r} epochs",
        BatchConfig(micro_batch_size=micro, gradient_accumulation_steps=accumulation),
        lambda n: n * rows,
        64,
    )
    assert horizon.rows == math.ceil(epochs * rows)
    assert (horizon.steps - 1) * horizon.global_batch_rows < horizon.rows <= horizon.steps * horizon.global_batch_rows


def test_duration_may_be_given_in_steps_or_tokens() -> None:
    batch = BatchConfig(micro_batch_size=4, gradient_accumulation_steps=2)
    assert compute_steps("5 steps", batch, lambda n: n * 1000, 64).rows == 40
    horizon = compute_steps("10k tokens", batch, lambda n: n * 1000, 100)
    assert (horizon.rows, horizon.steps) == (100, 13)


def warmup_batch(micro: int, accumulation: int, start: int, ramp_steps: float) -> BatchConfig:
    """Batch settings with a warm-up."""
    return BatchConfig(
        micro_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        warmup={"initial_accumulation_steps": start, "ramp_steps": ramp_steps},
    )  # type: ignore[arg-type]


@given(
    rows=st.integers(1, 3000), micro=st.integers(1, 5), start=st.integers(1, 4), more=st.integers(1, 9),
    ramp_steps=st.one_of(st.integers(1, 40), st.floats(0.01, 0.9)),
)  # fmt: skip
@settings(deadline=None, max_examples=200)
def test_batch_warm_up_reads_every_row_once_in_the_fewest_steps(
    rows: int, micro: int, start: int, more: int, ramp_steps: float
) -> None:
    try:
        horizon = compute_steps("1 epochs", warmup_batch(micro, start + more, start, ramp_steps), lambda n: n * rows, 64)
    except FledgeError as error:
        assert error.where == "batch.warmup.ramp_steps" and (ramp_steps >= 1 or rows <= 5 * micro * (start + more))
        return
    counts = [horizon.accumulation_steps_at(step) for step in range(horizon.steps)]
    offsets = [sum(counts[:step]) * micro for step in range(horizon.steps + 1)]
    assert [horizon.first_row(step) for step in range(horizon.steps)] == offsets[:-1]
    assert offsets[-2] < rows == horizon.rows == horizon.first_row(horizon.steps) <= offsets[-1]
    assert horizon.batch_warmup_steps == (ramp_steps if ramp_steps >= 1 else round(ramp_steps * horizon.steps))
    assert counts == sorted(counts) and counts[0] == (start if horizon.batch_warmup_steps else start + more)
    assert set(counts[horizon.batch_warmup_steps :]) <= {start + more}
    assert len(set(counts[: horizon.batch_warmup_steps])) == min(horizon.batch_warmup_steps, more)


def test_batch_warm_up_grows_in_equal_parts() -> None:
    horizon = compute_steps("10 steps", warmup_batch(2, 4, 1, 6), lambda n: n * 1000, 64)
    assert [horizon.accumulation_steps_at(step) for step in range(10)] == [1, 1, 2, 2, 3, 3, 4, 4, 4, 4]
    assert [horizon.first_row(step) for step in range(11)] == [0, 2, 4, 8, 12, 18, 24, 32, 40, 48, 56]
    assert (horizon.rows, horizon.global_batch_rows, horizon.micro_batches(10)) == (56, 8, 28)


def test_without_batch_warm_up_every_step_is_full() -> None:
    horizon = compute_steps("5 steps", BatchConfig(micro_batch_size=4, gradient_accumulation_steps=2), lambda n: n * 1000, 64)
    assert [horizon.accumulation_steps_at(step) for step in range(5)] == [2] * 5
    assert [horizon.first_row(step) for step in range(6)] == [0, 8, 16, 24, 32, 40]


def test_batch_warm_up_that_is_too_long_or_does_not_grow_is_an_error() -> None:
    with pytest.raises(FledgeError, match="batch warm-up takes 50 steps but the stage has only 10"):
        compute_steps("10 steps", warmup_batch(2, 4, 1, 50), lambda n: n * 1000, 64)
    with pytest.raises(ValueError, match=r"warmup.initial_accumulation_steps 4 is not below the gradient_accumulation_steps 4"):
        warmup_batch(2, 4, 4, 0.5)
    with pytest.raises(ValueError, match=r"ramp_steps 1.5 is neither a whole number of steps nor a fraction below 1"):
        warmup_batch(2, 4, 1, 1.5)
