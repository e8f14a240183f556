"""Frozen weights in the dtype of the matrix products that read them."""

import torch
from torch import Tensor, nn

from fledge.model.adapters import LoraLinear
from fledge.model.protocol import LanguageModel


def frozen_matrices(model: LanguageModel) -> list[Tensor]:
    """The frozen float32 weights of linear layers that are only read by products. DoRA measures the rows of its weight in
    float32; the weights of its layers are left out, and so are tables, which are read in float32 too."""
    found: list[Tensor] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or model.parameter_role(f"{name}.weight") != "matrix":
            continue
        reads_float32 = isinstance(module, LoraLinear) and module.lora_magnitude_vector is not None
        if not reads_float32 and not module.weight.requires_grad and module.weight.dtype == torch.float32:
            found.append(module.weight)
    return found


@torch.no_grad()
def round_frozen_weights(model: LanguageModel, dtype: torch.dtype) -> int:
    """Keep the frozen matrices of a model with an adapter in `dtype`; returns the bytes that this saves.

    Each product rounds its weight to the dtype of its input anyway, so training computes the same numbers, without rounding
    again in every pass and without keeping both forms. Does nothing for float32, and for a model whose weights are trained.
    """
    if model.adapter is None or dtype.itemsize >= torch.float32.itemsize:
        return 0
    weights = frozen_matrices(model)
    for weight in weights:
        weight.data = weight.data.to(dtype)
    return sum(weight.numel() for weight in weights) * (torch.float32.itemsize - dtype.itemsize)
