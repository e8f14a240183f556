"""Phases of a step add up to the time between its marks."""

import time

import pytest
import torch

from fledge.monitor.phase_timer import PhaseTimer


def test_phases_are_the_time_between_marks_and_equal_names_add_up() -> None:
    started = time.perf_counter()
    clock = PhaseTimer(torch.device("cpu"))
    for _ in range(2):
        time.sleep(0.02)
        clock.mark("forward")
        time.sleep(0.04)
        clock.mark("backward")
    whole = time.perf_counter() - started
    clock.add("data", 0.5)
    clock.add("data", 0.25)
    phases = clock.seconds()
    assert list(phases) == ["data", "forward", "backward"]
    assert phases["data"] == 0.75
    assert phases["forward"] >= 0.04 and phases["backward"] >= 0.08
    assert phases["forward"] + phases["backward"] == pytest.approx(whole, abs=0.02)
    assert clock.seconds() == phases  # reading changes nothing


def test_a_clock_without_marks_has_no_phases() -> None:
    assert PhaseTimer(torch.device("cpu")).seconds() == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpus_phases_are_its_own_time_not_the_hosts() -> None:
    device = torch.device("cuda")
    matrix = torch.randn(4096, 4096, device=device)
    torch.mm(matrix, matrix)
    torch.cuda.synchronize()
    started = time.perf_counter()
    clock = PhaseTimer(device)
    for _ in range(40):
        torch.mm(matrix, matrix)
    clock.mark("forward")
    asked = time.perf_counter() - started
    measured = clock.seconds()["forward"]
    assert measured > 2 * asked  # the host was long done
    assert measured == pytest.approx(time.perf_counter() - started, rel=0.5)
