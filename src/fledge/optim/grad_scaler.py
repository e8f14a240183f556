"""Loss scaling for fp16 (Micikevicius et al. 2018, §3.2) without waiting for the device.

Small gradients would underflow in fp16, so the loss is multiplied by a large scale before the backward pass and the gradients
are divided by the scale afterwards. If gradients overflow, the step is skipped and the scale is halved; after `INTERVAL`
consecutive steps without overflow the scale is doubled.
"""

import torch
from torch import Tensor

START, GROWTH, BACKOFF, INTERVAL = 65536.0, 2.0, 0.5, 2000  # torch.amp.GradScaler's defaults


class GradScaler:
    """The loss scale, the number of consecutive good steps and the number of skipped steps, as tensors on the device."""

    def __init__(self, device: torch.device, scale: float = START, good: int = 0, skipped: int = 0) -> None:
        self.scale = torch.tensor(scale, device=device)
        self.good = torch.tensor(good, device=device)
        self.skipped = torch.tensor(skipped, device=device)

    def after(self, overflow: Tensor) -> None:
        """Update the scale after a step. `overflow`: bool scalar, whether gradients were not finite."""
        self.good = torch.where(overflow, 0, self.good + 1)
        grows = self.good >= INTERVAL
        self.scale = torch.where(overflow, self.scale * BACKOFF, torch.where(grows, self.scale * GROWTH, self.scale))
        self.good = torch.where(grows, 0, self.good)
        self.skipped = self.skipped + overflow

    def restore(self, saved: dict[str, float] | None) -> None:
        """Load what `state` returned; None resets to the initial scale."""
        restored = GradScaler(self.scale.device) if saved is None else GradScaler(
            self.scale.device, saved["scale"], int(saved["good"]), int(saved["skipped"])
        )  # fmt: skip
        self.scale, self.good, self.skipped = restored.scale, restored.good, restored.skipped

    def state(self) -> dict[str, float | int]:
        """The scale and both counts as plain numbers, for a checkpoint."""
        return {"scale": float(self.scale), "good": int(self.good), "skipped": int(self.skipped)}
