"""Shapes of matrix products that repeat.

oneDNN compiles a kernel for each shape of a low-precision product on a CPU, and keeps a number of them: 0.4 to 1.2 MiB each. A
product whose number of rows differs from batch to batch would be compiled every time.
"""

from functools import cache

import torch
from torch import Tensor

ALIGNMENT = 16  # rows


def is_compiled_by_shape(tensor: Tensor) -> bool:
    """Whether products of the tensor are compiled for each shape."""
    return tensor.device.type == "cpu" and tensor.dtype in (torch.bfloat16, torch.float16)


def padded_length(length: int) -> int:
    """The length, rounded up to one of eight lengths between two powers of two, or to a multiple of 16: an eighth at most is
    added to long ones."""
    step = max(ALIGNMENT, 2 ** (length.bit_length() - 1) // 8)
    return -(-length // step) * step


def repeating_length(length: int, tensor: Tensor) -> int:
    """The length of a product with the tensor: padded where products are compiled for each shape."""
    return padded_length(length) if is_compiled_by_shape(tensor) else length


@cache
def padded_lengths(most: int) -> int:
    """How many different padded lengths there are up to a length."""
    return len({padded_length(length) for length in range(1, most + 1, ALIGNMENT)})
