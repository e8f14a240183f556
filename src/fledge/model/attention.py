"""Causal attention inside one document, as one function with exchangeable backends.

Every backend computes softmax(q·kᵀ/√d)·v (Vaswani et al. 2017, eq. 1), where a position sees itself and the
positions before it *in its own document*. They differ in speed only; the tests hold each to the written-out one.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

QUERY_BLOCK = 128  # rows of queries scored at a time: half the causal square is never computed

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def visible(documents: Tensor | None, start: int, stop: int, device: torch.device) -> Tensor:
    """Which keys [0, stop) the queries [start, stop) may see: bool, [stop-start, stop] or [B, 1, stop-start, stop]."""
    queries = torch.arange(start, stop, device=device)
    keys = torch.arange(stop, device=device)
    causal = queries[:, None] >= keys[None, :]
    if documents is None:
        return causal
    same = documents[:, start:stop, None] == documents[:, None, :stop]
    return (causal & same)[:, None]


def blocked(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Tensor:
    """Plain matrix products over blocks of queries; grouped heads share one product instead of copied keys.

    q [B, H, T, d], k and v [B, K, T, d], documents [B, T] or None -> [B, H, T, d].
    On a CPU the backward pass of these products is faster than that of the fused kernel.
    """
    B, H, T, d = q.shape
    K = k.shape[1]
    group = H // K
    scale = d**-0.5
    out = []
    for start in range(0, T, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, T)
        rows = stop - start
        queries = q[:, :, start:stop].reshape(B, K, group * rows, d)
        scores = (queries @ k[:, :, :stop].transpose(-1, -2)).view(B, K, group, rows, stop)
        mask = visible(documents, start, stop, q.device)
        mask = mask if mask.dim() == 2 else mask[:, :, None]
        scores = (scores.float() * scale).masked_fill(~mask, float("-inf"))
        weights = scores.softmax(dim=-1).to(v.dtype).view(B, K, group * rows, stop)
        out.append((weights @ v[:, :, :stop]).view(B, H, rows, d))
    return torch.cat(out, dim=2)


def sdpa(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Tensor:
    """PyTorch's fused kernel, with an explicit mask only where documents are packed. Shapes as in `blocked`."""
    grouped = q.shape[1] != k.shape[1]
    if documents is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    mask = visible(documents, 0, q.shape[2], q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)


def written_out(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Tensor:
    """The definition itself, without any trick: the reference that the other backends are tested against."""
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    scores = q.float() @ k.float().transpose(-1, -2) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~visible(documents, 0, q.shape[2], q.device), float("-inf"))
    return (scores.softmax(dim=-1) @ v.float()).to(v.dtype)


BACKENDS: dict[str, Attention] = {"blocked": blocked, "sdpa": sdpa, "written_out": written_out}
