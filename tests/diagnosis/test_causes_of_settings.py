"""Causes in rates, batch, duration, precision, evaluation and machine: found where they are planted, with what follows from
them, and not in the neighbours that are sound."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fledge.diagnosis.diagnose import diagnose
from fledge.training_log import TrainingSettings
from fledge.training_log.records import Series
from tests.diagnosis.made_logs import (
    FRESH,
    PAIRS,
    TRAINED,
    case_of,
    falling,
    linear_rates,
    log_of,
    noisy,
    preferring,
    pretraining,
    tuning,
    whole,
)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def _with(log, settings=None, **columns):
    """A log with other columns (functions of the old one, or values) and settings."""
    series = dict(log.series)
    for name, values in columns.items():
        key = name.replace("__", "/")
        old = series.get(key)
        steps = log.series["train/loss"].steps if old is None else old.steps
        series[key] = (
            values if isinstance(values, Series) else Series(steps, values(old.values) if callable(values) else values)
        )
    return replace(log, series=series, settings=replace(log.settings, **(settings or {})))


def _told(log, name, **figures):
    """The sign of a cause and all that is told, by the name of the root that it stands under."""
    said = diagnose(case_of(log, **figures))
    roots = {one.cause: one for one in said.found}
    under = {finding.check: one.cause for one in said.found for finding in one.consequences}
    return roots.get(name), under, said


def _is_silent(log, name, **figures):
    root, under, _ = _told(log, name, **figures)
    return root is None and name not in under


def _fresh_flat(rng, level=8.6, steps=400, **settings):
    at = np.arange(1, steps + 1.0)
    made = replace(whole(FRESH, steps), **settings)
    return log_of(noisy(rng, np.full(steps, level), 0.01), made, train__lr=linear_rates(at, made.learning_rate, 8, steps),
                  train__grad_norm=np.exp(rng.normal(0, 0.1, steps)), train__epoch=at / steps)  # fmt: skip


def test_a_rate_of_zero_is_certain(rng):
    log = _with(_fresh_flat(rng, 8.75), train__lr=np.zeros(400))
    root, under, said = _told(log, "learning rate zero")
    assert root.sign.finding.confidence == "certain"
    assert under["not learning"] == "learning rate zero"
    assert not said.unexplained
    assert root.sign.finding.patch["stages.pretrain.optimizer.learning_rate"] > 0


def test_a_first_rate_of_zero_is_usual(rng):
    log = pretraining(rng)
    assert _is_silent(_with(log, train__lr=lambda rates: np.where(np.arange(len(rates)) < 2, 0, rates)), "learning rate zero")


@pytest.mark.parametrize(("times", "sure"), [(2, None), (4, "possible"), (12, "likely")])
def test_a_rate_above_its_band(rng, times, sure):
    log = pretraining(rng)
    case = case_of(log)
    diagnose(case)
    rate = case.value("plan/rate_high") * times
    log = _with(log, {"learning_rate": rate}, train__lr=lambda rates: rates / rates.max() * rate)
    root, _, _ = _told(log, "learning rate too high")
    assert (root and root.sign.finding.confidence) == sure
    if root:
        patch = root.sign.finding.patch["stages.pretrain.optimizer.learning_rate"]
        assert case.value("plan/rate_low") < patch < case.value("plan/rate_high")


def test_a_high_rate_with_a_divergence_is_likely_and_its_root(rng):
    at = np.arange(1, 801.0)
    log = _with(pretraining(rng, learning_rate=0.06), train__lr=linear_rates(at, 0.06, 16, 800))
    log = _with(log, train__loss=lambda loss: np.where(at < 60, loss, 7.2 + rng.normal(0, 0.05, 800)))
    root, under, said = _told(log, "learning rate too high")
    assert root.sign.finding.confidence == "likely"
    assert under["divergence"] == "learning rate too high"
    assert not said.is_healthy and not [one for one in said.unexplained if one.severity != "info"]


@pytest.mark.parametrize(("times", "sure"), [(0.5, None), (0.2, "possible"), (0.05, "likely")])
def test_a_rate_below_its_band(rng, times, sure):
    log = pretraining(rng)
    case = case_of(log)
    diagnose(case)
    rate = case.value("plan/rate_low") * times
    log = _with(log, {"learning_rate": rate}, train__lr=lambda rates: rates / rates.max() * rate)
    root, _, _ = _told(log, "learning rate too low")
    assert (root and root.sign.finding.confidence) == sure


def test_a_low_rate_that_learns_slowly_is_likely(rng):
    at = np.arange(1, 401.0)
    log = _fresh_flat(rng, learning_rate=4e-6)
    log = _with(log, train__loss=8.7 - 0.4 * at / 400 + rng.normal(0, 0.02, 400))
    root, under, _ = _told(log, "learning rate too low")
    assert root.sign.finding.confidence == "likely"
    assert under["slow learning"] == "learning rate too low"


def test_updates_that_add_up_to_nothing_make_a_low_rate_likely(rng):
    log = tuning(rng, 400)
    slow = _with(log, {"hidden_size": None, "parameters": None, "learning_rate": 4e-7},
                 train__lr=lambda rates: rates / rates.max() * 4e-7,
                 update_ratio__attention=Series(np.arange(10, 401.0, 10), np.full(40, 1e-6)))  # fmt: skip
    root, _, _ = _told(slow, "learning rate too low")
    assert root.sign.finding.confidence == "likely"
    assert root.sign.finding.evidence["moved"] < 0.001


@pytest.mark.parametrize(("level", "moved", "sure"), [(0.66, 2e-4, "likely"), (0.45, 2e-4, None), (0.66, 3e-3, None)])
def test_a_reward_model_that_still_guesses_after_small_updates(rng, level, moved, sure):
    settings = whole(replace(TRAINED, kind="reward", learning_rate=3e-5, hidden_size=None, parameters=None), 40)
    at = np.arange(1, 41.0)
    log = log_of(
        level + rng.normal(0, 0.02, 40), settings, train__lr=linear_rates(at, 3e-5, 2, 40),
        update_ratio__attention=Series(np.arange(5, 41.0, 5), np.full(8, moved)),
    )  # fmt: skip
    root, _, _ = _told(log, "learning rate too low")
    assert (root.sign.finding.confidence if root else None) == sure


def test_an_adapter_with_the_rate_of_all_weights(rng):
    log = tuning(rng, method="lora", adapter_rank=16.0, learning_rate=2e-5)
    root, _, _ = _told(log, "learning rate too low")
    assert root.sign.finding.confidence == "likely" and "adapter" in root.sign.finding.message


def test_the_rate_of_a_preference_stage_has_its_own_band(rng):
    assert _is_silent(preferring(rng), "learning rate too high")
    log = preferring(rng, learning_rate=PAIRS.learning_rate * 100)
    root, _, _ = _told(log, "learning rate too high")
    assert root.sign.finding.confidence == "likely"


@pytest.mark.parametrize("optimizer", ["lion", "adafactor", "sgd"])
def test_no_band_is_known_for_other_optimizers(rng, optimizer):
    assert _is_silent(pretraining(rng, optimizer=optimizer, learning_rate=0.5), "learning rate too high")


def test_rates_of_muon_of_other_trainers_are_not_judged(rng):
    log = pretraining(rng, optimizer="muon", learning_rate=0.1)
    assert not _is_silent(log, "learning rate too high")
    assert _is_silent(replace(log, source="nanochat"), "learning rate too high")


def test_a_column_that_is_not_what_was_set(rng):
    log = pretraining(rng)
    root, under, _ = _told(_with(log, train__lr=lambda rates: rates * 10), "learning rate not as planned")
    name = "learning rate not as planned"
    assert root is not None or name in under
    assert _is_silent(log, name)
    other = _with(log, train__lr=np.full(800, 4e-3))
    assert not _is_silent(other, name)


def test_a_lowered_rate_after_a_roll_back_is_as_planned(rng):
    log = _with(pretraining(rng), train__lr=lambda rates: rates * 0.5)
    event = {"kind": "guard", "step": 400, "evidence": {"lr_factor": 0.5}}
    assert _is_silent(replace(log, events=(event,)), "learning rate not as planned")


@pytest.mark.parametrize(("decay", "is_told"), [(0.1, False), (0.6, False), (30.0, True)])
def test_weight_decay(rng, decay, is_told):
    assert _is_silent(pretraining(rng, weight_decay=decay), "weight decay too strong") is not is_told


@pytest.mark.parametrize(("limit", "sure"), [(1.0, None), (0.05, None), (0.02, "possible"), (0.003, "likely")])
def test_a_threshold_that_clips_everything(rng, limit, sure):
    log = _with(pretraining(rng, max_grad_norm=limit), train__grad_norm=np.exp(rng.normal(0, 0.2, 800)))
    root, _, _ = _told(log, "clipping threshold too small")
    assert (root and root.sign.finding.confidence) == sure


def test_a_schedule_that_ends_long_before_the_run(rng):
    at = np.arange(1, 801.0)
    log = _with(pretraining(rng), train__lr=linear_rates(at, 4e-3, 16, 300))
    root, under, _ = _told(log, "schedule ends too early")
    assert root.sign.finding.confidence == "certain"
    assert root.sign.steps == pytest.approx((300, 800), abs=5)
    assert under["learning rate not as planned"] == "schedule ends too early"


def test_a_floor_of_a_tenth_is_an_early_end_only_where_the_plan_says_otherwise(rng):
    at = np.arange(1, 801.0)
    log = _with(pretraining(rng, min_learning_rate=4e-4), train__lr=linear_rates(at, 4e-3, 16, 500, low=4e-4))
    assert _told(log, "schedule ends too early")[0].sign.finding.confidence == "certain"
    assert _is_silent(_with(log, {"schedule": None}), "schedule ends too early")


def test_a_schedule_that_is_cut(rng):
    at = np.arange(1, 801.0)
    log = _with(pretraining(rng), train__lr=linear_rates(at, 4e-3, 16, 2000))
    assert _told(log, "schedule cut before it decays")[0].sign.finding.confidence == "certain"
    unknown = _with(log, {"schedule": None})
    assert _told(unknown, "schedule cut before it decays")[0].sign.finding.confidence == "likely"
    assert _is_silent(_with(log, train__lr=np.full(800, 4e-3)), "schedule cut before it decays")
    live = replace(log, ended=None, settings=replace(log.settings, steps=2000.0))
    assert _is_silent(live, "schedule cut before it decays")


def test_a_run_that_was_stopped_is_only_told_that_its_schedule_was_cut(rng):
    at = np.arange(1, 801.0)
    log = _with(pretraining(rng), {"steps": 2000.0, "warmup_steps": 16.0}, train__lr=linear_rates(at, 4e-3, 16, 2000))
    log = replace(log, events=({"kind": "stop", "step": 800, "reason": "early stopping"},))
    root, _, said = _told(log, "schedule cut before it decays")
    assert root.sign.finding.severity == "info"
    assert said.is_healthy


def test_no_warmup_where_it_hurt(rng):
    at = np.arange(1, 801.0)
    log = _with(pretraining(rng, warmup_steps=0.0), train__lr=linear_rates(at, 4e-3, 1, 800))
    assert _is_silent(log, "no warm-up")
    hurt = _with(log, train__loss=lambda loss: loss + 3 * np.exp(-((at - 20) ** 2) / 100),
                 train__grad_norm=lambda norm: norm * (1 + 40 * (at < 30)))  # fmt: skip
    root, _, _ = _told(hurt, "no warm-up")
    assert root.sign.finding.confidence == "likely"
    assert root.sign.finding.patch == {"stages.pretrain.schedule.warmup": 0.05}


def test_a_warmup_of_most_of_the_run(rng):
    assert _is_silent(pretraining(rng), "warm-up too long")
    root, _, _ = _told(pretraining(rng, warmup_steps=500.0), "warm-up too long")
    assert root.sign.finding.confidence == "certain"


def test_a_batch_far_below_its_band(rng):
    settings = {"batch_tokens": 128.0, "batch_rows": 1.0, "tokens": 128.0 * 800 * 500, "steps": 800.0 * 500}
    log = _with(replace(pretraining(rng, learning_rate=5e-4), ended=None), settings)
    root, _, _ = _told(log, "batch too small")
    assert root.sign.finding.confidence == "likely"


@pytest.mark.parametrize(("tokens", "is_told"), [(120.0, True), (480.0, False)])
def test_updates_of_single_short_rows_whose_loss_jumps(rng, tokens, is_told):
    log = tuning(rng, 200)
    log = _with(
        log, {"batch_tokens": tokens, "batch_rows": 1.0}, train__loss=lambda values: values * np.exp(rng.normal(0, 0.4, 200))
    )
    root, _, _ = _told(log, "batch too small")
    assert (root is not None and root.sign.finding.confidence == "likely") == is_told


def test_a_batch_drowned_in_noise(rng):
    noise = Series(np.arange(10, 801.0, 10), np.exp(rng.normal(np.log(1e6), 0.5, 80)))
    log = _with(pretraining(rng), grad_noise__scale=noise)
    root, _, _ = _told(log, "batch too small")
    assert root.sign.finding.confidence == "possible"
    assert _is_silent(_with(log, grad_noise__scale=Series(noise.steps, noise.values / 50)), "batch too small")


def test_a_batch_so_large_that_few_updates_are_left(rng):
    steps = 60
    at = np.arange(1, steps + 1.0)
    settings = replace(whole(FRESH, steps), batch_tokens=1e6, batch_rows=4096.0, tokens=6e7, rows=4096.0 * 60)
    log = log_of(noisy(rng, 8.8 - 2.2 * at / steps, 0.005), settings, train__lr=linear_rates(at, 4e-3, 2, steps),
                 train__epoch=at / steps)  # fmt: skip
    root, under, _ = _told(log, "batch too large")
    assert root.sign.finding.confidence == "likely"
    assert under["slow learning"] == "batch too large"


@pytest.mark.parametrize(("steps", "sure"), [(5, "certain"), (200, None)])
def test_few_updates(rng, steps, sure):
    root, _, _ = _told(tuning(rng, steps) if steps > 50 else _short(rng, steps), "too few updates")
    assert (root and root.sign.finding.confidence) == sure


def _short(rng, steps):
    at = np.arange(1, steps + 1.0)
    return log_of(noisy(rng, falling(at, 2, 1.5, 5), 0.02), whole(TRAINED, steps), train__lr=linear_rates(at, 1e-3, 1, steps))


def test_a_run_that_is_too_short_for_its_model(rng):
    at = np.arange(1, 501.0)
    settings = replace(whole(FRESH, 500), tokens=2e6, batch_tokens=4000.0, learning_rate=2e-3)
    log = log_of(8.8 - 2.4 * (at / 500) ** 0.7 + rng.normal(0, 0.03, 500), settings, train__lr=linear_rates(at, 2e-3, 10, 500))
    root, under, _ = _told(log, "trained too short", data__unigram_entropy=6.0, data__bigram_entropy=4.0)
    assert root.sign.finding.confidence == "likely"
    assert under["high level"] == "trained too short"
    assert _is_silent(replace(log, ended=None, settings=replace(settings, steps=5000.0)), "trained too short")


def _overfit(rng, rise=0.25, epochs=6):
    at = np.arange(1, 901.0)
    places = np.arange(89, 900, 90)
    settings = whole(TRAINED, 900, float(epochs))
    held_out = 1.6 - 0.3 * np.minimum(at[places], 300) / 300 + rise * np.clip(at[places] - 300, 0, None) / 600
    training = 1.8 - 0.3 * np.minimum(at, 300) / 300 - 0.9 * np.clip(at - 300, 0, None) / 600
    rates = linear_rates(at, 1e-3, 18, 900)
    return log_of(noisy(rng, training, 0.03), settings, train__lr=rates, train__epoch=at * epochs / 900,
                  eval__loss=Series(at[places], held_out + rng.normal(0, 0.002, 10)))  # fmt: skip


def test_validation_that_rises_over_epochs(rng):
    root, under, _ = _told(_overfit(rng), "too many epochs")
    assert root.sign.finding.confidence == "certain"
    assert {"validation rises", "train-validation gap"} <= under.keys()
    assert root.sign.finding.patch["stages.sft.early_stopping.patience"] == 3
    assert root.sign.finding.patch["stages.sft.duration"] in ("2 epochs", "3 epochs")


@pytest.mark.parametrize(("rise", "epochs"), [(0.01, 6), (0.25, 1)])
def test_hardly_any_rise_or_rows_that_are_read_once(rng, rise, epochs):
    assert _is_silent(_overfit(rng, rise, epochs), "too many epochs")


def test_a_divergence_is_no_overfitting(rng):
    log = _overfit(rng)
    at = log.series["train/loss"].steps
    broken = _with(log, train__loss=lambda loss: np.where(at > 300, 3.0, loss))
    assert _is_silent(broken, "too many epochs")


def test_steps_down_at_borders_are_known_by_heart(rng):
    at = np.arange(1, 901.0)
    log = log_of(noisy(rng, 3.0 - 0.8 * np.floor((at - 1) / 300), 0.03), replace(whole(TRAINED, 900, 3.0)),
                 train__lr=linear_rates(at, 1e-3, 18, 900), train__epoch=at / 300,
                 eval__loss=Series(at[299::150], np.array([2.9, 2.9, 2.95, 2.9, 2.92])))  # fmt: skip
    root, under, _ = _told(log, "repeated data learned by heart")
    assert root.sign.finding.confidence == "likely"
    assert under["sawtooth"] == "repeated data learned by heart"


def _read_often(rng, followed, epochs=12.0):
    """The training loss falls to the end, the validation loss by a share of that over the later half."""
    at = np.arange(1, 601.0)
    places = np.arange(99, 600, 100)
    fall = np.clip(at - 300, 0, None) / 300
    held_out = 3.0 - 1.0 * np.minimum(at, 300) / 300 - followed * fall
    return log_of(noisy(rng, 3.0 - 1.2 * np.minimum(at, 300) / 300 - fall, 0.02), whole(TRAINED, 600, epochs),
                  train__lr=linear_rates(at, 1e-3, 18, 600), train__epoch=at * epochs / 600,
                  eval__loss=Series(at[places], held_out[places] + rng.normal(0, 0.002, 6)))  # fmt: skip


def test_a_validation_loss_that_does_not_follow_over_many_epochs_is_learning_by_heart(rng):
    root, under, _ = _told(_read_often(rng, 0.05), "repeated data learned by heart")
    assert root.sign.finding.confidence == "likely" and root.sign.finding.severity == "warning"
    assert under["train-validation gap"] == "repeated data learned by heart"
    assert "12.0 epochs" in root.sign.finding.message


@pytest.mark.parametrize(("followed", "epochs"), [(0.8, 12.0), (0.05, 2.0)])
def test_a_validation_loss_that_follows_or_few_epochs_are_no_learning_by_heart(rng, followed, epochs):
    assert _is_silent(_read_often(rng, followed, epochs), "repeated data learned by heart")


@pytest.mark.parametrize(("first", "is_silent"), [(3.0, False), (8.0, True)])
def test_a_gap_is_no_fault_where_most_of_what_was_learned_reached_the_validation_loss(rng, first, is_silent):
    log = _with(_read_often(rng, 0.05), train__loss=lambda loss: np.concatenate([[first], loss[1:]]))
    assert _is_silent(log, "repeated data learned by heart") == is_silent


def test_the_same_order_in_every_epoch(rng):
    at = np.arange(1, 901.0)
    same = np.tile(np.repeat(rng.normal(0, 0.1, 60), 5), 3)
    log = _with(tuning(rng, 900), {"epochs": 3.0}, train__loss=2 + same + rng.normal(0, 0.03, 900), train__epoch=at / 300)
    assert not _is_silent(log, "same order in every epoch")
    free = _with(log, train__loss=2 + rng.normal(0, 0.1, 900))
    assert _is_silent(free, "same order in every epoch")


def _half(rng, scale, skipped, precision="fp16"):
    log = tuning(rng, precision=precision)
    at = log.series["train/loss"].steps
    return _with(log, train__loss_scale=scale(at), train__skipped_steps=skipped(at))


def test_fp16_that_overflows_for_ever(rng):
    dead = _half(rng, lambda at: 65536 / 2.0 ** np.minimum(at, 20), lambda at: at * 0.9)
    root, _, _ = _told(dead, "fp16 overflow")
    assert root.sign.finding.confidence == "certain"
    assert root.sign.finding.patch == {"runtime.precision": "bf16"}
    assert _is_silent(_half(rng, lambda at: 65536 / 2 ** np.minimum(at // 100, 2), lambda at: at // 100), "fp16 overflow")
    assert _is_silent(_half(rng, lambda at: np.ones_like(at), lambda at: at, precision="bf16"), "fp16 overflow")
    assert not _is_silent(
        _half(rng, lambda at: 65536 / 2.0 ** np.minimum(at, 20), lambda at: at * 0.9, "fp32"), "fp16 overflow"
    )


def test_numbers_that_are_none_for_ever(rng):
    log = pretraining(rng)
    at = log.series["train/loss"].steps
    root, under, said = _told(_with(log, train__loss=lambda loss: np.where(at > 300, math.nan, loss)), "no finite numbers")
    assert root.sign.steps[0] == 301
    assert under["not a number"] == "no finite numbers"
    assert not said.is_healthy


def test_single_updates_without_numbers(rng):
    log = pretraining(rng)
    at = log.series["train/loss"].steps
    root, _, _ = _told(
        _with(log, train__loss=lambda loss: np.where(at % 100 == 50, math.nan, loss)), "bad numbers in single rows"
    )
    assert root.sign.finding.confidence == "likely"
    assert _is_silent(log, "bad numbers in single rows")


def test_validation_on_rows_that_are_known(rng):
    at = np.arange(1, 901.0)
    loss = noisy(rng, 3.0 * 0.75 ** np.floor((at - 1) / 300), 0.02)
    places = np.arange(149, 900, 150)
    log = log_of(loss, whole(TRAINED, 900, 3.0), train__lr=linear_rates(at, 1e-3, 18, 900), train__epoch=at / 300,
                 eval__loss=Series(at[places], 2.9 * 0.74 ** np.floor((at[places] + 20) / 300)))  # fmt: skip
    root, _, _ = _told(log, "validation on training data")
    assert root.sign.finding.confidence == "likely"
    assert _is_silent(log, "validation on training data", data__validation_overlap=0.0)
    assert _is_silent(_with(log, {"dropout": 0.1}), "validation on training data")


def test_a_loss_that_is_summed_over_micro_batches(rng):
    log = _with(pretraining(rng, accumulation_steps=4), train__loss=lambda loss: loss * 4)
    root, _, _ = _told(log, "logged loss summed over accumulation")
    assert root.sign.finding.confidence == "likely"
    assert _is_silent(_with(log, {"accumulation_steps": 1.0}), "logged loss summed over accumulation")
    divided = _with(pretraining(rng, accumulation_steps=4), train__loss=lambda loss: loss / 4)
    assert "divided by" in _told(divided, "logged loss summed over accumulation")[0].sign.finding.message


def test_a_noisy_validation_loss(rng):
    log = pretraining(rng)
    at = np.arange(40, 801.0, 40)
    noisy_one = _with(log, eval__loss=Series(at, 3 + rng.normal(0, 0.2, 20)))
    root, _, _ = _told(noisy_one, "validation too noisy")
    assert root.sign.finding.severity == "info"
    assert _is_silent(log, "validation too noisy")


def test_nothing_is_evaluated(rng):
    log = pretraining(rng)
    blind = replace(log, series={name: one for name, one in log.series.items() if name != "eval/loss"})
    root, _, said = _told(blind, "never evaluated")
    assert root.sign.finding.severity == "info" and said.is_healthy
    assert _is_silent(log, "never evaluated")


@pytest.mark.parametrize(("share", "sure"), [(0.05, None), (0.4, "likely"), (0.8, "certain")])
def test_updates_that_wait_for_data(rng, share, sure):
    log = _with(pretraining(rng), system__step_seconds=np.full(800, 0.1), system__phases__data=np.full(800, 0.1 * share))
    root, _, _ = _told(log, "waiting for data")
    assert (root and root.sign.finding.confidence) == sure


def test_updates_that_become_slower(rng):
    log = _with(pretraining(rng), system__step_seconds=0.1 * (1 + np.arange(800) / 400))
    root, under, _ = _told(log, "updates become slower")
    assert root is not None and under["slow training"] == "updates become slower"


def test_memory_that_grows(rng):
    log = _with(pretraining(rng), system__memory_bytes=1e9 * (1 + np.arange(800) / 800))
    assert _told(log, "memory grows")[0].sign.finding.confidence == "likely"
    jumps = _with(log, system__memory_bytes=1e9 * np.where(np.arange(800) > 20, 1.5, 1.0))
    assert _is_silent(jumps, "memory grows")


def test_the_last_line_of_a_crash(rng):
    text = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    log = replace(pretraining(rng), events=({"kind": "crash", "text": text, "line": 9},), ended=False)
    root, _, _ = _told(log, "out of memory")
    assert root.sign.finding.patch == {
        "stages.pretrain.batch.micro_batch_size": 16, "stages.pretrain.batch.gradient_accumulation_steps": 2,
    }  # fmt: skip
    other = replace(log, events=({"kind": "crash", "text": "ValueError: no rows", "line": 9},))
    assert _is_silent(other, "out of memory")
    assert _told(other, "stopped by an error")[0].sign.finding.confidence == "certain"


def test_a_resume_without_the_state_of_the_optimizer(rng):
    log = pretraining(rng)
    at = log.series["train/loss"].steps
    resumed = replace(
        _with(log, train__loss=lambda loss: loss + np.where(at > 400, 0.8 * np.exp(-(at - 400) / 40), 0)),
        events=({"kind": "startup", "step": 401},),
    )
    root, _, _ = _told(resumed, "resumed without optimizer state")
    assert root.sign.finding.evidence["step"] == 401
    assert _is_silent(replace(log, events=resumed.events), "resumed without optimizer state")


def test_larger_gradients_and_updates_after_a_resume(rng):
    log = pretraining(rng)
    at = log.series["train/loss"].steps
    every = np.arange(1, 801.0, 10)
    update = 4e-2 * np.interp(every, at, log.series["train/lr"].values) / 4e-3
    sound = _with(log, update_ratio__attention=Series(every, update), update_ratio__mlp=Series(every, update))
    sound = replace(sound, events=({"kind": "startup", "step": 401},))
    assert _is_silent(sound, "resumed without optimizer state")
    larger = update * np.where((every > 400) & (every < 430), 1.6, 1)
    lost = _with(sound, train__grad_norm=lambda norm: norm * np.where((at >= 401) & (at < 408), 2, 1),
                 update_ratio__attention=Series(every, larger), update_ratio__mlp=Series(every, larger))  # fmt: skip
    assert _told(lost, "resumed without optimizer state")[0].sign.finding.confidence == "likely"


def test_a_second_warmup_is_seen_as_a_resume(rng):
    at = np.arange(1, 801.0)
    rates = np.where(at <= 400, linear_rates(at, 4e-3, 16, 1600), linear_rates(at - 400, 4e-3, 40, 1200))
    log = _with(pretraining(rng), {"schedule": None}, train__lr=rates)
    log = _with(log, train__loss=lambda loss: loss + np.where(at > 400, 0.8 * np.exp(-(at - 400) / 40), 0))
    assert not _is_silent(log, "resumed without optimizer state")


def test_nothing_known_of_the_run_but_its_loss(rng):
    loss = noisy(rng, falling(np.arange(1, 301.0), 5, 3, 10), 0.03)
    said = diagnose(case_of(log_of(loss, TrainingSettings(), source="text", ended=None)))
    assert not said.found and not [one for one in said.unexplained if one.severity != "info"]


def test_a_rate_that_was_set_is_judged_without_a_column(rng):
    loss = noisy(rng, falling(np.arange(1, 401.0), 8.8, 3, 10), 0.03)
    log = log_of(loss, whole(replace(FRESH, learning_rate=1e-6), 400))
    assert _told(log, "learning rate too low")[0].sign.finding.confidence == "likely"
    assert _is_silent(log_of(loss, whole(FRESH, 400)), "learning rate too low")


def test_a_log_that_ends_within_its_warm_up_is_judged_by_the_rate_that_was_set(rng):
    log = pretraining(rng, warmup_steps=100.0)
    begun = {name: one.between(0, 20) for name, one in log.series.items()}
    rising = {**begun, "train/lr": Series(np.arange(1, 21.0), 4e-5 * np.arange(1, 21.0))}
    assert _is_silent(replace(log, series=rising, ended=None), "learning rate too low")
    unknown = replace(log, series=rising, ended=None, settings=replace(log.settings, learning_rate=None))
    assert _is_silent(unknown, "learning rate too low")
