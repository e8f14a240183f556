"""Figures of preferences and of rewards: where they began, where they are, and whether they move."""

import math
from typing import Any

import numpy as np

from fledge.diagnosis.curves.robust import noise
from fledge.training_log.records import Series, TrainingLog

PREFERENCES = {
    "margins": "train/rewards/margins",
    "accuracies": "train/rewards/accuracies",
    "chosen_logps": "train/logps/chosen",
    "rejected_logps": "train/logps/rejected",
    "chosen_drift": "train/drift/chosen",
    "rejected_drift": "train/drift/rejected",
}
REWARDS = {
    "reward": "train/reward",
    "reward_std": "train/reward_std",
    "equal_groups": "train/frac_reward_zero_std",
    "kl": "train/kl",
    "entropy": "train/entropy",
    "length": "train/completions/mean_length",
    "cut_answers": "train/completions/clipped_ratio",
}
ROUTER = {"largest_load": "router/max_load", "smallest_load": "router/min_load"}
LN2 = math.log(2)


def answer_figures(log: TrainingLog) -> dict[str, Any]:
    """For each series: the mean of the first and of the last tenth, and the standard error of the latter."""
    figures: dict[str, Any] = {}
    for name, key in {**PREFERENCES, **REWARDS, **ROUTER}.items():
        if (series := log.get(key)) is not None:
            figures |= _ends(name, series)
    losses = log.get("train/loss")
    if losses is not None and "curve/last_margins" in figures:
        figures["curve/loss_at_ln2"] = float((np.abs(losses.values - LN2) < 1e-3).mean())
    return figures


def _ends(name: str, series: Series) -> dict[str, Any]:
    size = max(1, len(series) // 10)
    return {
        f"curve/first_{name}": float(series.values[:size].mean()),
        f"curve/last_{name}": float(series.values[-size:].mean()),
        f"curve/{name}_error": float(noise(series.values) / np.sqrt(size)),
    }
