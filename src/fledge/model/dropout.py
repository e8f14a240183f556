"""Dropout (Srivastava et al. 2014) with random numbers that a CPU makes quickly."""

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 1 << 16  # a random number has 16 bits: the rate is rounded to a multiple of 1 / LEVELS


def dropout(x: Tensor, rate: float) -> Tensor:
    """x with a share `rate` of its numbers set to zero, and the others divided by the share that is kept.

    On a CPU a 64-bit random number serves four places, and compiled code calls this like other code does: PyTorch's own dropout
    takes several times as long there, compiled most of all.
    """
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    kept = LEVELS - round(rate * LEVELS)
    if kept == LEVELS:
        return x
    words = _random_words(torch.empty((x.numel() + 3) // 4, dtype=torch.int64))
    mask = (words.view(torch.int16)[: x.numel()] < kept - LEVELS // 2).view(x.shape)
    return torch.where(mask, x * (LEVELS / max(kept, 1)), 0.0).to(x.dtype)


@torch.library.custom_op("fledge::random_words", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _random_words(like: Tensor) -> Tensor:
    """Random 64-bit numbers, as many as `like` has. The compiler takes one result for two calls with the same argument, but
    never one `torch.empty` for two; the tag keeps the calls in their order."""
    return torch.empty_like(like).random_(-(2**63), None)


@_random_words.register_fake
def _(like: Tensor) -> Tensor:
    return torch.empty_like(like)
