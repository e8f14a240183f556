"""Where a log does not say how many tokens an update reads, the band of rates is that of any usual batch."""

import numpy as np
import pytest

from fledge.diagnosis import Case
from fledge.diagnosis.diagnose import add_own_figures
from fledge.training_log import Series, TrainingLog, TrainingSettings

STEPS = np.arange(1.0, 101.0)


def band(kind: str | None, initial: str, context: float | None) -> tuple[float, float]:
    """The band of learning rates of a made-up log of a model of width 64, and batches of 16 rows."""
    settings = TrainingSettings(
        kind=kind, initial=initial, method="full", hidden_size=64, vocab_size=6400, steps=100, batch_rows=16, context=context
    )
    series = {"train/loss": Series(STEPS, 9 - STEPS / 50), "train/lr": Series(STEPS, np.full(100, 1e-3))}
    case = Case(log=TrainingLog(source="made up", path="made up", series=series, settings=settings, records=100))
    add_own_figures(case)
    return case.value("plan/rate_low"), case.value("plan/rate_high")


@pytest.mark.parametrize(("kind", "initial"), [("pretrain", "fresh"), ("sft", "trained")])
@pytest.mark.parametrize("context", [64, 512, 2048])
def test_band_of_an_unknown_batch_holds_that_of_a_known_one(kind: str, initial: str, context: float) -> None:
    low, high = band(kind, initial, None)
    known_low, known_high = band(kind, initial, context)

    assert low <= known_low <= known_high <= high
    assert high / low > known_high / known_low
