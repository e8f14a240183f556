"""What a log of another trainer leaves open: the width of the model, how its weights began, and how frequent tokens are."""

from dataclasses import replace

import numpy as np
import pytest

from fledge.diagnosis.diagnose import diagnose
from fledge.training_log import TrainingSettings
from tests.diagnosis.made_logs import case_of, falling, linear_rates, log_of, noisy

STEPS = 80
AT = np.arange(1, STEPS + 1.0)
ADAPTER = TrainingSettings(initial="trained", method="lora", adapter_rank=8, steps=float(STEPS))


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def _found(log, cause):
    said = diagnose(case_of(log))
    return next((one.sign.finding for one in said.found if one.cause == cause), None), said


@pytest.mark.parametrize(
    ("peak", "width", "sure"),
    [(0.02, None, "possible"), (0.02, 2048, "likely"), (0.5, None, "likely"), (2e-4, None, None)],
)
def test_a_rate_is_judged_by_itself_only_where_the_width_is_known(rng, peak, width, sure):
    settings = replace(ADAPTER, hidden_size=width)
    loss = noisy(rng, falling(AT, 2.0, 1.4, 20), 0.02)
    log = log_of(loss, settings, source="Hugging Face trainer_state.json", train__lr=linear_rates(AT, peak, 4, STEPS))
    found, _ = _found(log, "learning rate too high")
    assert (found and found.confidence) == sure


def test_a_rate_beside_a_divergence_is_judged_without_a_width(rng):
    loss = noisy(rng, np.where(AT < 30, 2.0 - 0.01 * AT, 6.0), 0.02)
    log = log_of(loss, ADAPTER, source="Hugging Face trainer_state.json", train__lr=linear_rates(AT, 0.02, 4, STEPS))
    found, _ = _found(log, "learning rate too high")
    assert found is not None and found.confidence == "likely"


def _high_and_falling(rng, settings):
    loss = noisy(rng, 7.0 - 0.004 * AT, 0.012)
    return log_of(loss, settings, source="Hugging Face trainer_state.json", train__lr=linear_rates(AT, 3e-4, 4, STEPS))


def test_a_short_run_on_a_high_level_of_unknown_start_is_no_fault(rng):
    found, said = _found(_high_and_falling(rng, TrainingSettings(steps=float(STEPS), vocab_size=6400)), "trained too short")
    assert found is None or found.confidence == "possible"
    assert said.is_healthy


def test_the_same_from_fresh_weights_was_too_short(rng):
    settings = TrainingSettings(steps=float(STEPS), vocab_size=6400, initial="fresh")
    found, _ = _found(_high_and_falling(rng, settings), "trained too short")
    assert found is not None and found.confidence == "likely"
