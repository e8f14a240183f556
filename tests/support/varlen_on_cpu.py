"""PyTorch's operators of `varlen` on a CPU, for which PyTorch has no kernels: the definition of attention and its derivative.

Importing this module registers them. All that is around the kernels is PyTorch's: what compilers see of the operators, and how
they are differentiated.
"""

from typing import Any

import torch
import torch.nn.attention.varlen
from torch import Tensor


def _weights(q: Tensor, k: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Attention weights [H, n, n] of queries [n, H, d] and keys [n, K, d], and the keys repeated for all heads."""
    places = torch.arange(len(q))
    segments = (places[:, None] >= starts[None]).sum(1)
    visible = (segments[:, None] == segments[None]) & (places[:, None] >= places[None])
    keys = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).float()
    scores = torch.einsum("ihd,jhd->hij", q.float(), keys) * q.shape[-1] ** -0.5
    return scores.masked_fill(~visible, float("-inf")).softmax(-1), keys


def forward(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The output [n, H, d], and two tensors that only kernels of a GPU fill."""
    weights, _ = _weights(q, k, starts)
    values = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1).float()
    out = torch.empty_like(q).copy_(torch.einsum("hij,jhd->ihd", weights, values))
    return out, torch.zeros(q.shape[1], len(q)), torch.zeros(2, dtype=torch.uint64)


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, starts: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by queries, keys and values."""
    (weights, keys), group, scale = _weights(q, k, starts), q.shape[1] // k.shape[1], q.shape[-1] ** -0.5
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
