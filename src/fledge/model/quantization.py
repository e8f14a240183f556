"""Frozen weights in 4 bits (QLoRA: Dettmers et al. 2023), by the library bitsandbytes, which is imported then and not before.

A weight is cut into blocks of 64 numbers; each number is one of 16 levels times the scale of its block, which is the largest
magnitude of the block. With double quantization the scales, less their mean, are 8-bit levels times a scale for 256 of them.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledge.errors import missing_extra
from fledge.recipe.sections.quantization import QuantizationConfig

BLOCK = 64  # weights with one scale
SCALE_BLOCK = 256  # scales with one scale of their own


def bytes_per_weight(config: QuantizationConfig) -> float:
    """The bytes that one weight takes, its share of the scales included."""
    scale = 1 + 4 / SCALE_BLOCK if config.use_double_quant else 4
    return 0.5 + scale / BLOCK


@contextmanager
def _without_hub() -> Iterator[None]:
    """A context in which bitsandbytes finds no library `kernels`, with which it would fetch code from a hub when it is
    imported, and does not report that."""
    logger, hidden = logging.getLogger("bitsandbytes"), sys.modules.get("kernels")
    level = logger.level
    sys.modules["kernels"] = None  # type: ignore[assignment] - an import of it fails
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if hidden is None:
            del sys.modules["kernels"]
        else:
            sys.modules["kernels"] = hidden


@cache
def import_bitsandbytes() -> Any:
    """The library. Raises FledgeError if it is not installed."""
    try:
        with _without_hub():
            import bitsandbytes.functional
    except ImportError:
        raise missing_extra("bitsandbytes", "qlora", "training beside 4-bit weights") from None
    return bitsandbytes.functional


class QuantizedWeight(nn.Module):
    """A frozen weight [out, in] in 4 bits. Raises FledgeError without the library bitsandbytes.

    Buffers: `levels`, two of the 16 levels in a byte, and zeros behind the last weight up to a whole block; `scales` of the
    blocks, and with double quantization the `scales_of_scales`, the 256 `scale_levels` and the `mean_scale`.
    """

    levels: Tensor
    scales: Tensor
    scales_of_scales: Tensor | None
    scale_levels: Tensor | None
    mean_scale: Tensor | None

    def __init__(self, weight: Tensor, config: QuantizationConfig) -> None:
        super().__init__()
        functional = import_bitsandbytes()
        self.shape, self.quant_type = (weight.shape[0], weight.shape[1]), config.quant_type
        levels, state = functional.quantize_4bit(
            F.pad(weight.detach().flatten(), (0, -weight.numel() % BLOCK)).contiguous(),
            blocksize=BLOCK,
            compress_statistics=False,
            quant_type=config.quant_type,
        )
        scales, mean, outer = state.absmax, None, None
        if config.use_double_quant:
            mean = _mean(scales)
            scales, outer = functional.quantize_blockwise(scales - mean, blocksize=SCALE_BLOCK)
        self.register_buffer("levels", levels)
        self.register_buffer("scales", scales)
        self.register_buffer("scales_of_scales", None if outer is None else outer.absmax)
        self.register_buffer("scale_levels", None if outer is None else outer.code)
        self.register_buffer("mean_scale", mean)

    def numel(self) -> int:
        """The number of weights."""
        return self.shape[0] * self.shape[1]

    def nbytes(self) -> int:
        """The bytes that the weight takes."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def product(self, x: Tensor) -> Tensor:
        """x·Wᵀ [..., out] of x [..., in], in the dtype of x. For the backward pass only the 4 bits are kept."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        return _Product.apply(x.to(dtype), self._block_scales(), self.levels, self.shape, self.quant_type)  # type: ignore[return-value]

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [out, in] as the products read it."""
        return _dense(self.levels, self._block_scales(), self.shape, self.quant_type, dtype)

    def _block_scales(self) -> Tensor:
        """The scale of each block, float32."""
        if self.scales_of_scales is None:
            return self.scales
        scales = torch.ops.bitsandbytes.dequantize_blockwise(
            self.scales, self.scales_of_scales, self.scale_levels, SCALE_BLOCK, torch.float32
        )
        return scales + self.mean_scale


def quantized_weights(model: nn.Module) -> list[QuantizedWeight]:
    """The weights of a model, or of a part of it, that are in 4 bits."""
    return [module for module in model.modules() if isinstance(module, QuantizedWeight)]


def quantized_numbers(model: nn.Module) -> int:
    """How many numbers these have."""
    return sum(weight.numel() for weight in quantized_weights(model))


def quantization_of(model: nn.Module) -> QuantizationConfig | None:
    """How the weights of a model that are in 4 bits are quantized; None for a model without such weights."""
    weights = quantized_weights(model)
    if not weights:
        return None
    return QuantizationConfig.model_validate(
        {"quant_type": weights[0].quant_type, "use_double_quant": weights[0].scales_of_scales is not None}
    )


def _mean(values: Tensor) -> Tensor:
    """The mean, by one thread: with several its last bit depends on their number, and so would weights of a resumed run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return values.mean()
    finally:
        torch.set_num_threads(threads)


def _dense(levels: Tensor, scales: Tensor, shape: tuple[int, int], quant_type: str, dtype: torch.dtype) -> Tensor:
    """The weight [out, in]. The library gets a row for each block: where rows do not consist of whole blocks, its code for CPUs
    with AVX-512 takes the scales of other blocks (0.50.2)."""
    blocks = torch.ops.bitsandbytes.dequantize_4bit(levels, scales, BLOCK, quant_type, (len(scales), BLOCK), dtype)
    return blocks.flatten()[: shape[0] * shape[1]].view(shape)


class _Product(torch.autograd.Function):
    """x·Wᵀ of a frozen quantized W, which is made anew for the gradient of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scales: Tensor, levels: Tensor, shape: tuple[int, int], quant_type: str) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(scales, levels)
        ctx.shape, ctx.quant_type = shape, quant_type
        return F.linear(x, _dense(levels, scales, shape, quant_type, x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        scales, levels = ctx.saved_tensors
        return grad @ _dense(levels, scales, ctx.shape, ctx.quant_type, grad.dtype), None, None, None, None
