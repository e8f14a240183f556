"""The head: from hidden states to losses and log-probabilities, a chunk of rows at a time.

Logits of a whole batch are never held: memory grows with CHUNK × vocabulary, not with tokens × vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fledge.model.decoder import linear

CHUNK = 512  # rows of logits at a time
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]]


def _loss_chunk(
    hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of a chunk, and its gradients: with p the softmax and y the (smoothed) target, d loss / d logits = w·(p − y)."""
    logits = linear(hidden, weight).float()
    norm = logits.logsumexp(-1)
    picked = logits.gather(-1, targets[:, None])[:, 0]
    loss = norm - (1 - smoothing) * picked
    gradient = (logits - norm[:, None]).exp()
    if smoothing:
        loss = loss - smoothing * logits.mean(-1)
        gradient = gradient - smoothing / logits.shape[-1]
    columns = torch.arange(logits.shape[-1], device=logits.device)
    gradient = gradient - (1 - smoothing) * (columns == targets[:, None])
    gradient = (gradient * weights[:, None]).to(hidden.dtype)
    return (loss * weights).sum(), linear(gradient, weight.t()), gradient.t() @ hidden


class _CrossEntropy(torch.autograd.Function):
    """Sum of weighted cross-entropy whose gradients are made on the way forward, while the logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, smoothing: float, kernel: Kernel
    ) -> Tensor:
        by_hidden = torch.empty_like(hidden)
        by_weight = torch.zeros_like(weight)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, hidden.shape[0], CHUNK):
            part = slice(start, start + CHUNK)
            loss, by_hidden[part], added = kernel(hidden[part], weight, targets[part], weights[part], smoothing)
            by_weight += added
            total = total + loss
        ctx.save_for_backward(by_hidden, by_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        by_hidden, by_weight = ctx.saved_tensors
        (upstream,) = gradients
        return by_hidden * upstream.to(by_hidden.dtype), by_weight * upstream, None, None, None, None


def cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, smoothing: float = 0.0, kernel: Kernel | None = None
) -> Tensor:
    """Σ w·[(1−ε)·nll + ε·mean over the vocabulary of −log p], a float32 scalar.

    hidden [N, D], weight [V, D], targets [N], weights [N]. Rows of weight 0 are left out before any product; the rest
    is filled up to whole chunks, so a compiled `kernel` sees one shape only.
    """
    keep = weights.nonzero(as_tuple=True)[0]
    spare = -len(keep) % CHUNK if kernel is not None else 0
    if spare:
        keep = torch.cat((keep, keep.new_zeros(spare)))
    chosen = weights[keep]
    if spare:
        chosen[-spare:] = 0
    return _CrossEntropy.apply(hidden[keep], weight, targets[keep], chosen, smoothing, kernel or _loss_chunk)  # type: ignore[return-value]


class _LogProbabilities(torch.autograd.Function):
    """log p(target) of each row; the backward pass makes its logits again instead of keeping them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets)
        parts = [log_probabilities_chunk(hidden[i : i + CHUNK], weight, targets[i : i + CHUNK])[0]
                 for i in range(0, hidden.shape[0], CHUNK)]  # fmt: skip
        return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets = ctx.saved_tensors
        (upstream,) = gradients
        by_hidden, by_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for start in range(0, hidden.shape[0], CHUNK):
            part = slice(start, start + CHUNK)
            _, by_hidden[part], added = _loss_chunk(hidden[part], weight, targets[part], -upstream[part], 0.0)
            by_weight += added
        return by_hidden, by_weight, None


def log_probabilities(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """log p(target) [N] in float32, with gradients, for hidden [N, D] and targets [N]."""
    return _LogProbabilities.apply(hidden, weight, targets)  # type: ignore[return-value]


def log_probabilities_chunk(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """log p(target) [N] and whether the target is the most likely token [N], of a chunk, without gradients."""
    logits = linear(hidden, weight).float()
    picked = logits.gather(-1, targets[:, None])[:, 0]
    return picked - logits.logsumexp(-1), logits.argmax(-1) == targets
