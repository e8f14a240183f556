"""Attention on a CPU inside each document alone: no score is computed between two documents of a packed row.

The queries of each segment (`segments.segment_starts`) are multiplied by the keys of their own document, and of its trunk, a
block of queries at a time, so that the scores in memory grow with the length of a document and not with its square. The lengths
change with every batch, so the products are custom operators, which a compiler does not look into. Symbols: N = B · T
positions, M keys with the copies of trunks, K heads of keys, G heads of queries that share one, d their size.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fledge.model.product_shapes import repeating_length
from fledge.model.segments import BranchedSegments, SegmentStarts, of_any_number, segments_of_rows

QUERIES = 128  # of a block


class _Block(NamedTuple):
    """A block of queries of a segment, and the keys up to its last query.

    `own` and `seen`: positions of the n queries and m keys. `more_own` and `more_seen`: positions before them that are computed
    too, so that shapes repeat; they are not read. `is_first`: whether these are all keys of the segment: so it is for the block
    that is computed first alone.
    """

    own: slice
    seen: slice
    more_own: int
    more_seen: int
    is_first: bool

    @property
    def queries(self) -> slice:
        """With the positions before them."""
        return slice(self.own.start - self.more_own, self.own.stop)

    @property
    def keys(self) -> slice:
        """With the positions before them."""
        return slice(self.seen.start - self.more_seen, self.seen.stop)


def _blocks(starts: Tensor, key_starts: Tensor, queries: Tensor) -> Iterator[_Block]:
    """Blocks of the queries of each segment, from its end on."""
    own, seen = starts.tolist(), key_starts.tolist()
    for first, stop, key, end in zip(own, own[1:], seen, seen[1:], strict=False):
        for until in range(stop, first, -QUERIES):
            begin, last = max(first, until - QUERIES), end - (stop - until)
            n, m = until - begin, last - key
            more_seen = min(repeating_length(m, queries) - m, key)
            more_own = min(repeating_length(n, queries) - n, begin, m + more_seen - n)
            yield _Block(slice(begin, until), slice(key, last), more_own, more_seen, until == stop)


def _put(sums: Tensor, values: Tensor, is_first: bool) -> None:
    """Write values, or add them to those of blocks before."""
    sums.copy_(values) if is_first else sums.add_(values)


def _by_head(x: Tensor, K: int) -> Tensor:
    """x [B, H, T, d] as [K, N, G · d]: heads of queries that share keys side by side."""
    B, H, T, d = x.shape
    return x.transpose(1, 2).reshape(B * T, K, H // K * d).transpose(0, 1)


def _copied(x: Tensor, keys: Tensor) -> Tensor:
    """x [K, N, d] at the positions `keys` [M]; x itself where each position is there once, in order."""
    return x if len(keys) == x.shape[1] else x[:, keys]


def _later_keys(device: torch.device) -> Tensor:
    """Of the queries and the keys at the same places of a block [QUERIES, QUERIES], whether the key is a later one."""
    return torch.ones(QUERIES, QUERIES, dtype=torch.bool, device=device).triu_(1)


def _scaled_scores(queries: Tensor, keys: Tensor, later: Tensor, more_keys: int) -> Tensor:
    """Scores [K, n, G, m] in float32 of queries [K, n, G · d] and keys [K, m, d], −∞ for `_later_keys` and for the first
    `more_keys`: the last query is at the last key."""
    K, n, _ = queries.shape
    m, d = keys.shape[1:]
    scores = (queries.reshape(K, -1, d) @ keys.transpose(1, 2)).view(K, n, -1, m).float().mul_(d**-0.5)
    scores[..., m - n :].masked_fill_(later[:n, None, :n], float("-inf"))
    if more_keys:
        scores[..., :more_keys] = float("-inf")
    return scores


@torch.library.custom_op("fledge::segment_attention", mutates_args=())
def segment_attention(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, key_starts: Tensor, keys: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention of q [B, H, T, d] to k and v [B, K, T, d] inside segments, as [B, H, T, d], and the log Σ exp of the scores
    [K, N, G]. `starts`, `key_starts` and `keys`: as in `segments.BranchedSegments`."""
    (B, H, T, d), K = q.shape, k.shape[1]
    queries, copied, values = _by_head(q, K), _copied(_by_head(k, K), keys), _copied(_by_head(v, K), keys)
    out, norms = q.new_empty(B * T, K, H // K, d), q.new_empty(K, B * T, H // K, dtype=torch.float32)
    later = _later_keys(q.device)
    for block in _blocks(starts, key_starts, q):
        scores = _scaled_scores(queries[:, block.queries], copied[:, block.keys], later, block.more_seen)
        norm = scores.logsumexp(-1, keepdim=True)
        weights = scores.sub_(norm).exp_().to(v.dtype)
        mixed = weights.flatten(1, 2) @ values[:, block.keys]
        out[block.own] = mixed.view(K, -1, H // K, d)[:, block.more_own :].transpose(0, 1)
        norms[:, block.own] = norm[:, block.more_own :, :, 0]
    return out.view(B, T, H, d).transpose(1, 2), norms


@segment_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, key_starts: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    (B, H, T, d), K = q.shape, k.shape[1]
    return q.new_empty(B, T, H, d).transpose(1, 2), q.new_empty(K, B * T, H // K, dtype=torch.float32)


@torch.library.custom_op("fledge::segment_attention_backward", mutates_args=())
def segment_attention_backward(
    upstream: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    norms: Tensor,
    starts: Tensor,
    key_starts: Tensor,
    keys: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by q, k and v; the scores are computed again (Dao 2023, algorithm 2)."""
    (B, H, T, d), K = q.shape, k.shape[1]
    group = H // K
    queries, copied, values = _by_head(q, K), _copied(_by_head(k, K), keys), _copied(_by_head(v, K), keys)
    grad_out = _by_head(upstream, K)
    row_sums = (grad_out.float() * _by_head(out, K).float()).view(K, -1, group, d).sum(-1, keepdim=True)
    grad_q = q.new_empty(B * T, K, group, d)
    sums = torch.float32 if int(starts.diff().max()) > QUERIES else k.dtype  # over the blocks that see a key
    grad_k, grad_v = (torch.empty_like(x, dtype=sums) for x in (copied, values))
    later = _later_keys(q.device)
    for block in _blocks(starts, key_starts, q):
        own, seen, more_own, more_seen = block.queries, block.keys, block.more_own, block.more_seen
        weights = _scaled_scores(queries[:, own], copied[:, seen], later, more_seen).sub_(norms[:, own, :, None]).exp_()
        rows, gradients = queries[:, own].reshape(K, -1, d), grad_out[:, own].reshape(K, -1, d)
        grad_weights = (gradients @ values[:, seen].transpose(1, 2)).view(weights.shape).float()
        if more_own:  # of other segments, whose norms are of other keys
            weights[:, :more_own], grad_weights[:, :more_own] = 0, 0
        of_values = weights.to(v.dtype).flatten(1, 2).transpose(1, 2) @ gradients
        scores = grad_weights.sub_(row_sums[:, own]).mul_(weights).mul_(d**-0.5).to(q.dtype).flatten(1, 2)
        grad_q[block.own] = (scores @ copied[:, seen]).view(K, -1, group, d)[:, more_own:].transpose(0, 1)
        of_keys = scores.transpose(1, 2) @ rows
        _put(grad_v[:, block.seen], of_values[:, more_seen:], block.is_first)
        _put(grad_k[:, block.seen], of_keys[:, more_seen:], block.is_first)
    of_keys, of_values = (_summed(x, keys, k.shape) for x in (grad_k, grad_v))
    return grad_q.view(B, T, H, d).transpose(1, 2), of_keys.to(k.dtype), of_values.to(v.dtype)


def _summed(gradients: Tensor, keys: Tensor, shape: torch.Size) -> Tensor:
    """The gradients [K, M, d] of copies, summed for each of the N positions that `keys` [M] says they are of: [B, K, T, d]."""
    B, K, T, d = shape
    if len(keys) != B * T:  # else each position is there once
        total = torch.zeros(K, B * T, d, dtype=torch.float32, device=keys.device)
        gradients = total.index_add_(1, keys, gradients.float())
    return gradients.transpose(0, 1).contiguous().view(B, T, K, d).transpose(1, 2)


@segment_attention_backward.register_fake
def _(upstream: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad_q, grad_k, grad_v = (torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format) for x in (q, k, v))
    return grad_q.transpose(1, 2), grad_k.transpose(1, 2), grad_v.transpose(1, 2)


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *segments = inputs
    ctx.save_for_backward(q, k, v, *output, *segments)


def _backward(ctx: Any, upstream: Tensor, of_norms: Tensor) -> tuple[Tensor | None, ...]:
    return *segment_attention_backward(upstream, *ctx.saved_tensors), None, None, None


segment_attention.register_autograd(_backward, setup_context=_save_for_backward)


def segments_metadata(
    documents: Tensor | None, B: int, T: int, device: torch.device, starts: SegmentStarts | None = None
) -> BranchedSegments:
    """The segments of B rows of T positions: `starts` if they are known."""
    found = segments_of_rows(documents, B, T, device, starts)
    if isinstance(found, Tensor):
        found = (found, found.clone(), torch.arange(B * T, device=device))
    return BranchedSegments(*of_any_number(found))


def segments(q: Tensor, k: Tensor, v: Tensor, metadata: BranchedSegments | Tensor | None) -> Tensor:
    """q [B, H, T, d], k and v [B, K, T, d] -> [B, H, T, d]. `metadata`: of `segments_metadata`, or documents [B, T]."""
    if not isinstance(metadata, BranchedSegments):
        metadata = segments_metadata(metadata, q.shape[0], q.shape[2], q.device)
    return segment_attention(q, k, v, *metadata)[0]


ON_CPU: dict[str, Callable[..., Tensor]] = {"segments": segments}
