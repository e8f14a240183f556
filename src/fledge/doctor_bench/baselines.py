"""Simple readers of curves on the same logs, to compare the doctor with.

They are written anew from thresholds that others have published, and are not those programs: the rules LossNotDecreasing,
Overfit, VanishingGradient and ExplodingTensor of Amazon SageMaker Debugger with their defaults; the rules of trainproof 0.22
that its documentation gives numbers for; the spike score of OLMo-core. And two that read nothing: always the commonest cause,
always silent.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fledge.doctor_bench.effects import Effect, Place, place_of
from fledge.doctor_bench.records import CaseRecord
from fledge.doctor_bench.right_causes import RIGHT_CAUSES, is_right
from fledge.doctor_bench.score import Rate
from fledge.errors import FledgeError
from fledge.training_log import TrainingLog
from fledge.training_log.read import read_logs

Reader = Callable[[TrainingLog], str | None]
"""Gives the cause that a log is said to have, UNKNOWN for an alarm without a cause, or None: nothing is wrong."""
UNKNOWN = "(an alarm without a cause)"
LOSS, GRADIENT, RATE, EVALUATION = "train/loss", "train/grad_norm", "train/lr", "eval/loss"


def _values(log: TrainingLog, name: str) -> np.ndarray:
    series = log.series.get(name)
    return np.zeros(0) if series is None else series.values


def sagemaker(log: TrainingLog) -> str | None:
    """LossNotDecreasing: over 10 steps the loss falls by less than 0.1 %, or rises by more than 5 %. Overfit: the validation
    loss is above the training loss by more than 10 %. VanishingGradient: below 1e-7. ExplodingTensor: not finite."""
    loss, gradient, evaluation = _values(log, LOSS), _values(log, GRADIENT), _values(log, EVALUATION)
    if not np.isfinite(loss).all() or not np.isfinite(gradient).all():
        return "no finite numbers"
    if len(gradient) and gradient.min() < 1e-7:
        return UNKNOWN
    if len(evaluation) and len(loss) and (evaluation[-1] - loss[-1]) / abs(loss[-1] or 1.0) > 0.1:
        return "too many epochs"
    if len(loss) > 10:
        change = (loss[10:] - loss[:-10]) / np.abs(loss[:-10]).clip(1e-12)
        if (change > -0.001).any():
            return "learning rate too high" if (change > 0.05).any() else "learning rate too low"
    return None


def trainproof(log: TrainingLog) -> str | None:
    """Numbers that are not finite; a rate, a loss or gradients of 0; a loss that ends above 1.5 × its minimum; a gradient norm
    above 10 × its median."""
    loss, gradient, rate = _values(log, LOSS), _values(log, GRADIENT), _values(log, RATE)
    if not np.isfinite(loss).all() or not np.isfinite(gradient).all():
        return "no finite numbers"
    if len(rate) and not rate.any():
        return "learning rate zero"
    if len(loss) and (not loss.any() or (len(gradient) and not gradient.any())):
        return UNKNOWN
    if len(loss) and loss.min() > 0 and loss[-1] / loss.min() > 1.5:
        return "learning rate too high"
    if len(gradient) and gradient.max() > 10 * np.median(gradient):
        return "learning rate too high"
    return None


def spike_score(log: TrainingLog) -> str | None:
    """A loss or a gradient norm above the mean of the last 128 steps by 6 standard deviations, from step 64 on."""
    for name in (LOSS, GRADIENT):
        values = _values(log, name)
        for step in range(64, len(values)):
            window = values[max(0, step - 128) : step]
            if not np.isfinite(values[step]) or values[step] > window.mean() + 6 * window.std():
                return "learning rate too high"
    return None


READERS: Mapping[str, Reader] = {
    "rules of SageMaker Debugger (written anew)": sagemaker,
    "rules of trainproof (written anew)": trainproof,
    "spike score of OLMo-core (written anew)": spike_score,
    "always silent": lambda log: None,
}


def baseline_scores(cases: Iterable[tuple[Path, CaseRecord]], effects: Mapping[Place, Effect]) -> dict[str, dict[str, Any]]:
    """Recall, false alarms, and right causes of each baseline, on runs that the bench itself could train."""
    judged = [(record, _log(folder, record)) for folder, record in cases if record.failure is None]
    known = [(record, log) for record, log in judged if log is not None]
    common = Counter(RIGHT_CAUSES[record.case.condition][0] for record, _ in known if record.case.is_fault)
    commonest = common.most_common(1)[0][0] if common else UNKNOWN
    readers = {**READERS, f"always the commonest ({commonest})": lambda log: commonest}
    return {name: _scores([(record, reader(log)) for record, log in known], effects) for name, reader in readers.items()}


def _log(folder: Path, record: CaseRecord) -> TrainingLog | None:
    try:
        return read_logs(folder / record.log)[0]
    except (FledgeError, IndexError):
        return None


def _scores(said: Sequence[tuple[CaseRecord, str | None]], effects: Mapping[Place, Effect]) -> dict[str, Any]:
    def is_material(record: CaseRecord) -> bool:
        effect = effects.get(place_of(record.case))
        return effect is None or effect.is_material

    faulty = [(record, cause) for record, cause in said if record.case.is_fault and is_material(record)]
    healthy = [cause for record, cause in said if not record.case.is_fault]
    named = [(record, cause) for record, cause in faulty if cause not in (None, UNKNOWN)]
    right = sum(is_right(record.case.condition, str(cause)) for record, cause in named)
    rates = {
        "recall": Rate(sum(cause is not None for _, cause in faulty), len(faulty)),
        "false_alarms": Rate(sum(cause is not None for cause in healthy), len(healthy)),
        "top1": Rate(right, len(faulty)),
        "precision": Rate(right, len(named)),
        "top3": Rate(right, len(faulty)),
    }
    return {name: rate.as_dict() for name, rate in rates.items()}
