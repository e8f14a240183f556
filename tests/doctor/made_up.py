"""Made-up examinations: a log whose numbers are computed here, and what was found in it."""

from pathlib import Path

import numpy as np

from fledge.diagnosis import Case, Diagnoses, Diagnosis, Figure, Sign
from fledge.doctor.examination import Examination
from fledge.doctor.target import Target
from fledge.findings import Finding
from fledge.training_log import Series, TrainingLog, TrainingSettings

STEPS = np.arange(1, 401, dtype=np.float64)
SETTINGS = TrainingSettings(
    kind="sft", initial="trained", method="full", learning_rate=0.01, steps=400.0, epochs=2.0, warmup_steps=8.0,
    batch_rows=32.0, micro_batch_rows=16.0, accumulation_steps=2.0, batch_tokens=8192.0, tokens=3_276_800.0,
    vocab_size=6400.0, hidden_size=320.0, optimizer="adamw", origin={"kind": "recipe.yaml", "steps": "plan.json"},
)  # fmt: skip
NOTHING = Diagnoses(found=(), unexplained=(), missing={})


def log(stage: str = "sft", settings: TrainingSettings = SETTINGS, source: str = "run of fledge") -> TrainingLog:
    """A loss that falls as a power of the step, a rate that falls linearly, and a step time of half a second."""
    series = {
        "train/loss": Series(STEPS, 9 * STEPS**-0.2),
        "train/lr": Series(STEPS, 0.01 * (1 - STEPS / 401)),
        "system/step_seconds": Series(STEPS, np.full(400, 0.5)),
    }
    return TrainingLog(
        source=source, path=f"runs/x/{stage}/events.jsonl", stage=stage, series=series, records=800, settings=settings,
        ended=True, notes=("Two columns were guessed.",), unread={"torn lines": 1},
    )  # fmt: skip


def rate_diagnosis(stage: str = "sft", rate: float = 0.0006) -> Diagnosis:
    """A learning rate that is too high, with a consequence and an alternative."""
    finding = Finding(
        check="learning rate too high", severity="error", message="the learning rate of 0.01 is 5 times above the band",
        hint="set the learning rate to about 0.0006", evidence={"peak_lr": 0.01, "rate_high": 0.002},
        patch={f"stages.{stage}.optimizer.learning_rate": rate}, confidence="likely",
    )  # fmt: skip
    spike = Finding(check="loss spikes", severity="warning", message="the loss jumps 3 times", confidence="certain")
    sign = Sign(finding=finding, strength=0.7, alternatives={"noisy answers": "probe/answer_gain"}, steps=(100.0, 200.0))
    return Diagnosis(cause="learning rate too high", category="learning rate", sign=sign, consequences=(spike,))


def examination(found: Diagnoses = NOTHING, *, stage: str = "sft", run: bool = True, **settings: object) -> Examination:
    """An examination of that log. `run`: of a run of fledge; `settings`: that differ."""
    own = SETTINGS.updated(TrainingSettings(**settings)) if settings else SETTINGS  # type: ignore[arg-type]
    target = Target(path=Path("runs/x"), run=Path("runs/x") if run else None)
    case = Case(log=log(stage if run else "", own, "run of fledge" if run else "Hugging Face trainer_state.json"))
    case.add("data", {"data/examples": Figure(800, "data")})
    return Examination(target=target, case=case, diagnoses=found, seconds={"reading": 0.1, "data": 0.2})


FAULTY = Diagnoses(found=(rate_diagnosis(),), unexplained=(), missing={"probe/ended": ("end token never supervised",)})
