"""Logs that other trainers wrote in small runs, examined without a hint: what is said is right, or nothing is.

`logs/` and its table are made by `benchmarks/foreign_logs.py --fixtures`; the table says what is wrong with each run.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fledge.doctor import DoctorOptions, Examination, examine

LOGS = Path(__file__).parent / "logs"
TABLE: list[dict[str, Any]] = json.loads((LOGS / "table.json").read_text(encoding="utf-8"))
CASES = [pytest.param(case, id=case["name"]) for case in TABLE]
MOST_BYTES, LEAST_POINTS = 60_000, 20
PATH_OF_MACHINE = re.compile(rb"/(?:home|root|tmp|work|Users|mnt|opt)/\w")


def examined(case: dict[str, Any]) -> Examination:
    """The examination of the log alone."""
    found = examine(LOGS / case["name"] / case["log"], DoctorOptions(depth="curves"))
    assert len(found) == 1
    return found[0]


def told(found: Examination) -> list[str]:
    """The causes that are at least likely and more than information, the first one first."""
    findings = [(one.cause, one.sign.finding) for one in found.diagnoses.found]
    return [name for name, one in findings if one.confidence in ("certain", "likely") and one.severity != "info"]


@pytest.mark.parametrize("case", CASES)
def test_log_is_read(case: dict[str, Any]) -> None:
    log = examined(case).case.log

    series = log.series["train/loss"]
    assert len(series) >= LEAST_POINTS
    assert (series.steps[1:] > series.steps[:-1]).all()
    assert "train/lr" in log.series or case["trainer"] in WITHOUT_RATES


WITHOUT_RATES = ("nanogpt", "litgpt")
"""Trainers that do not print the learning rate."""


@pytest.mark.parametrize("case", CASES)
def test_what_is_said_is_right_or_nothing_is_said(case: dict[str, Any]) -> None:
    found = examined(case)
    causes = told(found)

    allowed = {*case["right"], *case["also"]}
    assert set(causes) <= allowed, f"{case['wrong'] or 'healthy'}: {causes}"
    if case["must"] == "named":
        assert causes and causes[0] in case["right"]
    if case["must"] == "healthy" and not case["also"]:
        assert found.is_healthy, [one.message for one in found.diagnoses.unexplained]


def test_logs_are_of_many_trainers_healthy_and_faulty() -> None:
    assert len(TABLE) >= 10
    assert len({case["trainer"] for case in TABLE}) >= 4
    assert sum(not case["wrong"] for case in TABLE) >= 4
    assert sum(bool(case["wrong"]) for case in TABLE) >= 6


def test_logs_are_small_and_tell_nothing_about_the_machine() -> None:
    files = [file for file in LOGS.rglob("*") if file.is_file()]

    assert len(files) > len(TABLE)
    for file in files:
        content = file.read_bytes()
        assert len(content) <= MOST_BYTES, file
        assert not PATH_OF_MACHINE.search(content), file
