"""Segments: the documents of a batch of packed rows as ranges of positions, for attention that computes each by itself."""

from typing import NamedTuple

import torch
from torch import Tensor

from fledge.document_numbers import BRANCH, trunk

FEWEST_SEGMENTS = 64  # room for segments grows from here by halves of powers of two, so that memory is used again as it is


class BranchedSegments(NamedTuple):
    """Segments of queries that attend to the keys of a trunk before their own, which are copied to where the kernel reads them.

    `starts` [segments + 1] int32: flat position b·T + t of each segment's begin. `key_starts` [segments + 1] int32: begin of
    each segment's keys among the copies. `keys` int64 [n]: the flat position that each copy is of."""

    starts: Tensor
    key_starts: Tensor
    keys: Tensor


def segment_room(segments: int) -> int:
    """The number of segments that the kernel is told of: the next power of two, or the middle between two. Each segment, empty
    ones too, costs its backward pass 128 rows of float32 (`ModelCost.varlen_bytes`)."""
    power = 1 << (segments - 1).bit_length()
    return max(FEWEST_SEGMENTS, power * 3 // 4 if segments <= power * 3 // 4 else power)


SegmentStarts = Tensor | tuple[Tensor, ...]
"""The result of `segment_starts`."""


def segment_starts(documents: Tensor) -> SegmentStarts:
    """The begins of the segments of documents [B, T], int32 [room + 1], as `VarlenMetadata.starts`; padding at the end of a row
    is a segment of its own. With branches the `BranchedSegments`, where a trunk and its first branch are one segment. On a GPU
    the host waits for their number: it is better called where the batch is made."""
    (B, T), device = documents.shape, documents.device
    before = torch.full((B, T), -1, device=device)
    before[:, 1:] = documents[:, :-1]
    changes = (documents != before).flatten()
    starts = (changes & (trunk(documents) != before).flatten()).nonzero()[:, 0]
    room = segment_room(len(starts))
    padded = _padded(starts, room + 1, B * T)
    numbers = documents.flatten()[starts]
    if not bool((numbers >= BRANCH).any()):
        return padded
    is_branch, ends = numbers >= BRANCH, torch.cat((starts[1:], starts.new_tensor([B * T])))
    trunk_starts = torch.where(is_branch, 0, starts).cummax(0).values  # of the trunk before each branch
    changed = changes.nonzero()[:, 0]
    trunk_ends = torch.cat((changed, starts.new_tensor([B * T])))[torch.searchsorted(changed, trunk_starts, right=True)]
    shared = torch.where(is_branch, trunk_ends - trunk_starts, 0)
    counts = shared + ends - starts
    first = counts.cumsum(0) - counts
    total = int(counts.sum())
    segment = torch.arange(len(starts), device=device).repeat_interleave(counts, output_size=total)
    place = torch.arange(total, device=device) - first[segment]
    keys = place + torch.where(place < shared[segment], trunk_starts[segment], (starts - shared)[segment])
    return BranchedSegments(padded, _padded(first, room + 1, total), keys)


def segments_of_rows(
    documents: Tensor | None, B: int, T: int, device: torch.device, starts: SegmentStarts | None = None
) -> SegmentStarts:
    """The segments of B rows of T positions: `starts` if they are known; where `documents` is None each row is one."""
    if documents is None:
        return torch.arange(0, B * T + 1, T, dtype=torch.int32, device=device)
    return segment_starts(documents) if starts is None else starts


def of_any_number(starts: SegmentStarts) -> tuple[Tensor, ...]:
    """The tensors of segments, their lengths marked as dynamic, so that compiled code serves every number of documents."""
    from torch._dynamo.decorators import mark_dynamic

    tensors = (starts,) if isinstance(starts, Tensor) else starts
    for each in tensors:
        mark_dynamic(each, 0)
    return tensors


def _padded(values: Tensor, length: int, value: int) -> Tensor:
    """Values [n] as int32 [length], with `value` behind them."""
    values = values.to(torch.int32)
    return torch.cat((values, values.new_full((length - len(values),), value)))
