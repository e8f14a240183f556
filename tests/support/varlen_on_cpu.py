"""PyTorch's operators of `varlen` on a CPU, for which PyTorch has no kernels: the definition of attention and its derivative.

Importing this module registers them. All that is around the kernels is PyTorch's: what compilers see of the operators, and how
they are differentiated.
"""

from typing import Any

import torch
import torch.nn.attention.varlen
from torch import Tensor


def _segments(count: int, starts: Tensor) -> tuple[Tensor, Tensor]:
    """The segment of each of `count` places, and its distance to the end of the segment."""
    places = torch.arange(count)
    segments = (places[:, None] >= starts[None]).sum(1)
    return segments, starts[segments] - places


def _weights(q: Tensor, k: Tensor, starts: Tensor, key_starts: Tensor) -> tuple[Tensor, Tensor]:
    """Attention weights [H, n, m] of queries [n, H, d] and keys [m, K, d], and the keys repeated for all heads. The last query
    of a segment is at its last key (FlashAttention from version 2.1 on)."""
    (segments, ends), (key_segments, key_ends) = _segments(len(q), starts), _segments(len(k), key_starts)
    visible = (segments[:, None] == key_segments[None]) & (ends[:, None] <= key_ends[None])
    keys = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).float()
    scores = torch.einsum("ihd,jhd->hij", q.float(), keys) * q.shape[-1] ** -0.5
    return scores.masked_fill(~visible, float("-inf")).softmax(-1), keys


def forward(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, key_starts: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The output [n, H, d], and two tensors that only kernels of a GPU fill."""
    weights, _ = _weights(q, k, starts, key_starts)
    values = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1).float()
    out = torch.empty_like(q).copy_(torch.einsum("hij,jhd->ihd", weights, values))
    return out, torch.zeros(q.shape[1], len(q)), torch.zeros(2, dtype=torch.uint64)


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, starts: Tensor, key_starts: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by queries, keys and values."""
    (weights, keys), group, scale = _weights(q, k, starts, key_starts), q.shape[1] // k.shape[1], q.shape[-1] ** -0.5
    values, upstream = v.repeat_interleave(group, dim=1).float(), grad.float()
    grad_weights = torch.einsum("ihd,jhd->hij", upstream, values)
    grad_scores = weights * (grad_weights - (grad_weights * weights).sum(-1, keepdim=True)) * scale
    grad_q = torch.einsum("hij,jhd->ihd", grad_scores, keys)
    grad_k = torch.einsum("hij,ihd->jhd", grad_scores, q.float())
    grad_v = torch.einsum("hij,ihd->jhd", weights, upstream)
    shared = [x.unflatten(1, (-1, group)).sum(2) for x in (grad_k, grad_v)]
    made = [torch.empty_like(x).copy_(values) for x, values in zip((q, k, v), (grad_q, *shared), strict=True)]
    return made[0], made[1], made[2]


torch.library.register_kernel("torch_attn::_varlen_attn", "cpu", forward)
torch.library.register_kernel("torch_attn::_varlen_attn_backward", "cpu", backward)
