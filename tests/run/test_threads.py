"""Threads of single pieces of work: they end with it, and so do the OpenMP threads that PyTorch started for them."""

import os
import threading
import time
from pathlib import Path

import pytest
import torch

from fledge.run.threads import start_thread

TASKS = Path("/proc/self/task")  # one entry for each thread of this process


def _wait_until_ended(name: str) -> None:
    end = time.monotonic() + 10
    while any(thread.name.startswith(name) for thread in threading.enumerate()):
        assert time.monotonic() < end, "the thread stayed"
        time.sleep(0.01)


def test_result_and_error_come_back_and_the_thread_ends() -> None:
    assert start_thread("one-piece", lambda a, b: (a + b, threading.current_thread().name), 1, 2).result()[0] == 3
    with pytest.raises(ZeroDivisionError):
        start_thread("one-piece", lambda: 1 / 0).result()
    _wait_until_ended("one-piece")


@pytest.mark.skipif(not TASKS.is_dir(), reason="the system does not list threads")
def test_openmp_threads_of_the_work_end_with_it() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        values = torch.randn(1_000_000)
        torch.exp(values)  # this thread's own OpenMP threads
        count = len(os.listdir(TASKS))
        start_thread("one-piece", torch.exp, values).result()
        _wait_until_ended("one-piece")
        end = time.monotonic() + 10
        while len(os.listdir(TASKS)) > count:
            assert time.monotonic() < end, "OpenMP threads stayed"
            time.sleep(0.01)
    finally:
        torch.set_num_threads(before)
