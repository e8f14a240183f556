"""Faults of the machine's work: slow loading, steps that slow down, memory that grows."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from fledge.doctor_bench.condition import Fault, wrapping
from fledge.doctor_bench.setup import RunSetup
from fledge.training.batch_source import DatasetSource
from fledge.training.train_step import TrainStep

MEBIBYTE = 2**20


def _slow_loader(setup: RunSetup, seconds: float) -> AbstractContextManager[None]:
    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def changed(self: DatasetSource, step: int) -> Any:
            time.sleep(seconds)
            return original(self, step)

        return changed

    return wrapping(DatasetSource, "batch", make)


def _slows_down(setup: RunSetup, seconds: float) -> AbstractContextManager[None]:
    """Each step takes longer than the one before."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def changed(self: TrainStep, batch: Any, *arguments: Any) -> Any:
            time.sleep(seconds * batch.step)
            return original(self, batch, *arguments)

        return changed

    return wrapping(TrainStep, "__call__", make)


def _leak(setup: RunSetup, mebibytes: int) -> AbstractContextManager[None]:
    """Each step keeps memory."""
    kept: list[np.ndarray] = []

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def changed(self: TrainStep, *arguments: Any) -> Any:
            kept.append(np.ones(mebibytes * MEBIBYTE, np.uint8))
            return original(self, *arguments)

        return changed

    return wrapping(TrainStep, "__call__", make)


FAULTS = (
    Fault(
        name="loader slow", category="machine", shapes=("pretrain",), levels={"120 ms": 0.12, "250 ms": 0.25},
        patch=_slow_loader, yardstick="always",
    ),
    Fault(
        name="steps slow down", category="machine", shapes=("pretrain",), levels={"1 ms": 1e-3, "3 ms": 3e-3},
        patch=_slows_down, yardstick="always",
    ),
    Fault(
        name="memory grows", category="machine", shapes=("pretrain",), levels={"4": 4, "12": 12}, patch=_leak,
        yardstick="memory",
    ),
)  # fmt: skip
