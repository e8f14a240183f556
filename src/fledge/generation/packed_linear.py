"""Products with weights that stay as they are, x·Wᵀ, for inference.

On a CPU the weights are packed once, by oneDNN through the operators that PyTorch's own compiler calls, instead of in
every product: with 64 rows that is 1.2 times (512×512) to 1.5 times (512×2816, float32) as fast, with one row up to three
times. Where these operators are missing the plain product gives the same values.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

TYPICAL_ROWS = 64  # what the packing is laid out for; other numbers of rows work too


def can_pack(weight: Tensor) -> bool:
    """Whether this machine multiplies packed weights of this kind."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    operators = torch.ops.mkldnn
    if not (hasattr(operators, "_reorder_linear_weight") and hasattr(operators, "_linear_pointwise")):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(operators._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


class PlainProduct:
    """x [N, in] -> x·Wᵀ [N, out], and what often follows."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        """x·Wᵀ."""
        return F.linear(x, self.weight)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """other + x·Wᵀ."""
        return torch.addmm(other, x, self.weight.t())

    def silu(self, x: Tensor) -> Tensor:
        """silu(x·Wᵀ)."""
        return F.silu(F.linear(x, self.weight))

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """other · x·Wᵀ, element by element."""
        return F.linear(x, self.weight).mul_(other)


class PackedLinear:
    """The same as `PlainProduct`, on a copy of the weight in the layout that oneDNN computes with."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), TYPICAL_ROWS)
        self.operator = torch.ops.mkldnn._linear_pointwise

    def __call__(self, x: Tensor) -> Tensor:
        """x·Wᵀ."""
        return self.operator(x, self.weight, None, "none", [], "")

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """other + x·Wᵀ."""
        return self.operator.binary(x, other, self.weight, None, "add")

    def silu(self, x: Tensor) -> Tensor:
        """silu(x·Wᵀ)."""
        return self.operator(x, self.weight, None, "swish", [], "")

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """other · x·Wᵀ, element by element."""
        return self.operator.binary(x, other, self.weight, None, "mul")


Product = PlainProduct | PackedLinear


def product(weight: Tensor, dtype: torch.dtype) -> Product:
    """The product with a weight in this dtype, packed where the machine can."""
    weight = weight.detach().to(dtype)
    return PackedLinear(weight) if can_pack(weight) else PlainProduct(weight)


class PackedSwiGLU:
    """SwiGLU from its three weights, gate and up [I, D] and down [D, I]."""

    def __init__(self, gate: Tensor, up: Tensor, down: Tensor, dtype: torch.dtype) -> None:
        self.gate, self.up, self.down = (product(weight, dtype) for weight in (gate, up, down))

    def inner(self, normed: Tensor) -> Tensor:
        """silu(gate) · up, [N, D] -> [N, I]."""
        return self.up.times(normed, self.gate.silu(normed))

    def __call__(self, x: Tensor, normed: Tensor) -> Tensor:
        """On top of the residual."""
        return self.down.plus(self.inner(normed), x)
