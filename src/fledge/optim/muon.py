"""Muon: the update of a matrix is its orthogonalized momentum (Jordan et al. 2024).

Matrices of equal shape are orthogonalized together in batched products, which are fewer and larger operations. A tensor [E,
out, in] is a stack of E matrices, each with an update of its own. Every rank of a sharded model gathers and orthogonalizes all
matrices.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fledge.distributed.fsdp import all_gather_like, get_local_tensor, local_shard_like
from fledge.model.cpu_products import multiplies_bf16
from fledge.optim.skip_step import SkipStepOptimizer, masked_copy_

aten: Any = torch.ops.aten  # for `_foreach` operations: one launch for many tensors
# (a, b, c) of each step x ← ax + bx³ + cx⁵: the nearest to 1 for what the steps before it left of [0.01, 1], by the method of
# Amsel et al. 2025. All together end in 1 ± 0.27. Decision 031.
COEFFICIENTS = ((8.0934, -23.6204, 17.4462), (3.6366, -2.7219, 0.5365), (2.6613, -1.9772, 0.4526))
ROOM = 1.02  # of the largest eigenvalue for rounding: the first step rises steeply above 1
GRAM_FROM = 1.5  # longer side ÷ shorter side from which products of the shorter side alone are fewer operations
MOMENTUM = 0.95
RMS_OF_ADAMW = 0.2  # Liu et al. 2025, §2.2: the usual size of an AdamW update
SMALLEST_NORM = 1e-7
MAX_STACK_NUMEL = 2**25  # most numbers in one batch of matrices: bounds the memory of a step


def orthogonal_dtype(device: torch.device) -> torch.dtype:
    """The dtype of Newton–Schulz products: bfloat16 where the device multiplies it fast, else float32.

    The choice depends only on the machine, so a resumed run computes with the dtype of the interrupted run.
    """
    fast = torch.cuda.get_device_capability(device) >= (8, 0) if device.type == "cuda" else multiplies_bf16()
    return torch.bfloat16 if fast else torch.float32


def newton_schulz(matrices: Tensor) -> Tensor:
    """Approximately U·Vᵀ of each M = U·S·Vᵀ in `matrices` [N, r, c].

    Newton–Schulz steps X ← (aI + bA + cA²)X with A = X·Xᵀ and a, b, c of `COEFFICIENTS`. They begin at X = M / √‖M·Mᵀ‖, whose
    largest singular value is at most 1 and nearer to 1 than with ‖M‖. Singular values from 0.01 on end in 1 ± 0.27, and smaller
    ones are multiplied by 78. Tall matrices (r > c) use A = XᵀX, from the right, so that the products have the shorter side.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    norm = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True, dtype=torch.float32)
    x = matrices / norm.clamp_min(SMALLEST_NORM).to(matrices.dtype)
    gram = _gram(x)
    largest = ROOM * torch.linalg.vector_norm(gram, dim=(1, 2), keepdim=True, dtype=torch.float32).clamp_min(SMALLEST_NORM)
    gram, scale = gram / largest.to(gram.dtype), largest.rsqrt().to(gram.dtype)
    if max(x.shape[1:]) >= GRAM_FROM * min(x.shape[1:]):
        polynomial = _polynomial_of_gram(gram) * scale
        return torch.bmm(x, polynomial) if tall else torch.bmm(polynomial, x)
    x = x * scale
    for number, (a, b, c) in enumerate(COEFFICIENTS):
        if number:
            gram = _gram(x)
        step = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, x, step, beta=a) if tall else torch.baddbmm(x, step, x, beta=a)
    return x


def _gram(x: Tensor) -> Tensor:
    """X·Xᵀ of matrices [N, r, c], or XᵀX if they are tall: the product with the shorter side."""
    return torch.bmm(x.mT, x) if x.shape[1] > x.shape[2] else torch.bmm(x, x.mT)


def _polynomial_of_gram(gram: Tensor) -> Tensor:
    """The matrix P with which all steps together are X ← P·X, of A = X·Xᵀ [N, s, s] alone.

    A step with B = aI + bA + cA² turns X into B·X, so A into B·A·B and P into P·B. The rounding of A to bf16 grows with A's
    smallest eigenvalues: single directions that hold next to nothing of M can end at 2 instead of 1.27.
    """
    polynomial = gram  # of no step yet
    for number, (a, b, c) in enumerate(COEFFICIENTS):
        step = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # B − aI
        if number + 1 < len(COEFFICIENTS):
            half = torch.baddbmm(gram, step, gram, beta=a)
            gram = torch.baddbmm(half, half, step, beta=a)
        if number:
            polynomial = torch.baddbmm(polynomial, polynomial, step, beta=a)
        else:
            polynomial = step
            polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
    return polynomial


class Muon(SkipStepOptimizer):
    """Muon with Nesterov momentum and decoupled weight decay.

    Updates are scaled by 0.2·√max(out, in), which gives them the RMS of AdamW's updates (Liu et al. 2025, eq. 4).
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        momentum: float = MOMENTUM,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`dtype`: dtype of the products; None: `orthogonal_dtype`. Raises ValueError for a parameter that is neither a
        matrix nor a stack of matrices."""
        self.dtype = dtype
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.dim() not in (2, 3):
                    raise ValueError(f"Muon trains matrices and stacks of them, not {list(parameter.shape)}")

    def update_group(self, group: dict[str, Any]) -> None:
        """Update the parameters of `group`; matrices of equal shape are processed together."""
        for parameters in _groups_of_one_shape(group["params"]):
            self._update(parameters, group)

    def _update(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Update parameters whose matrices have one shape: momentum, orthogonalization, weight decay, update."""
        device, (rows, columns) = parameters[0].device, parameters[0].shape[-2:]
        counts = [parameter.numel() // (rows * columns) for parameter in parameters]
        stack = torch.empty(sum(counts), rows, columns, device=device, dtype=self.dtype or orthogonal_dtype(device))
        blended = self._momentum(parameters, group["momentum"])
        for matrices, update, parameter in zip(stack.split(counts), blended, parameters, strict=True):
            matrices.copy_(all_gather_like(update, parameter))  # [out, in] or [E, out, in] into [E, out, in]
        del blended
        orthogonal = zip(newton_schulz(stack).split(counts), parameters, strict=True)
        updates = [
            _zero_without_gradient(local_shard_like(matrices.view(parameter.shape), parameter), parameter)
            for matrices, parameter in orthogonal
        ]
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
        """Update the momentum buffers; returns Nesterov's blend of gradient and momentum, for this rank's shards."""
        grads = [get_local_tensor(parameter.grad) for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [get_local_tensor(self.state[parameter]["momentum_buffer"]) for parameter in parameters]
        skip = self.skipped_on(grads[0].device)
        if skip is None:
            aten._foreach_lerp_.Scalar(buffers, grads, 1 - momentum)
            return aten._foreach_lerp.Scalar(grads, buffers, momentum)
        updated = aten._foreach_lerp.Scalar(buffers, grads, 1 - momentum)
        for buffer, new in zip(buffers, updated, strict=True):
            masked_copy_(buffer, new, skip)
        return aten._foreach_lerp.Scalar(grads, updated, momentum)


def _zero_without_gradient(update: Tensor, parameter: nn.Parameter) -> Tensor:
    """`update`, 0 for each matrix of a stack that has no gradient.

    An expert that received no token must not move: its remaining momentum would be scaled to a full-size update.
    """
    if parameter.dim() == 2 or parameter.grad is None:
        return update
    return update * get_local_tensor(parameter.grad).ne(0).any(-1, keepdim=True).any(-2, keepdim=True)


def _groups_of_one_shape(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters with gradients, grouped by device and matrix shape; at most `MAX_STACK_NUMEL` numbers per group."""
    by_shape: dict[tuple[torch.device, torch.Size], list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_shape.setdefault((parameter.device, parameter.shape[-2:]), []).append(parameter)
    for members in by_shape.values():
        room, group = MAX_STACK_NUMEL, []
        for parameter in members:
            if group and parameter.numel() > room:
                yield group
                room, group = MAX_STACK_NUMEL, []
            group.append(parameter)
            room -= parameter.numel()
        yield group
