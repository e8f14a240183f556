from pathlib import Path

import numpy as np

from fledge.sweep.pruning import Look, look_steps, median_look, why_pruned


def losses(shift: float, seed: int, documents: int = 60) -> dict[str, float]:
    """Losses of the same documents, whose own spread is much larger than the shift."""
    level = np.random.default_rng(0).normal(3.0, 1.0, documents)
    noise = np.random.default_rng(seed).normal(0.0, 0.05, documents)
    return {str(number): float(value) for number, value in enumerate(level + noise + shift)}


LOOKS = [Look(trial=n, value=value, file=Path("x")) for n, value in enumerate((3.0, 3.1, 3.2, 3.3), 1)]
STORED = {look.trial: losses(look.value - 3.0, look.trial) for look in LOOKS}


def test_looks_are_at_evaluations_before_the_last_step() -> None:
    assert look_steps(100, 10) == {1: 30, 2: 60}
    assert look_steps(20, 7) == {1: 7, 2: 14}
    assert look_steps(10, 10) == {}


def test_a_trial_ends_only_where_it_is_worse_than_the_median_beyond_noise() -> None:
    assert median_look(LOOKS) == LOOKS[1]
    reason = why_pruned(LOOKS, losses(0.3, 9), STORED)
    assert reason is not None and "trial 2" in reason and "60 documents" in reason
    assert why_pruned(LOOKS, losses(0.1, 9), STORED) is None  # as good as the median
    assert why_pruned(LOOKS, losses(-0.2, 9), STORED) is None  # better
    few = {key: value for key, value in losses(0.12, 9).items() if int(key) < 6}
    assert why_pruned(LOOKS, few, STORED) is None  # six documents cannot tell 0.02


def test_no_trial_ends_before_four_were_looked_at() -> None:
    assert why_pruned(LOOKS[:3], losses(2.0, 9), STORED) is None


def test_a_diverged_trial_ends() -> None:
    assert why_pruned(LOOKS, dict.fromkeys(losses(0, 1), float("inf")), STORED) is not None
