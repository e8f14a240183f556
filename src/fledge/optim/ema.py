"""Exponential moving average (EMA) of the weights during training."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fledge.distributed.fsdp import distribute_like, get_local_tensor
from fledge.errors import FledgeError
from fledge.recipe.schema import EMAConfig

aten: Any = torch.ops.aten  # for `_foreach` operations: one launch for many tensors
PREFIX, COUNT = "average/", "average.updates"


class EMA:
    """Exponential moving average of the trained parameters in float32: ā ← ā + (1 − d)·(w − ā).

    Update number t (from 0) uses d = min(decay, (1 + t) / (10 + t)), so that the average soon forgets the initial weights. The
    first update happens after `start_fraction` of the steps; before that there are no averaged weights. If the model is
    sharded, each rank averages its local shards.
    """

    def __init__(self, model: nn.Module, config: EMAConfig, steps: int) -> None:
        """`steps`: length of the stage. Raises ValueError if `config.decay` is None."""
        if config.decay is None:
            raise ValueError("EMA needs a decay: the config sets none")
        self.decay, self.start_step = config.decay, round(config.start_fraction * steps)
        self.shapes = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.averages: list[Tensor] = []
        self.updates = 0

    def _parameters(self, model: nn.Module) -> list[Tensor]:
        by_name = dict(model.named_parameters())
        return [get_local_tensor(by_name[name].detach()) for name in self.shapes]

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Update the average with the weights after step number `step` (from 0). Nothing waits for the device."""
        if step < self.start_step and not self.updates:  # an average that has begun goes on in a stage that was made longer
            return
        parameters = self._parameters(model)
        if not self.averages:
            self.averages = [parameter.float().clone() for parameter in parameters]
        weights = [parameter.float() for parameter in parameters]
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        aten._foreach_lerp_.Scalar(self.averages, weights, 1 - decay)
        self.updates += 1

    def tensors(self) -> dict[str, Tensor]:
        """The averaged weights by name and the number of updates, for a checkpoint."""
        averages = zip(self.shapes.items(), self.averages, strict=False)
        named = {f"{PREFIX}{name}": distribute_like(tensor, like) for (name, like), tensor in averages}
        return {**named, COUNT: torch.tensor(self.updates)}

    def restore(self, tensors: dict[str, Tensor], device: torch.device | str = "cpu") -> None:
        """Load what `tensors` returned; other entries are ignored. Raises FledgeError if the tensors do not match this
        model."""
        if COUNT not in tensors:
            raise FledgeError("this checkpoint has no averaged weights", hint="it was saved without ema.decay")
        self.updates = int(tensors[COUNT])
        expected = [f"{PREFIX}{name}" for name in self.shapes] if self.updates else []
        if set(expected) != {name for name in tensors if name.startswith(PREFIX)}:
            raise FledgeError("the averaged weights of this checkpoint belong to another model")
        self.averages = [get_local_tensor(tensors[name]).to(device, copy=True) for name in expected]

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """A context in which the model holds the averaged weights; afterwards it holds its own weights again, bit for bit.

        Before the first update the model keeps its own weights.
        """
        if not self.averages:
            yield
            return
        parameters = self._parameters(model)
        own = [parameter.clone() for parameter in parameters]
        aten._foreach_copy_.default(parameters, self.averages)
        try:
            yield
        finally:
            aten._foreach_copy_.default(parameters, own)
