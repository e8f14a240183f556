"""The learning rate of every step, against its formula."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.errors import FledgeError
from fledge.plan.lr_schedule import learning_rate, warmup_steps
from fledge.recipe.schema import OptimizerConfig, ScheduleConfig


def rates(steps: int, base: float = 1.0, **schedule: object) -> list[float]:
    """The learning rates of all steps."""
    config, optimizer = ScheduleConfig(**schedule), OptimizerConfig(learning_rate=base)  # type: ignore[arg-type]
    return [learning_rate(step, steps, optimizer, config) for step in range(steps)]


def test_cosine_follows_its_formula() -> None:
    lrs = rates(11, base=5e-4, name="cosine", warmup=0, min_lr=1e-5)
    expected = [1e-5 + 0.5 * (5e-4 - 1e-5) * (1 + math.cos(math.pi * step / 11)) for step in range(11)]
    assert lrs == pytest.approx(expected, rel=1e-12)


def test_warmup_rises_linearly_to_exactly_the_base_rate() -> None:
    lrs = rates(20, base=0.8, name="cosine", warmup=4)
    assert lrs[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert lrs[3] == 0.8 and lrs[4] < 0.8


def test_wsd_keeps_the_base_rate_then_decays_linearly() -> None:
    lrs = rates(101, warmup=10, name="wsd", decay_fraction=0.2, min_lr=0.1)
    assert lrs[9:81] == [1.0] * 72
    assert lrs[81:] == pytest.approx([0.1 + 0.9 * (1 - step / 21) for step in range(1, 21)])


def test_wsd_can_decay_as_one_minus_square_root() -> None:
    lrs = rates(101, warmup=10, name="wsd", decay_fraction=0.2, decay_shape="sqrt", min_lr=0.1)
    assert lrs[9:81] == [1.0] * 72
    assert lrs[81:] == pytest.approx([0.1 + 0.9 * (1 - math.sqrt(step / 21)) for step in range(1, 21)])


@pytest.mark.parametrize(("steps", "warm"), [(200, 60), (40, 10), (10, 2)])
def test_one_cycle_equals_torchs_one_cycle_without_its_last_step_which_would_be_lost(steps: int, warm: int) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=3e-4, total_steps=steps + 1, pct_start=warm / (steps + 1), div_factor=50, final_div_factor=1000
    )
    expected = []
    for _ in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    lrs = rates(steps, base=3e-4, name="onecycle", warmup=warm / steps, div_factor=50, final_div_factor=1000)
    assert lrs == pytest.approx(expected, abs=1e-9 * 3e-4, rel=1e-9)


def test_one_cycle_without_final_div_factor_falls_to_min_lr() -> None:
    lrs = rates(50, base=1.0, name="onecycle", warmup=0.3, min_lr="2%")
    last = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * 35 / 36))
    assert (lrs[0], lrs[14], lrs[-1]) == (pytest.approx(1 / 25), 1.0, pytest.approx(last))


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "onecycle"])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 1000])
def test_no_step_is_without_a_rate(name: str, steps: int) -> None:
    lrs = rates(steps, name=name, warmup=0.1)
    assert all(rate > 0 for rate in lrs) and (steps == 1 or 0 < lrs[-1] < 1)


def test_linear_and_cosine_equal_torchs_schedulers() -> None:
    """LinearLR and CosineAnnealingLR over N steps also reach their minimum after the last update."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    for name, scheduler in (
        ("linear", lambda sgd: torch.optim.lr_scheduler.LinearLR(sgd, start_factor=1.0, end_factor=0.0, total_iters=30)),
        ("cosine", lambda sgd: torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=30)),
    ):
        optimizer, expected = torch.optim.SGD([parameter], lr=0.1), []
        reference = scheduler(optimizer)
        for _ in range(30):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            reference.step()
        assert rates(30, base=0.1, name=name, warmup=0) == pytest.approx(expected, rel=1e-6)


def test_min_lr_can_be_a_percentage_of_the_base_rate() -> None:
    assert rates(11, base=4e-3, warmup=0, min_lr="10%") == pytest.approx(rates(11, base=4e-3, warmup=0, min_lr=4e-4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decay_shape": "sqrt"}, "decay_shape belongs to the schedule wsd; this schedule is linear"),
        ({"name": "linear", "decay_fraction": 0.5}, "decay_fraction belongs to the schedule wsd"),
        ({"name": "wsd", "div_factor": 10}, "div_factor belongs to the schedule onecycle"),
        ({"name": "onecycle", "final_div_factor": 10, "min_lr": 1e-5}, "both set the last learning rate"),
        ({"min_lr": "110%"}, "between 0% and 100%"),
    ],
)
def test_settings_that_the_schedule_does_not_use_are_an_error(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScheduleConfig(**changes)  # type: ignore[arg-type]


def test_learning_rate_that_is_still_auto_is_an_error() -> None:
    with pytest.raises(ValueError, match="learning_rate: still auto, not derived yet"):
        learning_rate(0, 10, OptimizerConfig(learning_rate="auto"), ScheduleConfig())


def test_linear_falls_towards_zero_and_constant_stays() -> None:
    assert rates(5, warmup=0, name="linear") == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    assert rates(5, warmup=0, name="constant") == [1.0] * 5


@given(
    steps=st.integers(2, 400),
    fraction=st.floats(0, 0.9),
    low=st.floats(0, 1),
    name=st.sampled_from(["cosine", "linear", "wsd", "onecycle"]),
)
@settings(deadline=None, max_examples=60)
def test_rate_reaches_base_after_warmup_falls_to_the_end_and_stays_above_the_minimum(
    steps: int, fraction: float, low: float, name: str
) -> None:
    config = ScheduleConfig(name=name, warmup=fraction, min_lr=low)  # type: ignore[arg-type]
    try:
        warm = warmup_steps(config, steps)
    except FledgeError:
        return
    lrs = rates(steps, warmup=fraction, name=name, min_lr=low)
    assert lrs[max(warm - 1, 0)] == 1.0
    assert lrs[-1] > low or low > 0.999
    assert all(lrs[i] <= lrs[i + 1] for i in range(max(warm - 1, 0)))
    assert all(lrs[i] >= lrs[i + 1] - 1e-12 for i in range(max(warm - 1, 0), steps - 1))
    first = 1 / 25 if name == "onecycle" else 1 / max(warm, 1)
    assert all(min(low, first) - 1e-12 <= rate <= 1 for rate in lrs)


def test_warmup_as_steps_and_as_fraction_are_equivalent() -> None:
    assert warmup_steps(ScheduleConfig(warmup=50), 1000) == warmup_steps(ScheduleConfig(warmup=0.05), 1000) == 50


def test_warmup_longer_than_the_stage_is_an_error() -> None:
    with pytest.raises(FledgeError, match="warm-up takes 1,000 steps but the stage has only 25"):
        warmup_steps(ScheduleConfig(warmup=1000), 25)
