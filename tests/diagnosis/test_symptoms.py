"""Symptoms: seen where they are planted, and not in the neighbours that are sound."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fledge.diagnosis.diagnose import add_own_figures
from fledge.diagnosis.symptoms import SYMPTOMS
from fledge.training_log.records import Series
from tests.diagnosis.made_logs import (
    FRESH,
    HEALTHY,
    PAIRS,
    POLICY,
    TRAINED,
    case_of,
    falling,
    log_of,
    noisy,
    preferring,
    pretraining,
    whole,
)

RNG = np.random.default_rng(9)
AT = np.arange(1, 401.0)


def _seen(log, **figures):
    """Name → severity of the symptoms that are seen."""
    case = case_of(log, **figures)
    add_own_figures(case)
    return {one.name: found.severity for one in SYMPTOMS if (found := one.find(case)) is not None}


def _log(loss, settings=FRESH, **more):
    return log_of(loss, whole(settings, len(loss)), **more)


def test_a_flat_loss_of_fresh_weights_is_a_warning_and_of_trained_ones_information():
    flat = noisy(RNG, np.full(400, 8.5), 0.02)
    assert _seen(_log(flat))["not learning"] == "warning"
    assert _seen(_log(flat / 5, TRAINED))["not learning"] == "info"
    assert "not learning" not in _seen(_log(noisy(RNG, falling(AT, 8.8, 3, 20), 0.02)))


def test_a_fall_smaller_than_noise_is_none():
    loss = 2 - 0.3 * AT / 400 + RNG.normal(0, 0.05, 400)
    assert "not learning" not in _seen(_log(loss, TRAINED))
    assert "not learning" in _seen(_log(2 - 0.002 * AT / 400 + RNG.normal(0, 0.05, 400), TRAINED))


def test_levels_that_the_frequencies_of_tokens_reach():
    loss = noisy(RNG, falling(AT, 8.8, 4.4, 4), 0.01)
    assert "high level" not in _seen(_log(loss))
    assert "high level" in _seen(_log(loss), data__unigram_entropy=4.6)
    assert "high level" not in _seen(_log(loss), data__unigram_entropy=5.6)
    assert "high level" not in _seen(_log(loss), data__unigram_entropy=5.6, data__bigram_entropy=3.9)
    longer = noisy(RNG, falling(np.arange(1, 601.0), 8.8, 4.4, 4), 0.01)
    assert "high level" in _seen(_log(longer), data__unigram_entropy=5.6, data__bigram_entropy=3.9)
    assert "high level" in _seen(_log(loss + 2.6))


def test_no_level_is_judged_in_the_first_steps():
    assert "high level" in _seen(_log(noisy(RNG, np.full(400, 7.5), 0.02)))
    begun = replace(_log(noisy(RNG, np.full(60, 7.5), 0.02)), ended=None, settings=replace(whole(FRESH, 4000)))
    assert "high level" not in _seen(begun)


def test_a_large_vocabulary_has_a_high_level():
    settings = replace(FRESH, vocab_size=151_936)
    assert "high level" not in _seen(_log(noisy(RNG, falling(AT, 12, 5.5, 10), 0.02), settings))


def test_a_slow_fall():
    assert "slow learning" in _seen(_log(8.8 - 2 * AT / 400 + RNG.normal(0, 0.05, 400)))
    assert "slow learning" not in _seen(_log(noisy(RNG, falling(AT, 8.8, 2, 20), 0.02)))


def test_a_plateau_is_information():
    loss = np.where(AT < 40, 9 - AT * 0.1, 5) + RNG.normal(0, 0.02, 400)
    assert _seen(_log(loss))["plateau"] == "info"


def test_jumps():
    loss = noisy(RNG, falling(AT, 8.8, 3, 10), 0.02)
    jump = loss + np.where((AT > 200) & (AT < 225), 2.0, 0)
    assert "loss spikes" in _seen(_log(jump)) and "loss spikes" not in _seen(_log(loss))


@pytest.mark.parametrize(("rise", "is_seen"), [(0.1, False), (2.0, True)])
def test_divergence(rise, is_seen):
    loss = noisy(RNG, falling(AT, 8.8, 3, 10), 0.02) + rise * np.clip((AT - 200) / 100, 0, 1)
    assert ("divergence" in _seen(_log(loss))) is is_seen


@pytest.mark.parametrize(("bad", "is_seen"), [(AT > 300, True), (AT % 5 == 0, True), (AT == 7, True), (AT < 0, False)])
def test_losses_that_are_no_numbers(bad, is_seen):
    loss = np.where(bad, math.nan, falling(AT, 8.8, 3, 10))
    assert ("not a number" in _seen(_log(loss))) is is_seen


def test_a_gradient_that_overflows_now_and_then_is_usual():
    norms = np.where(np.arange(400) < 3, math.inf, 1.0)
    assert "not a number" not in _seen(_log(falling(AT, 8.8, 3, 10), train__grad_norm=norms))
    assert "not a number" in _seen(_log(falling(AT, 8.8, 3, 10), train__grad_norm=np.full(400, math.nan)))


def test_swings():
    clean = falling(AT, 8.8, 3, 10)
    assert "oscillation" not in _seen(_log(noisy(RNG, clean, 0.1)))
    swings = clean * (1 + 0.2 * np.repeat(RNG.normal(0, 1, 20), 20)) + RNG.normal(0, 0.02, 400)
    assert "oscillation" in _seen(_log(swings))


def _evaluated(values, training=None):
    places = np.linspace(40, 400, len(values))
    loss = noisy(RNG, falling(AT, 3, 1.5, 10) if training is None else training, 0.02)
    return _log(loss, TRAINED, eval__loss=Series(places, np.array(values, float)))


def test_validation_that_rises():
    assert "validation rises" in _seen(_evaluated([2, 1.8, 1.7, 1.75, 1.8, 1.85]))
    assert "validation rises" not in _seen(_evaluated([2, 1.8, 1.7, 1.71, 1.72]))
    assert "validation rises" not in _seen(_evaluated([2, 1.8, 1.7, 1.9, 1.7, 1.9, 1.7, 1.75, 1.7]))


def test_a_gap_that_grows():
    falls = 3 - 2.5 * AT / 400
    assert "train-validation gap" in _seen(_evaluated([2.8, 2.5, 2.4, 2.4, 2.3], falls))
    assert "train-validation gap" not in _seen(_evaluated([2.3, 1.9, 1.4, 0.9, 0.6], falls))


def test_gradients_of_nothing_and_too_much():
    loss = falling(AT, 8.8, 3, 10)
    assert "vanishing gradient" in _seen(_log(loss, train__grad_norm=np.zeros(400)))
    assert "vanishing gradient" in _seen(_log(loss, train__grad_norm=np.full(400, 1e-9)))
    assert "exploding gradient" in _seen(_log(loss, train__grad_norm=np.exp(AT / 60)))
    assert not {"vanishing gradient", "exploding gradient"} & _seen(_log(loss, train__grad_norm=2 / np.sqrt(AT))).keys()


def test_a_loss_that_text_cannot_have():
    assert "loss near zero" in _seen(_log(falling(AT, 8.8, 0.0, 0.01, 1.0), train__epoch=AT / 400))
    assert "loss near zero" not in _seen(_log(falling(AT, 8.8, 0.5, 1), train__epoch=AT / 400))


def test_equal_losses():
    assert _seen(_log(np.full(400, 2.5)))["loss constant"] == "error"


def test_preferences_that_do_not_come():
    still = np.full(100, math.log(2))
    flat = log_of(still, whole(PAIRS, 100), train__rewards__margins=np.zeros(100), train__rewards__accuracies=np.full(100, 0.3))
    assert {"loss at ln 2", "margins flat", "accuracy below a half"} <= _seen(flat).keys()
    sound = _seen(preferring(RNG))
    assert not {"loss at ln 2", "margins flat", "accuracy below a half", "not learning"} & sound.keys()


def test_the_start_of_a_preference_stage_is_ln_2():
    start = replace(preferring(RNG, 120), ended=None)
    cut = {name: Series(one.steps[:10], one.values[:10]) for name, one in start.series.items()}
    assert not _seen(replace(start, series=cut))


def test_rewards_that_do_not_rise_and_answers_that_are_cut():
    log = log_of(RNG.normal(0, 0.01, 60), whole(POLICY, 60), train__reward=RNG.normal(0.3, 0.02, 60),
                 train__completions__clipped_ratio=np.linspace(0.1, 0.9, 60))  # fmt: skip
    seen = _seen(log)
    assert seen["reward flat"] == "info" and "answers cut" in seen
    falls = log_of(RNG.normal(0, 0.01, 60), whole(POLICY, 60), train__reward=0.5 - np.arange(60) / 150)
    assert _seen(falls)["reward flat"] == "warning"


def test_slow_steps():
    log = pretraining(RNG)
    slow = replace(log, series={**log.series, "system/step_seconds": Series(np.arange(1, 801.0), 0.1 + np.arange(800) / 2000)})
    assert "slow training" in _seen(slow) and "slow training" not in _seen(log)


@pytest.mark.parametrize("name", HEALTHY)
def test_no_symptom_of_a_healthy_run_is_more_than_information(name):
    assert set(_seen(HEALTHY[name](np.random.default_rng(77))).values()) <= {"info"}
