"""Attention kernels that exist on CUDA only, and what they need to know of a batch before its first layer.

Both leave out what a query cannot see instead of masking it, so packed documents cost their own squares and not the
row's. `flex` is PyTorch's FlexAttention (Dong et al. 2024), made by the compiler; `varlen` is FlashAttention-2 over
the documents laid end to end (Dao 2023). Values are those of `attention.written_out`.

A kernel's fourth argument is what its entry in `PREPARE` made of the batch's documents; the decoder makes it once and
gives it to every layer.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from fledge.model.attention import BACKENDS, Attention, sdpa

FLEX_BLOCK = 128  # queries by keys that are computed or left out together
FEWEST_PIECES = 64  # room for pieces grows in powers of two from here, so that compiled code meets few shapes
HALF = (torch.bfloat16, torch.float16)


class FlexMetadata(NamedTuple):
    """What `flex` sees of a batch: its documents [B, T] or None, and which blocks of keys each block of queries needs."""

    documents: Tensor | None
    mask: Any


class VarlenMetadata(NamedTuple):
    """What `varlen` sees of a batch: where each piece begins among all B·T positions, [pieces + 1] int32, ending in
    empty pieces; and the longest length that a piece can have."""

    starts: Tensor
    longest: int


def _visible_blocks(documents: Tensor | None, B: int, T: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which blocks of keys a block of queries needs at all, and which of these it sees whole: bool [B, n, n]."""
    n = -(-T // FLEX_BLOCK)
    causal = torch.ones(n, n, dtype=torch.bool, device=device).tril()
    if documents is None:
        return causal.expand(B, n, n), causal.tril(-1).expand(B, n, n)
    ordered = torch.where(documents > 0, documents, documents.amax() + 1)  # padding comes last
    filled = torch.cat((ordered, ordered[:, -1:].expand(B, n * FLEX_BLOCK - T)), dim=1).view(B, n, FLEX_BLOCK)
    low, high = filled.amin(-1), filled.amax(-1)
    meet = (low[:, :, None] <= high[:, None, :]) & (low[:, None, :] <= high[:, :, None])
    one = low == high
    same = one[:, :, None] & one[:, None, :] & (low[:, :, None] == low[:, None, :])
    return causal & meet, causal.tril(-1) & same


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Marked blocks [B, n, n] as FlexAttention wants them: how many [B, 1, n], and their places first [B, 1, n, n]."""
    places = blocks.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[:, None], places.to(torch.int32)[:, None]


def flex_pieces(documents: Tensor | None, B: int, T: int, device: torch.device) -> FlexMetadata:
    """The block mask of a batch of B rows of T; nothing of the size T × T is ever made."""
    from torch.nn.attention.flex_attention import BlockMask

    def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        causal = query >= key
        return causal if documents is None else causal & (documents[b, query] == documents[b, key])

    needed, whole = _visible_blocks(documents, B, T, device)
    mask = BlockMask.from_kv_blocks(
        *_listed(needed & ~whole), *_listed(whole), BLOCK_SIZE=FLEX_BLOCK, mask_mod=visible, seq_lengths=(T, T)
    )
    return FlexMetadata(documents, mask)


def flex(q: Tensor, k: Tensor, v: Tensor, seen: FlexMetadata) -> Tensor:
    """FlexAttention inside compiled code. q [B, H, T, d], k and v [B, K, T, d] -> [B, H, T, d].

    Uncompiled it would hold all scores, so plain passes (validation, the reference) take the fused kernel instead.
    """
    if not torch.compiler.is_compiling():
        return sdpa(q, k, v, seen.documents)
    from torch.nn.attention.flex_attention import flex_attention

    return cast(Tensor, flex_attention(q, k, v, block_mask=seen.mask, enable_gqa=q.shape[1] != k.shape[1]))


def pieces(documents: Tensor | None, B: int, T: int, device: torch.device) -> VarlenMetadata:
    """Where the pieces of B rows of T begin; padding at a row's end is a piece of its own."""
    if documents is None:
        return VarlenMetadata(torch.arange(0, B * T + 1, T, dtype=torch.int32, device=device), T)
    begins = torch.ones(B, T, dtype=torch.bool, device=device)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    found = begins.flatten().nonzero()[:, 0].to(torch.int32)
    room = max(FEWEST_PIECES, 1 << (len(found) - 1).bit_length())
    return VarlenMetadata(torch.cat((found, found.new_full((room + 1 - len(found),), B * T))), T)


def varlen(q: Tensor, k: Tensor, v: Tensor, seen: VarlenMetadata) -> Tensor:
    """FlashAttention over all pieces at once; 16-bit dtypes only. Shapes as in `flex`."""
    from torch.nn.attention.varlen import varlen_attn

    B, H, T, d = q.shape
    group = H // k.shape[1]
    if group > 1:  # the kernel's own sharing of keys is missing in torch 2.11
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    queries, keys, values = (x.transpose(1, 2).reshape(B * T, H, d) for x in (q, k, v))
    out = varlen_attn(queries, keys, values, seen.starts, seen.starts, seen.longest, seen.longest, window_size=(-1, 0))
    return cast(Tensor, out).view(B, T, H, d).transpose(1, 2)


Prepare = Callable[[Tensor | None, int, int, torch.device], Any]
ON_CUDA: dict[str, Callable[..., Tensor]] = {"flex": flex, "varlen": varlen}
PREPARE: dict[str, Prepare] = {"flex": flex_pieces, "varlen": pieces}


def backend(name: str) -> Attention:
    """The attention function of this name."""
    return BACKENDS[name] if name in BACKENDS else ON_CUDA[name]


def attention_metadata(name: str, documents: Tensor | None, B: int, T: int, device: torch.device) -> Any:
    """What the backend of this name wants to know of a batch: its documents, if nothing else."""
    return PREPARE[name](documents, B, T, device) if name in PREPARE else documents


def unavailable(name: str, device: str, dtype: torch.dtype, compiled: bool) -> str | None:
    """Why a backend cannot train so, or None where it can."""
    if name not in ON_CUDA:
        return None
    if device != "cuda":
        return f"attention {name} exists on CUDA only"
    if name == "varlen" and dtype not in HALF:
        return "attention varlen computes in bf16 and fp16 only"
    if name == "flex" and not compiled:
        return "attention flex is made by the compiler, and compile is off"
    return None
