"""Phases of a step add up to the time between its marks."""

import time

import pytest
import torch

from fledge.monitor.phase_timer import PhaseTimer


def test_a_phase_is_the_time_between_two_marks_and_equal_names_add_up() -> None:
    started = time.perf_counter()
    timer = PhaseTimer(torch.device("cpu"))
    for _ in range(2):
        time.sleep(0.02)
        timer.mark("forward")
        time.sleep(0.04)
        timer.mark("backward")
    seconds = time.perf_counter() - started
    timer.add("data", 0.5)
    timer.add("data", 0.25)
    phases = timer.seconds()
    assert list(phases) == ["data", "forward", "backward"]
    assert phases["data"] == 0.75
    assert phases["forward"] >= 0.04 and phases["backward"] >= 0.08
    assert phases["forward"] + phases["backward"] == pytest.approx(seconds, abs=0.02)
    assert timer.seconds() == phases  # reading changes nothing


def test_a_timer_without_marks_has_no_phases() -> None:
    assert PhaseTimer(torch.device("cpu")).seconds() == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_phases_on_a_gpu_measure_the_time_of_the_gpu_and_not_of_the_host() -> None:
    device = torch.device("cuda")
    matrix = torch.randn(4096, 4096, device=device)
    torch.mm(matrix, matrix)
    torch.cuda.synchronize()
    started = time.perf_counter()
    timer = PhaseTimer(device)
    for _ in range(40):
        torch.mm(matrix, matrix)
    timer.mark("forward")
    seconds = time.perf_counter() - started
    measured = timer.seconds()["forward"]
    assert measured > 2 * seconds  # the host was long done
    assert measured == pytest.approx(time.perf_counter() - started, rel=0.5)
