"""Logs that other trainers wrote in small runs, examined without a hint: what is said is right, or nothing is.

`logs/` and its table are made by `benchmarks/foreign_logs.py --fixtures`; the table says what is wrong with each run, which
causes name it (`right`), which are true of it as well (`also`), and which rows of the log were kept (`every`; 1 for all).
"""

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from fledge.doctor import DoctorOptions, Examination, examine

LOGS = Path(__file__).parent / "logs"
TABLE: list[dict[str, Any]] = json.loads((LOGS / "table.json").read_text(encoding="utf-8"))
CASES = [pytest.param(case, id=case["name"]) for case in TABLE]
MOST_BYTES, MOST_OF_ALL, LEAST_POINTS = 40_000, 600_000, 20
PATH_OF_MACHINE = re.compile(rb"/(?:home|root|tmp|work|Users|mnt|opt)/\w")
WITHOUT_RATES = ("nanogpt", "litgpt")
"""Trainers that do not print the learning rate at each step."""


@functools.cache
def examined(name: str, log: str) -> Examination:
    """The examination of a log alone."""
    found = examine(LOGS / name / log, DoctorOptions(depth="curves"))
    assert len(found) == 1
    return found[0]


def told(found: Examination) -> list[str]:
    """The causes that are at least likely and more than information, the first one first."""
    findings = [(one.cause, one.sign.finding) for one in found.diagnoses.found]
    return [name for name, one in findings if one.confidence in ("certain", "likely") and one.severity != "info"]


@pytest.mark.parametrize("case", CASES)
def test_log_is_read(case: dict[str, Any]) -> None:
    log = examined(case["name"], case["log"]).case.log

    series = log.series["train/loss"]
    assert len(series) >= LEAST_POINTS
    assert (series.steps[1:] > series.steps[:-1]).all()
    assert ("train/lr" in log.series) is (case["trainer"] not in WITHOUT_RATES)


@pytest.mark.parametrize("case", CASES)
def test_what_is_said_is_right_or_nothing_is_said(case: dict[str, Any]) -> None:
    found = examined(case["name"], case["log"])
    causes = told(found)

    assert set(causes) <= {*case["right"], *case["also"]}, f"{case['wrong'] or 'healthy'}: {causes}"
    if case["must"] == "named":
        assert causes and causes[0] in case["right"]
    if case["must"] == "healthy":
        assert found.diagnoses.is_healthy, [one.message for one in found.diagnoses.unexplained]


def test_settings_that_a_line_overrides_are_those_of_the_run() -> None:
    settings = examined("nanogpt-rate-high", "train.log").case.settings

    assert (settings.learning_rate, settings.hidden_size, settings.steps) == (1.0, 64, 200)


def test_a_model_card_of_trl_is_no_configuration_of_another_trainer() -> None:
    settings = examined("trl_dpo-pairs", ".").case.settings

    assert settings.kind == "preference"
    assert "stage" not in settings.other


def test_logs_are_of_many_trainers_healthy_and_faulty() -> None:
    assert len({case["trainer"] for case in TABLE}) >= 8
    assert sum(case["must"] == "healthy" for case in TABLE) >= 12
    assert sum(case["must"] == "named" for case in TABLE) >= 12


def test_logs_are_small_and_tell_nothing_about_the_machine() -> None:
    files = [file for file in LOGS.rglob("*") if file.is_file()]

    assert len(files) > len(TABLE)
    assert sum(file.stat().st_size for file in files) <= MOST_OF_ALL
    for file in files:
        content = file.read_bytes()
        assert len(content) <= MOST_BYTES, file
        assert not PATH_OF_MACHINE.search(content), file
