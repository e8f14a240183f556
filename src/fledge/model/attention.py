"""Causal attention inside one document, as one function with exchangeable backends.

Every backend computes softmax(q·kᵀ/√d)·v (Vaswani et al. 2017, eq. 1), where a position attends to itself and to the
earlier positions *of its own document*, or of its trunk if that document is a branch (`document_numbers`). Backends differ only
in speed; the tests compare each with `reference_attention`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fledge.document_numbers import sees

QUERY_BLOCK = 128  # rows of queries scored at a time: half the causal square is never computed
MOST_BLOCKS = 8  # of a row: longer rows have longer blocks, or compiling them would take minutes

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""q [B, H, T, d], k and v [B, K, T, d], documents [B, T] or None -> [B, H, T, d]; H is a multiple of K."""


def causal_document_mask(documents: Tensor | None, start: int, stop: int, device: torch.device) -> Tensor:
    """The mask of the keys [0, stop) that the queries [start, stop) attend to: bool, [stop-start, stop], or with documents
    [B, 1, stop-start, stop]."""
    queries = torch.arange(start, stop, device=device)
    keys = torch.arange(stop, device=device)
    causal = queries[:, None] >= keys[None, :]
    if documents is None:
        return causal
    return (causal & sees(documents[:, start:stop, None], documents[:, None, :stop]))[:, None]


def additive_mask(documents: Tensor, dtype: torch.dtype, multiple: int = 1) -> Tensor:
    """The mask of whole rows as numbers that are added to the scores, 0 or −∞: [B, 1, T, T]. Its rows begin at multiples of
    `multiple` numbers."""
    (B, T), device = documents.shape, documents.device
    mask = torch.zeros(B, 1, T, -(-T // multiple) * multiple, dtype=dtype, device=device)[..., :T]
    return mask.masked_fill_(~causal_document_mask(documents, 0, T, device), float("-inf"))


class BlockedMetadata(NamedTuple):
    """What `blocked` needs to know of a batch: its documents [B, T], and their `additive_mask`."""

    documents: Tensor
    added: Tensor


def blocked_metadata(documents: Tensor | None, dtype: torch.dtype) -> BlockedMetadata | Tensor | None:
    """The fourth argument of `blocked` in all layers: on a CPU with the mask, made once in `dtype`, which costs a forward pass
    less than comparing positions and documents at every score. On other devices the documents."""
    if documents is None or documents.device.type != "cpu":
        return documents
    return BlockedMetadata(documents, additive_mask(documents, dtype))


class _Blocked(torch.autograd.Function):
    """Attention over blocks of queries. The backward pass computes the scores again (Dao 2023, algorithms 1 and 2), so that the
    tensors saved for it grow with T, not with T²."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None, added: Tensor | None) -> Tensor:
        outputs, norms = [], []
        for start, stop in _query_blocks(q.shape[2]):
            scores = _scores(_group_heads(q, k, start, stop), k, start, stop)
            if added is None:
                mask = causal_document_mask(documents, start, stop, k.device)
                scores = scores.masked_fill(~(mask if mask.dim() == 2 else mask[:, :, None]), float("-inf"))
            else:
                scores = scores + added[:, :, None, start:stop, :stop]
            norm = scores.logsumexp(-1, keepdim=True)
            weights = (scores - norm).exp().to(v.dtype)
            outputs.append((weights.flatten(2, 3) @ v[:, :, :stop]).view_as(q[:, :, start:stop]))
            norms.append(norm.view(*q.shape[:2], stop - start))
        out = torch.cat(outputs, dim=2)
        ctx.save_for_backward(q, k, v, documents, out, torch.cat(norms, dim=2))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, documents, out, norms = ctx.saved_tensors
        (upstream,) = gradients
        scale = q.shape[-1] ** -0.5
        row_sums = (upstream.float() * out.float()).sum(-1)  # Σ_j p_ij · dp_ij of each query
        grad_q, grad_k, grad_v = [], torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        for start, stop in _query_blocks(q.shape[2]):
            queries, grad_out = _group_heads(q, k, start, stop), _group_heads(upstream, k, start, stop)
            # Keys × queries: a compiler that recognized the scores of the forward pass here would keep them.
            transposed = (*k.shape[:2], stop, q.shape[1] // k.shape[1], stop - start)
            scores = (k[:, :, :stop] @ queries.transpose(-1, -2)).view(transposed).float() * scale
            mask = causal_document_mask(documents, start, stop, k.device).transpose(-1, -2).unsqueeze(-2)
            scores = scores.masked_fill(~mask, float("-inf"))
            columns = (*transposed[:2], 1, *transposed[3:])
            weights = (scores - norms[:, :, start:stop].reshape(columns)).exp()
            grad_weights = (v[:, :, :stop] @ grad_out.transpose(-1, -2)).view(transposed).float()
            grad_scores = weights * (grad_weights - row_sums[:, :, start:stop].reshape(columns)) * scale
            grad_scores, weights = grad_scores.to(q.dtype).flatten(-2), weights.to(v.dtype).flatten(-2)
            grad_q.append((grad_scores.transpose(-1, -2) @ k[:, :, :stop]).view_as(q[:, :, start:stop]))
            grad_k[:, :, :stop] += grad_scores @ queries
            grad_v[:, :, :stop] += weights @ grad_out
        return torch.cat(grad_q, dim=2), grad_k.to(k.dtype), grad_v.to(v.dtype), None, None


def _query_blocks(length: int) -> list[tuple[int, int]]:
    """(start, stop) of each block of the queries of a row."""
    size = max(QUERY_BLOCK, -(-length // MOST_BLOCKS // QUERY_BLOCK) * QUERY_BLOCK)
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _group_heads(x: Tensor, k: Tensor, start: int, stop: int) -> Tensor:
    """Rows [start, stop) of x [B, H, T, d] with the heads that share a key side by side: [B, K, group·rows, d]."""
    return x[:, :, start:stop].reshape(x.shape[0], k.shape[1], -1, x.shape[-1])


def _scores(queries: Tensor, k: Tensor, start: int, stop: int) -> Tensor:
    """Scaled scores [B, K, group, rows, stop] in float32."""
    shape = (*k.shape[:2], queries.shape[2] // (stop - start), stop - start, stop)
    return (queries @ k[:, :, :stop].transpose(-1, -2)).view(shape).float() * queries.shape[-1] ** -0.5


def blockwise(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | BlockedMetadata | None) -> Tensor:
    """Plain matrix products over blocks of queries; grouped heads share one product instead of copied keys.

    q [B, H, T, d], k and v [B, K, T, d], documents [B, T], their `blocked_metadata` or None -> [B, H, T, d].
    Its backward pass is faster on a CPU than the backward pass of the fused kernel.
    """
    documents, added = documents if isinstance(documents, BlockedMetadata) else (documents, None)
    return _Blocked.apply(q, k, v, documents, added)  # type: ignore[return-value]


def sdpa_mask(documents: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The mask of `sdpa` for documents [B, T], made once for all layers: None without documents, else 0 or -inf in `dtype`,
    [B, 1, T, T].

    PyTorch converts a bool mask in every layer, and keeps each of these copies for the backward pass. The memory-efficient
    kernel of CUDA also wants rows that begin at multiples of 16 bytes.
    """
    if documents is None:
        return None
    return additive_mask(documents, dtype, multiple=1 if documents.device.type == "cpu" else 8)


def sdpa(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Tensor:
    """PyTorch's fused kernel, with an explicit mask only where documents are packed. Shapes as in `blockwise`; `documents` may
    also be the result of `sdpa_mask`."""
    group = q.shape[1] // k.shape[1]
    if documents is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=group > 1)
    mask = sdpa_mask(documents, q.dtype) if documents.dim() == 2 else documents
    if q.device.type == "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=group > 1)
    # No kernel of CUDA takes a mask and shared keys at once (torch up to 2.13): the scores of all heads would be kept, in
    # float32, [B, H, T, T]. With repeated keys the memory-efficient kernel runs.
    if group > 1:
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def avoid_cudnn_attention(device: torch.device) -> None:
    """Switch PyTorch's cuDNN attention off, for a model that computes on a CUDA device.

    It plans each new shape for up to half a second, and generation has a new shape every few tokens; and it has given wrong
    answers (pytorch issues 193893 and 196678). PyTorch prefers it on compute capabilities 9.0 and 10.0 from version 2.11 on.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def reference_attention(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Tensor:
    """The definition, term by term: the reference that the other backends are tested against. Shapes as in `blockwise`."""
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    scores = q.float() @ k.float().transpose(-1, -2) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~causal_document_mask(documents, 0, q.shape[2], q.device), float("-inf"))
    return (scores.softmax(dim=-1) @ v.float()).to(v.dtype)


BACKENDS: dict[str, Attention] = {"blocked": blockwise, "sdpa": sdpa, "reference": reference_attention}
