"""Adafactor (Shazeer & Stern 2018) as PyTorch has it, with steps that can be skipped.

The second moment of a matrix is kept as the means of its rows and of its columns. An update is clipped to a root mean square of
1 and multiplied by min(lr, 1/√step) times the root mean square of the parameter, at least 0.001: the learning rate is relative
to the size of the weights.
"""

from typing import Any

import torch
from torch import Tensor


class Adafactor(torch.optim.Adafactor):
    """PyTorch's Adafactor, which skips its step where `found_inf` is 1. The host reads the flag, and on a GPU waits for it."""

    found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient, unless the step is skipped."""
        flag, self.found_inf = self.found_inf, None  # which PyTorch's own step refuses
        try:
            return None if flag is not None and bool(flag > 0) else super().step(closure)
        finally:
            self.found_inf = flag
