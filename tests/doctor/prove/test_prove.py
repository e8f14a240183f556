"""Whole proofs on a real faulty run: the rate is a hundredth of what it should be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fledge.doctor import prove_runs
from fledge.doctor.prove import prove, prove_steps
from fledge.report.page import render
from fledge.run import Console
from tests.doctor.prove.conftest import SOUND_RATE

QUIET = Console(quiet=True)
RATE = "stages.talk.optimizer.learning_rate"


def files_of(run: Path) -> dict[str, bytes]:
    """The files of a run, without its proofs."""
    found = (file for file in run.rglob("*") if file.is_file() and "proofs" not in file.parts)
    return {str(file): file.read_bytes() for file in found}


def counted(monkeypatch: pytest.MonkeyPatch, stop_at: int = 99) -> list[Any]:
    """The runs that are trained from now on; the one with this number, from 0, is interrupted before it begins."""
    trained: list[Any] = []
    real: Callable[..., str] = prove_runs.ProofRuns._train

    def train(runs: prove_runs.ProofRuns, recipe: Any) -> str:
        if len(trained) == stop_at:
            raise KeyboardInterrupt
        trained.append(recipe)
        return real(runs, recipe)

    monkeypatch.setattr(prove_runs.ProofRuns, "_train", train)
    return trained


@pytest.mark.slow
def test_the_right_patch_helps_and_a_placebo_does_not(slow_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_of(slow_run)
    with monkeypatch.context() as patched:
        counted(patched, stop_at=3)
        with pytest.raises(KeyboardInterrupt):
            prove(slow_run, "talk", {RATE: SOUND_RATE}, minutes=3, console=QUIET)
    trained = counted(monkeypatch)
    proof = prove(slow_run, "talk", {RATE: SOUND_RATE}, minutes=3, console=QUIET, category="learning rate")
    assert len(trained) == 3  # what was measured before the interruption is not trained again
    assert proof.outcome == "helps" and proof.effect.interval[0] > 0 and proof.effect.gain > 10 * proof.effect.useful
    assert proof.share == 1 and proof.steps == (40, 40) and proof.start == "stage" and proof.seeds == (3, 4, 5)
    assert {one.seed for one in trained} == {4, 5} and proof.lines()[0] == f"Proved, it helps: {RATE}: 0.01"

    placebo = prove(slow_run, "talk", {"optimizer.eps": 2e-8}, minutes=3, console=QUIET)
    assert placebo.outcome == "does not help" and abs(placebo.effect.gain) < placebo.effect.useful
    assert len(trained) == 6  # its unchanged runs are those of the proof before
    nothing = prove(slow_run, "talk", {"checkpoint.keep_last": 4}, minutes=3, console=QUIET)
    assert nothing.effect.identical and nothing.outcome == "does not help" and len(trained) == 6

    assert prove(slow_run, "talk", {RATE: SOUND_RATE}, minutes=3, console=QUIET).effect == proof.effect and len(trained) == 6
    assert files_of(slow_run) == before and not (slow_run / "talk" / "proofs" / "work").exists()
    page = render(slow_run)
    assert "Proofs" in page and "loss of held-out answers" in page and "does not help" in page and f"{RATE}: 0.01" in page


@pytest.mark.slow
def test_steps_that_help_stay_and_others_are_left_out(slow_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = counted(monkeypatch)
    steps = [{"optimizer.eps": 3e-8}, {RATE: SOUND_RATE}, {"schedule.warmup": 0.1}]
    proofs = prove_steps(slow_run, "talk", steps, minutes=5, console=QUIET)
    assert [one.outcome for one in proofs][:2] == ["does not help", "helps"]
    assert [dict(one.base) for one in proofs] == [{}, {}, {RATE: SOUND_RATE}]
    assert proofs[2].effect.given == proofs[1].effect.patched and 6 <= len(trained) <= 12
