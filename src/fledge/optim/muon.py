"""Muon: momentum, made orthogonal, as the update of a matrix (Jordan et al. 2024).

Matrices of one shape are made orthogonal together, by batched products: fewer and larger operations. A tensor [E, out, in]
is a stack of E matrices, each with its own update. Of a model that is divided among ranks every rank gathers the matrices and
makes all of them orthogonal.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fledge.distributed.fsdp import all_gather_like, get_local_tensor, local_shard_like
from fledge.optim.skip_step import SkipStepOptimizer, masked_copy_

aten: Any = torch.ops.aten  # its `_foreach` operations: one launch for many tensors
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: steepest at 0, within about 0.7 … 1.2 after five steps
STEPS = 5
MOMENTUM = 0.95
RMS_OF_ADAMW = 0.2  # Liu et al. 2025, §2.2: the usual size of an AdamW update
SMALLEST_NORM = 1e-7
STACK = 2**25  # numbers made orthogonal together, at most: bounds the memory of a step


def orthogonal_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it quickly, else float32: a property of the machine, so a resumed run
    computes as the one before it did."""
    if device.type == "cuda":
        quick = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        quick = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if quick else torch.float32


def newton_schulz(matrices: Tensor) -> Tensor:
    """Nearly U·Vᵀ of each M = U·S·Vᵀ of [N, r, c]: five Newton–Schulz steps X ← aX + (bA + cA²)X with A = X·Xᵀ, from
    X = M / ‖M‖ (Jordan et al. 2024). Singular values end between about 0.7 and 1.2. Tall ones take A = XᵀX from the
    right, so that the smaller side is multiplied."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    norm = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True, dtype=torch.float32)
    x = matrices / norm.clamp_min(SMALLEST_NORM).to(matrices.dtype)
    for _ in range(STEPS):
        gram = torch.bmm(x.mT, x) if tall else torch.bmm(x, x.mT)
        step = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, x, step, beta=a) if tall else torch.baddbmm(x, step, x, beta=a)
    return x


class Muon(SkipStepOptimizer):
    """Muon with Nesterov momentum and decoupled decay; an update is scaled by 0.2·√max(out, in), to the RMS of AdamW's
    (Liu et al. 2025, eq. 4)."""

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        momentum: float = MOMENTUM,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`dtype`: of the products; None: `orthogonal_dtype`."""
        self.dtype = dtype
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.dim() not in (2, 3):
                    raise ValueError(f"Muon trains matrices and stacks of them, not {list(parameter.shape)}")

    def update_group(self, group: dict[str, Any]) -> None:
        """Matrices of one shape together."""
        for together in _stacks(group["params"]):
            self._update(together, group)

    def _update(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Matrices of one shape: momentum, one stack made orthogonal, decay and update."""
        device, (rows, columns) = parameters[0].device, parameters[0].shape[-2:]
        counts = [parameter.numel() // (rows * columns) for parameter in parameters]
        stack = torch.empty(sum(counts), rows, columns, device=device, dtype=self.dtype or orthogonal_dtype(device))
        blended = self._momentum(parameters, group["momentum"])
        for part, update, parameter in zip(stack.split(counts), blended, parameters, strict=True):
            part.copy_(all_gather_like(update, parameter))  # [out, in] or [E, out, in] into [E, out, in]
        del blended
        parts = zip(newton_schulz(stack).split(counts), parameters, strict=True)
        updates = [_learned(local_shard_like(part.view(parameter.shape), parameter), parameter) for part, parameter in parts]
        weights = [get_local_tensor(parameter) for parameter in parameters]
        keep, scale = 1 - group["lr"] * group["weight_decay"], -group["lr"] * RMS_OF_ADAMW * math.sqrt(max(rows, columns))
        skip = self.skipped_on(device)
        if skip is None:
            aten._foreach_mul_.Scalar(weights, keep)
            aten._foreach_add_.List(weights, updates, alpha=scale)
            return
        for weight, update in zip(weights, updates, strict=True):
            masked_copy_(weight, (weight * keep).add_(update, alpha=scale), skip)

    def _momentum(self, parameters: list[nn.Parameter], momentum: float) -> Iterable[Tensor]:
        """Take the gradients into the momentum; returns Nesterov's blend of both, of what this rank has of them."""
        grads = [get_local_tensor(parameter.grad) for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [get_local_tensor(self.state[parameter]["momentum_buffer"]) for parameter in parameters]
        skip = self.skipped_on(grads[0].device)
        if skip is None:
            aten._foreach_lerp_.Scalar(buffers, grads, 1 - momentum)
            return aten._foreach_lerp.Scalar(grads, buffers, momentum)
        moved = aten._foreach_lerp.Scalar(buffers, grads, 1 - momentum)
        for buffer, new in zip(buffers, moved, strict=True):
            masked_copy_(buffer, new, skip)
        return aten._foreach_lerp.Scalar(grads, moved, momentum)


def _learned(update: Tensor, parameter: nn.Parameter) -> Tensor:
    """The updates of a stack, 0 for a matrix without any gradient: an expert that saw no token has nothing to learn, but what
    is left of its momentum would be made as large as the others'."""
    if parameter.dim() == 2 or parameter.grad is None:
        return update
    return update * get_local_tensor(parameter.grad).ne(0).any(-1, keepdim=True).any(-2, keepdim=True)


def _stacks(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters with gradients that can be made orthogonal together, no more than `STACK` numbers at once."""
    alike: dict[tuple[torch.device, torch.Size], list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            alike.setdefault((parameter.device, parameter.shape[-2:]), []).append(parameter)
    for members in alike.values():
        room, together = STACK, []
        for parameter in members:
            if together and parameter.numel() > room:
                yield together
                room, together = STACK, []
            together.append(parameter)
            room -= parameter.numel()
        yield together
