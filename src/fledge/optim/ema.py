"""A moving average of the weights over the last updates, for the model that a stage ends with."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fledge.distributed.fsdp import distribute_like, get_local_tensor
from fledge.errors import FledgeError
from fledge.recipe.schema import EMAConfig

aten: Any = torch.ops.aten  # its `_foreach` operations: one launch for many tensors
PREFIX, COUNT = "average/", "average.updates"


class EMA:
    """Exponential moving average of the trained parameters, in float32: ā ← ā + (1 − d)·(w − ā).

    The t-th update (from 0) takes d = min(decay, (1 + t) / (10 + t)), so that the average soon forgets where it began. It
    is first updated after `start` of the steps; before that it has no weights of its own. Of a model that is divided among
    ranks, each averages what it has."""

    def __init__(self, model: nn.Module, config: EMAConfig, steps: int) -> None:
        """ValueError where the config averages nothing."""
        if config.decay is None:
            raise ValueError("no averaging is asked for")
        self.decay, self.first = config.decay, round(config.start_fraction * steps)
        self.shapes = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.averages: list[Tensor] = []
        self.updates = 0

    def _parameters(self, model: nn.Module) -> list[Tensor]:
        by_name = dict(model.named_parameters())
        return [get_local_tensor(by_name[name].detach()) for name in self.shapes]

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after step number `step`, counted from 0. Nothing is read by the host."""
        if step < self.first:
            return
        parameters = self._parameters(model)
        if not self.averages:
            self.averages = [parameter.float().clone() for parameter in parameters]
        wide = [parameter.float() for parameter in parameters]
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        aten._foreach_lerp_.Scalar(self.averages, wide, 1 - decay)
        self.updates += 1

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        averages = zip(self.shapes.items(), self.averages, strict=False)
        named = {f"{PREFIX}{name}": distribute_like(tensor, like) for (name, like), tensor in averages}
        return {**named, COUNT: torch.tensor(self.updates)}

    def restore(self, tensors: dict[str, Tensor], device: torch.device | str = "cpu") -> None:
        """Put back what `tensors` gave; other tensors are left alone. FledgeError where they are of another model."""
        if COUNT not in tensors:
            raise FledgeError("this checkpoint has no averaged weights", hint="it was made without averaging")
        self.updates = int(tensors[COUNT])
        wanted = [f"{PREFIX}{name}" for name in self.shapes] if self.updates else []
        if set(wanted) != {name for name in tensors if name.startswith(PREFIX)}:
            raise FledgeError("the averaged weights of this checkpoint are of another model")
        self.averages = [get_local_tensor(tensors[name]).to(device, copy=True) for name in wanted]

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """The model has the averaged weights inside, and exactly its own again afterwards. Before the first update both
        are the same."""
        if not self.averages:
            yield
            return
        parameters = self._parameters(model)
        kept = [parameter.clone() for parameter in parameters]
        aten._foreach_copy_.default(parameters, self.averages)
        try:
            yield
        finally:
            aten._foreach_copy_.default(parameters, kept)
