"""All causes, by the file that finds them."""

from fledge.diagnosis.cause import Cause
from fledge.diagnosis.causes import (
    answers,
    batch,
    data,
    duration,
    evaluation,
    machine,
    model,
    precision,
    preferences,
    processes,
    rates,
    rewards,
    targets,
    template,
)  # fmt: skip

CAUSES: tuple[Cause, ...] = (
    *targets.CAUSES,
    *data.CAUSES,
    *template.CAUSES,
    *model.CAUSES,
    *preferences.CAUSES,
    *rewards.CAUSES,
    *processes.CAUSES,
    *answers.CAUSES,
    *rates.CAUSES,
    *batch.CAUSES,
    *duration.CAUSES,
    *precision.CAUSES,
    *evaluation.CAUSES,
    *machine.CAUSES,
)
"""Every cause that the doctor knows. Names are different (a test holds it)."""
