"""Figures of logs: each one of a made-up series whose answer is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.diagnosis.curve_measures import CURVE_MEASURES, series_needed
from fledge.diagnosis.curves import curve_figures
from fledge.diagnosis.curves.robust import Series, blocks, correlation, noise, trailing_median, trend
from fledge.diagnosis.diagnose import add_own_figures, diagnose
from fledge.training_log import TrainingLog, TrainingSettings
from tests.diagnosis.made_logs import FRESH, HEALTHY, case_of, falling, log_of, pretraining, tuning
from tests.support.pace import ratio_to_yardstick

RNG = np.random.default_rng(3)


def _figures(loss, settings=None, **more):
    return curve_figures(log_of(np.asarray(loss, float), settings or TrainingSettings(), **more))


def _rates(*values):
    return curve_figures(log_of(np.ones(len(values)), TrainingSettings(), train__lr=np.array(values, float)))


def test_noise_is_that_of_points_and_not_of_the_trend():
    values = np.linspace(9, 2, 5000) + RNG.normal(0, 0.05, 5000)
    assert noise(values) == pytest.approx(0.05, rel=0.05)
    values[::100] += 5
    assert noise(values) == pytest.approx(0.05, rel=0.1)


def test_a_trend_is_told_from_noise():
    slope, z = trend(np.arange(20.0))
    assert (slope, z > 5) == (1.0, True)
    assert abs(trend(RNG.normal(0, 1, 20))[1]) < 3
    assert trend(np.ones(3)) == (0.0, 0.0)


def test_blocks_have_an_error_of_slow_noise_too():
    quick = RNG.normal(0, 1, 2000)
    slow = np.repeat(RNG.normal(0, 1, 20), 100)
    steps = np.arange(2000.0)
    assert blocks(Series(steps, quick), 20).error == pytest.approx(0.1, rel=0.5)
    assert blocks(Series(steps, quick + slow), 20).error > 0.4


def test_the_trailing_median_looks_back_only():
    assert trailing_median(np.array([1.0, 2, 3, 100, 5]), 3).tolist() == [2, 3]


def test_no_correlation_with_what_does_not_vary():
    assert correlation(np.ones(5), np.arange(5.0)) == 0.0


def test_levels_of_a_falling_loss():
    at = np.arange(1, 1001.0)
    figures = _figures(falling(at, 9.0, 2.0, 10) + RNG.normal(0, 0.02, 1000))
    assert figures["curve/first_loss"] == pytest.approx(8.7, abs=0.2)
    assert figures["curve/last_loss"] == pytest.approx(falling(np.array([975.0]), 9, 2, 10)[0], abs=0.02)
    assert figures["curve/fall_z"] > 20
    assert figures["curve/late_z"] < -2.5
    assert figures["curve/rise_z"] < 3


def test_a_rise_is_one_of_its_errors():
    at = np.arange(1, 1001.0)
    loss = 3 + RNG.normal(0, 0.05, 1000) + np.clip(at - 500, 0, None) * 0.004
    figures = _figures(loss)
    assert figures["curve/rise"] == pytest.approx(1.9, abs=0.15)
    assert figures["curve/rise_z"] > 20
    assert 1 <= figures["curve/lowest_step"] <= 560


def test_where_a_plateau_begins():
    at = np.arange(1, 1001.0)
    figures = _figures(np.maximum(3, 9 - at * 0.02) + RNG.normal(0, 0.01, 1000))
    assert figures["curve/plateau_from"] == pytest.approx(0.3, abs=0.06)


def test_spikes_are_jumps_that_last():
    loss = 3 + RNG.normal(0, 0.03, 1000)
    loss[500:520] += np.linspace(2, 0.6, 20)
    loss[700] += 2
    figures = _figures(loss)
    assert (figures["curve/spikes"], figures["curve/outliers"]) == (1, 1)
    largest = figures["curve/largest_spike"]
    assert largest["step"] == 501 and largest["recovered"] == 1
    assert largest["size"] == pytest.approx(2, abs=0.1)
    assert 15 <= largest["points"] <= 21


def test_a_series_of_fat_tails_has_no_lasting_spikes():
    assert _figures(3 + 0.1 * RNG.standard_t(2.5, 5000))["curve/spikes"] == 0


def test_equal_losses_are_constant():
    assert _figures([2.5] * 8)["curve/loss_constant"] == 2.5
    assert "curve/loss_constant" not in _figures([2.5] * 7 + [2.6])
    assert "curve/loss_constant" not in _figures([2.5] * 4)


@pytest.mark.parametrize(("tail", "lasts"), [([math.nan] * 6, True), ([math.nan, 2.0, 2.0, 2.0, 2.0, 2.0], False)])
def test_values_that_are_no_numbers(tail, lasts):
    figures = _figures([2.0] * 10 + tail)
    assert figures["curve/loss_not_finite_from"] == 11
    assert figures["curve/loss_not_finite_at_end"] is lasts
    assert _figures([math.nan] * 9)["curve/loss_not_finite"] == 1.0


def test_a_loss_around_zero_has_no_level():
    assert _figures(RNG.normal(0, 1, 100))["curve/loss_is_level"] is False
    policy = replace(FRESH, kind="grpo")
    assert curve_figures(log_of(np.full(50, 0.01), policy))["curve/loss_is_level"] is False
    assert "curve/last_loss" not in _figures(RNG.normal(0, 1, 100))


def test_neighbours_that_are_alike_are_seen():
    free = _figures(3 + RNG.normal(0, 0.1, 2000))
    alike = _figures(3 + np.repeat(RNG.normal(0, 0.1, 400), 5))
    assert abs(free["curve/autocorrelation"]) < 0.1
    assert alike["curve/autocorrelation"] > 0.3 and alike["curve/autocorrelation_z"] > 10


def _epochs(drop=0.0, rise=0.0, pattern=0.0, length=200, count=4, column=True):
    at = np.arange(length * count)
    number, inside = at // length, (at % length) / length
    same = np.tile(RNG.normal(0, 1, length // 5).repeat(5), count)
    loss = 3 - drop * number + rise * inside + pattern * same + RNG.normal(0, 0.03, len(at))
    epochs = (at + 1) / length
    settings = TrainingSettings() if column else TrainingSettings(rows=length * 4.0, batch_rows=4.0)
    return _figures(loss, settings, **({"train__epoch": epochs} if column else {}))


@pytest.mark.parametrize("column", [True, False])
def test_steps_at_the_borders_of_epochs(column):
    figures = _epochs(drop=0.3, column=column)
    assert figures["curve/borders"] == 3
    assert figures["curve/border_drop"] == pytest.approx(0.3, abs=0.03)
    assert figures["curve/border_z"] > 20
    assert figures["curve/epochs_read"] == pytest.approx(4.0)


def test_a_steady_fall_is_no_step():
    at = np.arange(800.0)
    figures = _figures(4 - 0.002 * at + RNG.normal(0, 0.03, 800), train__epoch=(at + 1) / 200)
    assert abs(figures["curve/border_z"]) < 4
    assert figures["curve/border_drop"] < 0.03


def test_a_rise_within_epochs():
    figures = _epochs(drop=0.0, rise=0.4)
    assert figures["curve/epoch_rise"] == pytest.approx(0.27, abs=0.03)


def test_epochs_in_the_same_order_have_the_same_bends():
    assert _epochs(pattern=0.1)["curve/epoch_pattern"] > 0.6
    assert abs(_epochs()["curve/epoch_pattern_z"]) < 4


def test_numbers_of_epochs_that_count_from_one():
    loss = np.concatenate([np.full(100, 3.0), np.full(100, 2.5)]) + RNG.normal(0, 0.02, 200)
    figures = _figures(loss, train__epoch=np.repeat([1.0, 2.0], 100))
    assert figures["curve/border_steps"] == [101.0]
    assert figures["curve/border_drop"] == pytest.approx(0.5, abs=0.05)


def test_validation_minimum_and_gap():
    at = np.arange(1, 1001.0)
    places = np.arange(99, 1000, 100)
    held_out = 2 + 0.6 * (at[places] / 1000 - 0.3) ** 2 + RNG.normal(0, 0.001, 10)
    figures = _figures(3 - at / 1000 + RNG.normal(0, 0.01, 1000), eval__loss=Series(at[places], held_out))
    assert figures["curve/lowest_validation_step"] == pytest.approx(300, abs=100)
    assert figures["curve/validation_rise"] == pytest.approx(0.29, abs=0.02)
    assert figures["curve/validation_rise_evaluations"] == pytest.approx(7, abs=1)
    assert figures["curve/first_gap"] == pytest.approx(held_out[0] - 2.9, abs=0.02)
    assert figures["curve/last_gap"] == pytest.approx(held_out[-1] - 2.0, abs=0.04)
    assert figures["curve/validation_jitter"] < 0.01


def test_the_shape_of_a_schedule():
    steps = 1000
    at = np.arange(1, steps + 1.0)
    figures = _rates(*(np.minimum(at / 50, 1) * np.clip((700 - at) / 650, 0, 1) * 1e-3))
    assert figures["curve/peak_lr"] == pytest.approx(1e-3, rel=0.02)
    assert figures["curve/warmup_steps"] == pytest.approx(50, abs=8)
    assert figures["curve/last_lr_share"] == 0
    assert figures["curve/lr_flat_from_step"] == pytest.approx(694, abs=3)
    assert figures["curve/mean_lr"] == pytest.approx(1e-3 * 0.35, rel=0.03)
    assert "curve/lr_restart_step" not in figures
    assert _rates(1, 1, 1, 1)["curve/lr_is_constant"] is True
    assert _rates(0, 0, 0)["curve/lr_zero_share"] == 1.0
    assert _rates(*np.tile(np.linspace(1, 0.01, 50), 2))["curve/lr_restart_step"] == 51


def test_norms_of_gradients_and_clipping():
    norms = np.exp(RNG.normal(0, 0.1, 1000))
    norms[3] = 40
    figures = _figures(np.ones(1000), TrainingSettings(max_grad_norm=0.01), train__grad_norm=norms)
    assert figures["curve/grad_norm"] == pytest.approx(1, abs=0.05)
    assert figures["curve/early_grad_peak"] == pytest.approx(40, rel=0.1)
    assert figures["curve/clipped_share"] == 1.0
    assert figures["curve/clip_factor"] == pytest.approx(100, rel=0.1)
    assert _figures(np.ones(9), train__grad_norm=np.zeros(9))["curve/grad_norm_zero_share"] == 1.0


def test_updates_by_group_while_the_rate_is_high():
    at = np.arange(10, 1001.0, 10)
    ratio = Series(at, np.where(at <= 500, 1e-2, 1e-4))
    rates = Series(at, np.where(at <= 500, 1e-3, 1e-5))
    log = TrainingLog(source="made", path="", series={
        "train/loss": Series(at, np.ones(100)), "train/lr": rates, "update_ratio/attention": ratio, "update_ratio/mlp": ratio,
    })  # fmt: skip
    figures = curve_figures(log)
    assert figures["curve/update_ratio"] == {"attention": 1e-2, "mlp": 1e-2}
    assert figures["curve/update_total"]["mlp"] == pytest.approx(5.05, rel=0.01)


def test_loss_scale_and_skipped_steps():
    at = np.arange(1, 101.0)
    figures = _figures(np.ones(100), train__loss_scale=65536 / 2 ** (at // 10), train__skipped_steps=at // 10)
    assert (figures["curve/first_loss_scale"], figures["curve/last_loss_scale"]) == (65536, 64)
    assert figures["curve/skipped_share"] == pytest.approx(0.1)
    assert figures["curve/late_skipped_share"] == pytest.approx(0.1, abs=0.03)


def test_time_and_memory():
    at = np.arange(1, 201.0)
    figures = _figures(
        np.ones(200), system__step_seconds=np.where(at > 150, 0.3, 0.1), system__phases__data=np.full(200, 0.05),
        system__memory_bytes=1e9 * (1 + at / 200),
    )  # fmt: skip
    assert figures["curve/slow_down"] == pytest.approx(3.0)
    assert figures["curve/data_share"] == pytest.approx(0.05 / 0.15, rel=0.05)
    assert figures["curve/memory_growth_share"] == pytest.approx(0.63, abs=0.05)
    assert figures["curve/memory_is_steady"] > 0.99


def test_a_jump_at_a_resume():
    loss = 3 + RNG.normal(0, 0.02, 400)
    loss[200:260] += 0.5
    log = log_of(loss, TrainingSettings(), events=({"kind": "startup", "step": 201},))
    jump = curve_figures(log)["curve/resume_jump"]
    assert jump["step"] == 201 and jump["size"] == pytest.approx(0.5, abs=0.05) and jump["z"] > 20
    assert curve_figures(replace(log, events=()))["curve/resumes"] == 0


@pytest.mark.parametrize("schedule", [None, "cosine_with_restarts"])
@pytest.mark.parametrize("points", [100, 20, 10, 5, 4, 3])
@pytest.mark.parametrize("shape", [lambda share: 0.5 + 0.5 * np.cos(np.pi * share), lambda share: 1 - share])
def test_a_schedule_with_restarts_is_no_resume(shape, points, schedule):
    place = np.arange(300)
    loss = 3 + np.random.default_rng(4).normal(0, 0.01, 300) + 0.15 * ((place % points < points / 2) & (place >= points))
    rates = 4e-3 * shape((place % points) / points)
    log = log_of(loss, TrainingSettings(schedule=schedule), train__lr=rates)
    assert curve_figures(log)["curve/resumes"] == 0
    told = [one.cause for one in diagnose(case_of(log)).found]
    assert "resumed without optimizer state" not in told


def test_a_restart_by_plan_does_not_hide_a_resume_that_the_log_tells():
    loss, rates = (
        3 + np.random.default_rng(4).normal(0, 0.02, 400),
        4e-3 * (0.5 + 0.5 * np.cos(np.pi * (np.arange(400) % 100) / 100)),
    )
    events = ({"kind": "startup", "step": 251},)
    log = log_of(loss, TrainingSettings(schedule="cosine_with_restarts"), events=events, train__lr=rates)
    assert curve_figures(log)["curve/resumes"] == 1


def test_ends_of_preferences_and_rewards():
    at = np.arange(1, 101.0)
    figures = _figures(np.full(100, math.log(2)), train__rewards__margins=at / 100, train__reward=at / 50)
    assert figures["curve/loss_at_ln2"] == 1.0
    assert figures["curve/last_margins"] == pytest.approx(0.955)
    assert figures["curve/first_reward"] == pytest.approx(0.11)


def test_every_figure_has_a_meaning():
    for make in (*HEALTHY.values(), tuning):
        case = case_of(make(np.random.default_rng(1)), data__unigram_entropy=5.0, data__bigram_entropy=3.0)
        add_own_figures(case)
        own = [name for name in case.figures if name.startswith(("curve/", "plan/"))]
        unknown = [name for name in own if name not in CURVE_MEASURES and series_needed(name) is None]
        assert own and not unknown


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=60),
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=60),
)
def test_no_series_makes_it_fail(loss, other):
    size = min(len(loss), len(other))
    steps = np.arange(1, size + 1.0)
    names = ("train/loss", "train/lr", "train/grad_norm", "train/epoch", "eval/loss", "system/step_seconds", "train/loss_scale",
             "update_ratio/mlp", "train/rewards/margins", "system/memory_bytes", "train/skipped_steps")  # fmt: skip
    columns = {
        name: Series(steps, np.array(loss[:size] if place % 2 else other[:size], float)) for place, name in enumerate(names)
    }
    with np.errstate(all="ignore"):
        figures = curve_figures(TrainingLog(source="made", path="", series=columns, settings=FRESH))
    assert all(value is not None for value in figures.values())


def test_a_long_log_is_read_in_a_second():
    log = pretraining(np.random.default_rng(0), 100_000)
    assert ratio_to_yardstick(lambda: curve_figures(log)) < 3
