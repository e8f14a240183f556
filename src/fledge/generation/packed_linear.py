"""Products x·Wᵀ + b with constant weights, for inference.

oneDNN packs the weights on a CPU once instead of in every product, through the operators that PyTorch's own compiler calls:
1.2 times (512×512) to 1.5 times (512×2816, float32) as fast with 64 rows, up to three times with one row. If these operators
are missing, the plain product computes equal values.
"""

from collections.abc import Callable, Sequence
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledge.model.adapters import LoraLinear
from fledge.model.linear import Linear

TYPICAL_ROWS = 64  # the number of rows that the packed layout is optimized for; other numbers work too


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
    """x [N, in] -> x·Wᵀ + b [N, out], alone or fused with the operation that follows in a block."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        """x·Wᵀ + b."""
        return F.linear(x, self.weight, self.bias)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """other + x·Wᵀ + b."""
        added = other if self.bias is None else other + self.bias
        return torch.addmm(added, x, self.weight.t())

    def silu(self, x: Tensor) -> Tensor:
        """silu(x·Wᵀ + b)."""
        return F.silu(self(x))

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """other · (x·Wᵀ + b), element by element."""
        return self(x).mul_(other)


class PackedLinear:
    """`PlainProduct` on a copy of the weight in oneDNN's packed layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), TYPICAL_ROWS)
        self.operator, self.bias = torch.ops.mkldnn._linear_pointwise, bias

    def __call__(self, x: Tensor) -> Tensor:
        """x·Wᵀ + b."""
        return self.operator(x, self.weight, self.bias, "none", [], "")

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """other + x·Wᵀ + b."""
        return self.operator.binary(x, other, self.weight, self.bias, "add")

    def silu(self, x: Tensor) -> Tensor:
        """silu(x·Wᵀ + b)."""
        return self.operator(x, self.weight, self.bias, "swish", [], "")

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """other · (x·Wᵀ + b), element by element."""
        return self.operator.binary(x, other, self.weight, self.bias, "mul")


class ModuleProduct:
    """`PlainProduct` with a call of `module` instead of x·Wᵀ + b, for a module that is no plain linear layer (an adapter)."""

    def __init__(self, module: Callable[[Tensor], Tensor]) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        """module(x)."""
        return self.module(x)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """other + module(x)."""
        return other + self.module(x)

    def silu(self, x: Tensor) -> Tensor:
        """silu(module(x))."""
        return F.silu(self.module(x))

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """other · module(x), element by element."""
        return other * self.module(x)


Product = PlainProduct | PackedLinear | ModuleProduct


def product(weight: Tensor, dtype: torch.dtype, bias: Tensor | None = None) -> Product:
    """The product with a weight [out, in] and a bias [out] in this dtype, packed if the machine supports it."""
    weight, bias = weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype)
    return PackedLinear(weight, bias) if can_pack(weight) else PlainProduct(weight, bias)


def module_product(module: nn.Module, dtype: torch.dtype) -> Product:
    """The product with weight and bias of a plain `Linear`; any other module is called."""
    return product(module.dense_weight(), dtype, module.bias) if _is_plain(module) else ModuleProduct(module)


def joint_product(modules: Sequence[nn.Module], dtype: torch.dtype) -> Product:
    """The outputs of several modules for one input, concatenated in the last dimension: one product if all modules are plain
    `Linear` layers, else a call of each module."""
    plain = [module for module in modules if _is_plain(module)]
    if len(plain) < len(modules):
        return ModuleProduct(lambda x: torch.cat([module(x) for module in modules], dim=-1))
    biases = None
    if any(module.bias is not None for module in plain):
        zeros = (module.weight.new_zeros(module.out_features) for module in plain)
        biases = torch.cat([zero if module.bias is None else module.bias for module, zero in zip(plain, zeros, strict=True)])
    return product(torch.cat([module.dense_weight() for module in plain]), dtype, biases)


def _is_plain(module: nn.Module) -> TypeGuard[Linear]:
    """Whether the module is a `Linear` or a `LoraLinear`, so that its `dense_weight` and bias determine its outputs. A weight
    in 4 bits is not made dense to be packed: it is in 4 bits because memory is short."""
    return isinstance(module, Linear) and type(module) in (Linear, LoraLinear) and module.quantized is None


class PackedSwiGLU:
    """SwiGLU from its three products: gate and up [N, D] -> [N, I], down [N, I] -> [N, D]."""

    def __init__(self, gate: Product, up: Product, down: Product) -> None:
        self.gate, self.up, self.down = gate, up, down

    def inner(self, normed: Tensor) -> Tensor:
        """silu(gate) · up, [N, D] -> [N, I]."""
        return self.up.times(normed, self.gate.silu(normed))

    def __call__(self, x: Tensor, normed: Tensor) -> Tensor:
        """Residual x [N, D] plus the output of the network for the normed residual [N, D]."""
        return self.down.plus(self.inner(normed), x)
