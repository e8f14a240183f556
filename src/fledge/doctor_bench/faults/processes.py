"""Faults of several processes: rows that are equal everywhere, weights that drift apart. Two processes train such a case."""

from contextlib import AbstractContextManager
from typing import Any

import torch

from fledge.distributed.context import DistributedContext
from fledge.doctor_bench.condition import Fault, replaced, wrapping
from fledge.doctor_bench.setup import RunSetup
from fledge.training.train_step import TrainStep


def _same_rows(setup: RunSetup, amount: Any) -> AbstractContextManager[None]:
    """Every process trains on the rows of the first one."""

    def first_share(self: DistributedContext, first: int, stop: int) -> tuple[int, int]:
        return first, first + (stop - first) // self.world_size

    return replaced(DistributedContext, "shard_range", first_share)


def _drift(setup: RunSetup, size: float) -> AbstractContextManager[None]:
    """The weights of each process move by themselves a little."""

    def make(original: Any) -> Any:
        @torch.no_grad()
        def changed(self: TrainStep, *arguments: Any) -> None:
            original(self, *arguments)
            for tensor in self.model.parameters():
                tensor.add_(size * self.ranks.rank)

        return changed

    return wrapping(TrainStep, "_step_optimizers", make)


FAULTS = (
    Fault(
        name="same rows in every process", category="processes", shapes=("sft",), levels={"": None}, patch=_same_rows,
        processes=2, is_silent=True, yardstick="always",
    ),
    Fault(
        name="processes drift apart", category="processes", shapes=("sft",), levels={"": 1e-4}, patch=_drift, processes=2,
        is_silent=True, yardstick="always",
    ),
)  # fmt: skip
