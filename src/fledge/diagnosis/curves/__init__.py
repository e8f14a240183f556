"""Figures of a log alone, computed with numpy: levels, slopes, spikes, borders of epochs, validation, rates, gradients."""

from typing import Any

import numpy as np

from fledge.diagnosis.curves.answers import answer_figures
from fledge.diagnosis.curves.epochs import epoch_figures
from fledge.diagnosis.curves.gradients import gradient_figures
from fledge.diagnosis.curves.loss import loss_figures
from fledge.diagnosis.curves.machine import machine_figures
from fledge.diagnosis.curves.resume import resume_figures
from fledge.diagnosis.curves.schedule import schedule_figures
from fledge.diagnosis.curves.validation import validation_figures
from fledge.training_log import TrainingLog

PARTS = (
    loss_figures, epoch_figures, validation_figures, schedule_figures, gradient_figures, machine_figures, answer_figures,
    resume_figures,
)  # fmt: skip


def curve_figures(log: TrainingLog) -> dict[str, Any]:
    """All figures of a log by name (`curve_measures.CURVE_MEASURES`); those that it does not allow are left out."""
    figures: dict[str, Any] = {}
    for part in PARTS:
        figures |= part(log)
    return {name: _plain(value) for name, value in figures.items() if value is not None}


def _plain(value: Any) -> Any:
    """A number of numpy as one of Python."""
    return value.item() if isinstance(value, np.generic) else value
