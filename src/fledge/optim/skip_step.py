"""An optimizer whose step the device can turn into nothing."""

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor


class SkipStepOptimizer(torch.optim.Optimizer):
    """Where `found_inf` (a tensor) is 1, a step changes no bit of weights and state, as in torch's fused optimizers. The host
    never reads it."""

    found_inf: Tensor | None = None

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient."""
        if closure is not None:
            raise ValueError(f"{type(self).__name__} takes no closure")
        for group in self.param_groups:
            self.update_group(group)
        return None

    def update_group(self, group: dict[str, Any]) -> None:
        """Update the parameters of one group."""
        raise NotImplementedError

    def skipped_on(self, device: torch.device) -> Tensor | None:
        """True where the step is to change nothing; None where that is not asked."""
        return None if self.found_inf is None else self.found_inf.to(device, non_blocking=True) > 0


def masked_copy_(old: Tensor, new: Tensor, skip: Tensor | None) -> None:
    """`old` becomes `new`, except where the step is skipped."""
    old.copy_(new if skip is None else torch.where(skip, old, new))
