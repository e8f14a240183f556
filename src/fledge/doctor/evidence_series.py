"""Which figures of a log show a finding, for its small plot and for the drawn one."""

import numpy as np

from fledge.diagnosis import Case, Diagnosis
from fledge.training_log import Series

LOSS = ("train/loss", "eval/loss")
SERIES: dict[str, tuple[str, ...]] = {
    "learning rate": ("train/loss", "train/lr", "train/grad_norm"),
    "batch": ("train/loss", "grad_noise/scale"),
    "duration": ("eval/loss", "train/loss"),
    "precision": ("train/loss_scale", "train/skipped_steps", "train/loss"),
    "evaluation": ("eval/loss", "train/loss"),
    "preferences": ("train/rewards/margins", "train/rewards/accuracies", "train/loss"),
    "rewards": ("train/reward", "train/equal_groups", "train/entropy", "train/kl"),
    "machine": ("system/step_seconds", "system/memory_bytes", "system/tokens_per_second"),
    "processes": ("train/loss", "train/grad_norm"),
}
"""Category of a cause → the figures that show it, the most telling first; the loss shows the others."""


def evidence_series(diagnosis: Diagnosis, case: Case, most: int = 1) -> list[tuple[str, Series]]:
    """The series of a log that show a finding, at most `most`: those that its evidence names, then those of its category."""
    evidence = diagnosis.sign.finding.evidence
    named = [name for name in (*evidence, *map(str, evidence.values())) if name in case.log.series]
    wanted = [*named, *SERIES.get(diagnosis.category, LOSS), *LOSS]
    there = [name for name in dict.fromkeys(wanted) if _can_be_drawn(case, name)]
    there.sort(key=lambda name: float(np.ptp(case.log.series[name].finite.values)) == 0)  # what never changes shows least
    return [(name, case.log.series[name]) for name in there[:most]]


def _can_be_drawn(case: Case, name: str) -> bool:
    series = case.log.series.get(name)
    return series is not None and len(series.finite) >= 2
