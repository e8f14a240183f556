"""The linear layer of the decoder."""

import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """x·Wᵀ + b in the dtype of x. The parameters stay in float32 and are rounded in every call.

    The decoder calls its linear layers and never reads their weights, so a module that replaces such a layer (an adapter, a
    quantised layer) takes part in training and in generation.
    """

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """x [..., in] -> [..., out]."""
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def dense_weight(self) -> Tensor:
        """The weight [out, in] that determines the outputs."""
        return self.weight
