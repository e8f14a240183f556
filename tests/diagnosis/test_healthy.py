"""Healthy runs, odd ones among them: nothing is told about them."""

import numpy as np
import pytest

from fledge.diagnosis.diagnose import diagnose
from tests.diagnosis.made_logs import HEALTHY, case_of

DRAWS = 15


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_likely_is_told_about_a_healthy_run(name):
    alarms = []
    for seed in range(DRAWS):
        said = diagnose(case_of(HEALTHY[name](np.random.default_rng(seed))))
        alarms += [(seed, one.cause, one.sign.finding.message) for one in said.found
                   if one.sign.finding.confidence != "possible" and one.sign.finding.severity != "info"]  # fmt: skip
        alarms += [(seed, one.check, one.message) for one in said.unexplained if one.severity != "info"]
        assert said.is_healthy == (not alarms)
    assert not alarms


def test_there_are_two_hundred_draws():
    assert DRAWS * len(HEALTHY) >= 200
