"""Loss scaling for fp16 (Micikevicius et al. 2018, §3.2), without waiting for the device.

Small gradients would vanish in fp16, so the loss is multiplied by a large number before the backward pass and the gradients
are divided by it. Where they overflow, the step is skipped and the scale halved; after `INTERVAL` good steps it doubles.
"""

import torch
from torch import Tensor

START, GROWTH, BACKOFF, INTERVAL = 65536.0, 2.0, 0.5, 2000


class GradScaler:
    """The scale, how many good steps it has seen, and how many steps were skipped. All of them are tensors on the device."""

    def __init__(self, device: torch.device, scale: float = START, good: int = 0, skipped: int = 0) -> None:
        self.scale = torch.tensor(scale, device=device)
        self.good = torch.tensor(good, device=device)
        self.skipped = torch.tensor(skipped, device=device)

    def after(self, overflow: Tensor) -> None:
        """Learn from a step: `overflow` is a bool scalar."""
        self.good = torch.where(overflow, 0, self.good + 1)
        grows = self.good >= INTERVAL
        self.scale = torch.where(overflow, self.scale * BACKOFF, torch.where(grows, self.scale * GROWTH, self.scale))
        self.good = torch.where(grows, 0, self.good)
        self.skipped = self.skipped + overflow

    def restore(self, saved: dict[str, float] | None) -> None:
        """Put back what `state` gave; None is the beginning."""
        made = GradScaler(self.scale.device) if saved is None else GradScaler(
            self.scale.device, saved["scale"], int(saved["good"]), int(saved["skipped"])
        )  # fmt: skip
        self.scale, self.good, self.skipped = made.scale, made.good, made.skipped

    def state(self) -> dict[str, float | int]:
        """For the checkpoint."""
        return {"scale": float(self.scale), "good": int(self.good), "skipped": int(self.skipped)}
