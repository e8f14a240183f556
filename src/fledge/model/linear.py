"""The linear layer of the decoder."""

import torch.nn.functional as F
from torch import Tensor, nn

from fledge.model.quantization import QuantizedWeight
from fledge.recipe.sections.quantization import QuantizationConfig


class Linear(nn.Linear):
    """x·Wᵀ + b in the dtype of x. The parameters stay in float32 and are rounded in every call.

    The decoder calls its linear layers and never reads their weights, so a module that replaces such a layer (an adapter) takes
    part in training and in generation. `quantized`: the weight in 4 bits; `weight` is None then.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.quantized: QuantizedWeight | None = None

    def reset_parameters(self) -> None:
        """Does nothing: the weights are drawn by `Decoder.init_weights` or read from files, and memory that nothing has been
        written to takes no place."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """x [..., in] -> [..., out]."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.quantized is None:
            return F.linear(x, self.weight.to(x.dtype), bias)
        out = self.quantized.product(x)
        return out if bias is None else out + bias

    def dense_weight(self) -> Tensor:
        """The weight [out, in] that determines the outputs."""
        return self.weight if self.quantized is None else self.quantized.dense()


def dense_linear(layer: Linear) -> Linear:
    """A layer with the same outputs as one whose weight is in 4 bits, and with a weight in float32."""
    assert layer.quantized is not None
    made = Linear(layer.in_features, layer.out_features, bias=False)
    made.register_parameter("weight", nn.Parameter(layer.quantized.dense()))
    made.register_parameter("bias", layer.bias)
    return made.train(layer.training)


def quantized_linear(layer: nn.Linear, config: QuantizationConfig) -> Linear:
    """A layer that has the weight of `layer` in 4 bits, and its bias."""
    made = Linear.__new__(Linear)
    nn.Module.__init__(made)
    made.in_features, made.out_features = layer.in_features, layer.out_features
    made.register_parameter("weight", None)
    made.register_parameter("bias", layer.bias)
    made.quantized = QuantizedWeight(layer.weight, config)
    return made.train(layer.training)
