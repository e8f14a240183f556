"""Numbers of a device on their way to main memory: copied in one piece, read later.

Reading a number of a GPU at once makes the host wait for everything that was launched before, the newest update included.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from fledge.model.moe import RouterStats
from fledge.training.train_step import HalfBatchStats, StepOutput


class HostCopy:
    """Small tensors of one device, packed into one, whose asynchronous copy to page-locked memory begins here."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._kinds = [(tensor.dtype, tensor.shape, tensor.numel() * tensor.element_size()) for tensor in tensors]
        packed = torch.cat([tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in tensors])
        self._host = torch.empty(packed.shape, dtype=torch.uint8, pin_memory=packed.device.type == "cuda")
        self._host.copy_(packed, non_blocking=True)
        self._copied = torch.cuda.Event() if packed.device.type == "cuda" else None
        if self._copied is not None:
            self._copied.record()

    def read(self) -> list[Tensor]:
        """The tensors in main memory, bit for bit. Waits for the copy, and for nothing that was launched after it."""
        if self._copied is not None:
            self._copied.synchronize()
        pieces = self._host.split([size for _, _, size in self._kinds])
        return [
            piece.clone().view(dtype).view(shape)  # a copy, because a view needs an address that its dtype divides
            for piece, (dtype, shape, _) in zip(pieces, self._kinds, strict=True)
        ]


class PendingOutput:
    """The results of an update on their way to main memory."""

    def __init__(self, output: StepOutput) -> None:
        tensors: list[Tensor] = []
        self._output = with_tensors(output, lambda tensor: tensors.append(tensor) or tensor)
        self._copy = HostCopy(tensors)

    def read(self) -> StepOutput:
        """The results with all tensors in main memory. Waits for the update, not for the one after it."""
        tensors = iter(self._copy.read())
        return with_tensors(self._output, lambda tensor: next(tensors))


def with_tensors(output: StepOutput, change: Callable[[Tensor], Tensor]) -> StepOutput:
    """The results of an update with `change` applied to every tensor, in a fixed order."""

    def optional(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else change(tensor)

    halves, routing = output.halves, output.router_stats
    return replace(
        output,
        loss=change(output.loss),
        metrics={name: change(value) for name, value in output.metrics.items()},
        grad_norm=change(output.grad_norm),
        is_skipped=change(output.is_skipped),
        loss_scale=optional(output.loss_scale),
        num_skipped_steps=optional(output.num_skipped_steps),
        halves=halves
        and HalfBatchStats((change(halves.losses[0]), change(halves.losses[1])), change(halves.norm), halves.weights),
        update_ratios={name: change(value) for name, value in output.update_ratios.items()},
        router_stats=routing and RouterStats(**{one.name: change(getattr(routing, one.name)) for one in fields(routing)}),
    )
