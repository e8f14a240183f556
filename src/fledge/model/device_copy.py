"""Copies of numbers of the host to a device that do not make the host wait."""

from typing import Any

import torch
from torch import Tensor


def to_device(numbers: Any, device: torch.device) -> Tensor:
    """A tensor, or the tensor of (nested) lists of numbers, on a device.

    A copy from ordinary memory to a GPU ends only when the GPU has done all that was asked of it before. From page-locked
    memory the copy takes its turn, and the host goes on; PyTorch keeps the memory until the copy is done.
    """
    tensor = numbers if isinstance(numbers, Tensor) else torch.tensor(numbers)
    if device.type != "cuda" or tensor.device.type == "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
