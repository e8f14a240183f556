"""The learning rate of every step, against its formula."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.errors import FledgeError
from fledge.recipe.schema import OptimizerConfig, ScheduleConfig
from fledge.train.schedule import learning_rate, warmup_steps


def rates(steps: int, lr: float = 1.0, **schedule: object) -> list[float]:
    config, optimizer = ScheduleConfig(**schedule), OptimizerConfig(lr=lr)  # type: ignore[arg-type]
    return [learning_rate(step, steps, optimizer, config) for step in range(steps)]


def test_cosine_is_tabulated_as_its_formula_says() -> None:
    made = rates(11, lr=5e-4, warmup=0, min_lr=1e-5)
    expected = [1e-5 + 0.5 * (5e-4 - 1e-5) * (1 + math.cos(math.pi * step / 10)) for step in range(11)]
    assert made == pytest.approx(expected, rel=1e-12)


def test_warmup_rises_in_equal_parts_to_exactly_the_base_rate() -> None:
    made = rates(20, lr=0.8, warmup=4)
    assert made[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert made[3] == 0.8 and made[4] < 0.8


def test_wsd_holds_then_falls_linearly() -> None:
    made = rates(101, warmup=10, name="wsd", decay=0.2, min_lr=0.1)
    assert made[9:81] == [1.0] * 72
    assert made[90] == pytest.approx(0.1 + 0.9 * (100 - 90) / 20)
    assert made[100] == 0.1


def test_linear_and_constant() -> None:
    assert rates(5, warmup=0, name="linear") == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert rates(5, warmup=0, name="constant") == [1.0] * 5


@given(
    steps=st.integers(2, 400),
    share=st.floats(0, 0.9),
    low=st.floats(0, 1),
    name=st.sampled_from(["cosine", "linear", "wsd"]),
)
@settings(deadline=None, max_examples=60)
def test_base_after_warmup_minimum_at_the_end_and_never_outside(steps: int, share: float, low: float, name: str) -> None:
    config = ScheduleConfig(name=name, warmup=share, min_lr=low)  # type: ignore[arg-type]
    try:
        warm = warmup_steps(config, steps)
    except FledgeError:
        return
    made = rates(steps, warmup=share, name=name, min_lr=low)
    assert made[max(warm - 1, 0)] == 1.0
    assert made[-1] == low or warm >= steps - 1
    assert all(made[i] <= made[i + 1] for i in range(max(warm - 1, 0)))
    assert all(made[i] >= made[i + 1] - 1e-12 for i in range(max(warm - 1, 0), steps - 1))
    assert all(min(low, 1 / max(warm, 1)) <= rate <= 1 for rate in made)


def test_warmup_in_steps_and_as_a_share_mean_the_same() -> None:
    assert warmup_steps(ScheduleConfig(warmup=50), 1000) == warmup_steps(ScheduleConfig(warmup=0.05), 1000) == 50


def test_warmup_longer_than_the_stage_is_refused() -> None:
    with pytest.raises(FledgeError, match="warm-up takes 1,000 steps but the stage has only 25"):
        warmup_steps(ScheduleConfig(warmup=1000), 25)
