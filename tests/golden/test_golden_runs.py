"""Recorded runs end with the recorded numbers: refactoring changes none.

Where the processor and PyTorch are those of the recording, weights, optimizer state and every figure are equal to the last bit.
Elsewhere sums round differently: there the figures are equal within a tolerance, and everything that is counted is equal.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.golden.runs import EXPECTED, RUNS, arithmetic

TOLERANCE, GRAD_NORM = 2e-3, 2  # relative; the place of the norm among the figures of a step, behind its number
NORMS = {"quickstart": 0.1}  # the first updates of Muon, at its high rate, make 6 % of a difference in the last bits: measured
RECORDED: dict[str, Any] = json.loads(EXPECTED.read_text(encoding="utf-8"))
SLOW = {"quickstart", "two processes"}
CASES = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in RUNS]


@pytest.mark.parametrize("name", CASES)
def test_a_recorded_run_ends_with_the_recorded_weights_and_curves(name: str, tmp_path: Path) -> None:
    expected, actual = RECORDED["runs"][name], RUNS[name](tmp_path)
    if RECORDED["arithmetic"] == arithmetic():
        assert actual == expected
    assert actual.keys() == expected.keys()
    for stage, curves in expected.items():
        for kind in ("steps", "evals"):
            assert len(actual[stage][kind]) == len(curves[kind]) > 0
            for got, recorded in zip(actual[stage][kind], curves[kind], strict=True):
                assert got[0] == recorded[0]  # the step
                for place, (value, known) in enumerate(zip(got[1:], recorded[1:], strict=True)):
                    is_norm = kind == "steps" and place == GRAD_NORM
                    rel = NORMS.get(name, TOLERANCE) if is_norm else TOLERANCE
                    assert value == pytest.approx(known, rel=rel, abs=1e-6), (got, recorded)
        assert [row[-1] for row in actual[stage]["steps"]] == [row[-1] for row in curves["steps"]]  # tokens read so far


def test_every_run_is_recorded() -> None:
    assert RECORDED["runs"].keys() == RUNS.keys()
