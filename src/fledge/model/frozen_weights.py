"""Frozen weights in the dtype of the matrix products that read them, or in 4 bits."""

import torch
from torch import Tensor, nn

from fledge.model.adapters import LoraLinear, put_module
from fledge.model.linear import Linear, dense_linear, quantized_linear
from fledge.model.protocol import LanguageModel, matrix_layers
from fledge.model.quantization import quantized_weights
from fledge.recipe.schema import QuantizationConfig


def quantize_matrices(model: LanguageModel, config: QuantizationConfig) -> None:
    """Keep the matrices of a model's linear layers inside the blocks in 4 bits, and in no other form."""
    for name in matrix_layers(model):
        quantize_layer(model, name, config)


def quantize_layer(model: LanguageModel, name: str, config: QuantizationConfig) -> None:
    """Keep the weight of the linear layer with this name in 4 bits, and in no other form."""
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    put_module(model, name, quantized_linear(layer, config))


def dequantize_matrices(model: LanguageModel) -> None:
    """Give the layers whose weights are in 4 bits these weights in float32: the same outputs, without the 4 bits."""
    for name, layer in matrix_layers(model).items():
        if isinstance(layer, Linear) and layer.quantized is not None:
            put_module(model, name, dense_linear(layer))


def describe_quantized(model: LanguageModel) -> str | None:
    """How many weights are in 4 bits, what they take, and what stays in float32; None for a model without such weights."""
    weights = quantized_weights(model)
    if not weights:
        return None
    numbers, taken = sum(weight.numel() for weight in weights), sum(weight.nbytes() for weight in weights)
    whole = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    return (
        f"{numbers:,} frozen weights are kept in {weights[0].quant_type}, {8 * taken / numbers:.2f} bits each: "
        f"{taken / 2**20:,.0f} MiB instead of {4 * numbers / 2**20:,.0f}; {whole:,} others stay in float32 "
        f"({4 * whole / 2**20:,.0f} MiB)"
    )


def frozen_matrices(model: LanguageModel) -> list[Tensor]:
    """The frozen float32 weights of linear layers that are only read by products. DoRA measures the rows of its weight in
    float32; the weights of its layers are left out, and so are tables, which are read in float32 too."""
    found: list[Tensor] = []
    for module in matrix_layers(model).values():
        weight: Tensor | None = module.weight  # None: in 4 bits
        reads_float32 = isinstance(module, LoraLinear) and module.lora_magnitude_vector is not None
        if weight is not None and not reads_float32 and not weight.requires_grad and weight.dtype == torch.float32:
            found.append(weight)
    return found


@torch.no_grad()
def round_frozen_weights(model: LanguageModel, dtype: torch.dtype) -> int:
    """Keep the frozen matrices of a model with an adapter, or of a frozen reference, in `dtype`; returns the bytes that this
    saves.

    Each product rounds its weight to the dtype of its input anyway, so training computes the same numbers, without rounding
    again in every pass and without keeping both forms. Does nothing for float32, and for a model whose weights are trained.
    """
    if dtype.itemsize >= torch.float32.itemsize:
        return 0
    weights = frozen_matrices(model)
    for weight in weights:
        weight.data = weight.data.to(dtype)
    return sum(weight.numel() for weight in weights) * (torch.float32.itemsize - dtype.itemsize)
