"""An optimizer base class whose step can be skipped by a flag on the device."""

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor


class SkipStepOptimizer(torch.optim.Optimizer):
    """An optimizer that skips its step where `found_inf` is 1, as torch's fused optimizers do.

    A skipped step changes no bit of weights and state. `found_inf` is a scalar tensor; the host never reads it.
    """

    found_inf: Tensor | None = None

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient. Raises ValueError for a closure."""
        if closure is not None:
            raise ValueError(f"{type(self).__name__} takes no closure")
        for group in self.param_groups:
            self.update_group(group)
        return None

    def update_group(self, group: dict[str, Any]) -> None:
        """Update the parameters of one group. Subclasses implement it with `masked_copy_`."""
        raise NotImplementedError

    def skipped_on(self, device: torch.device) -> Tensor | None:
        """Bool scalar on `device`: whether to skip the step; None if no flag is set."""
        return None if self.found_inf is None else self.found_inf.to(device, non_blocking=True) > 0


def masked_copy_(old: Tensor, new: Tensor, skip: Tensor | None) -> None:
    """Copy `new` into `old`, unless `skip` (bool scalar or None) is true."""
    old.copy_(new if skip is None else torch.where(skip, old, new))
