"""Products of groups of rows, each with the matrix of its group: the work of a mixture's experts.

Rows lie sorted by group, so a group is a range of rows. How long the ranges are changes from step to step, while the
number of rows does not. A compiled block must not be compiled again for every new set of lengths, so the products are
operators of their own that a compiler sees from outside only: lengths are data to it, and no shape depends on them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ALIGNED = 8  # numbers of bfloat16 in the 16 bytes at which a row must start for the grouped kernel


def _one_kernel(rows: Tensor, *sizes: int) -> bool:
    """Whether the device does all groups in one kernel: bfloat16 on CUDA, with rows that start aligned."""
    return (
        rows.is_cuda
        and rows.dtype == torch.bfloat16
        and hasattr(F, "grouped_mm")
        and torch.cuda.get_device_capability(rows.device) >= (8, 0)
        and all(size % ALIGNED == 0 for size in sizes)
    )


def _ranges(ends: Tensor) -> list[tuple[int, int]]:
    stops = ends.tolist()
    return list(zip([0, *stops[:-1]], stops, strict=True))


@torch.library.custom_op("fledge::grouped_product", mutates_args=())
def grouped_mm(rows: Tensor, matrices: Tensor, ends: Tensor, transpose: bool) -> Tensor:
    """Row m of group g times matrix g, or its transpose: rows [M, K], matrices [G, K, O] or [G, O, K] -> [M, O].

    Group g is rows ends[g-1] … ends[g]-1; the last of `ends` [G] is M. `rows` and `matrices` have one dtype, and both
    a gradient.
    """
    if transpose:
        matrices = matrices.transpose(1, 2)
    if _one_kernel(rows, *matrices.shape[1:]):
        return F.grouped_mm(rows.contiguous(), matrices, offs=ends.to(torch.int32))
    out = rows.new_empty(rows.shape[0], matrices.shape[2])
    for group, (start, stop) in enumerate(_ranges(ends)):
        if start < stop:
            torch.mm(rows[start:stop], matrices[group], out=out[start:stop])
    return out


@grouped_mm.register_fake
def _(rows: Tensor, matrices: Tensor, ends: Tensor, transpose: bool) -> Tensor:
    return rows.new_empty(rows.shape[0], matrices.shape[1 if transpose else 2])


@torch.library.custom_op("fledge::grouped_outer", mutates_args=())
def grouped_outer(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """Σ over the rows m of group g of left[m] ⊗ right[m]: left [M, K], right [M, O], ends [G] -> [G, K, O]; zero for a
    group without rows."""
    if _one_kernel(left, left.shape[1], right.shape[1]):
        made = F.grouped_mm(left.contiguous().t(), right.contiguous(), offs=ends.to(torch.int32))
        empty = ends.diff(prepend=ends.new_zeros(1)) == 0  # the kernel need not write what has no rows
        return made.masked_fill_(empty[:, None, None], 0)
    out = left.new_empty(ends.shape[0], left.shape[1], right.shape[1])
    for group, (start, stop) in enumerate(_ranges(ends)):
        if start < stop:
            torch.mm(left[start:stop].t(), right[start:stop], out=out[group])
        else:
            out[group].zero_()
    return out


@grouped_outer.register_fake
def _(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    return left.new_empty(ends.shape[0], left.shape[1], right.shape[1])


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: Tensor) -> None:
    *tensors, ctx.transpose = inputs
    ctx.save_for_backward(*tensors)


def _product_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    rows, matrices, ends = ctx.saved_tensors
    by_rows, by_matrices = None, None
    if ctx.needs_input_grad[0]:
        by_rows = grouped_mm(upstream, matrices, ends, not ctx.transpose)
    if ctx.needs_input_grad[1]:
        by_matrices = grouped_outer(*((upstream, rows) if ctx.transpose else (rows, upstream)), ends)
    return by_rows, by_matrices, None, None


grouped_mm.register_autograd(_product_backward, setup_context=_remember)


class _Spread(torch.autograd.Function):
    """Rows to where they are needed: x [N, D] -> x[source] [M, D].

    `places` [N, k] says at which k places of the result each row stands, so the gradient is a sum of k rows in a fixed
    order: the same bits every time, which adding up in any order would not give.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(source, places)
        return x.index_select(0, source)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (upstream,) = gradients
        source, places = ctx.saved_tensors
        return _Gather.apply(upstream, source, places), None, None  # type: ignore[return-value]


class _Gather(torch.autograd.Function):
    """The reverse: y [M, D] -> for each of N rows the sum of its k places [N, D]."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, source: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(source, places)
        N, k = places.shape
        return y.index_select(0, places.flatten()).view(N, k, -1).sum(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (upstream,) = gradients
        source, _ = ctx.saved_tensors
        return upstream.index_select(0, source), None, None


def permute(x: Tensor, source: Tensor, places: Tensor) -> Tensor:
    """x [N, D] -> x[source] [M, D], where `places` [N, k] are the k places of each row in `source`."""
    return _Spread.apply(x, source, places)  # type: ignore[return-value]


def unpermute(y: Tensor, source: Tensor, places: Tensor) -> Tensor:
    """y [M, D] -> sum of y[places] over k [N, D]; the transpose of `spread`."""
    return _Gather.apply(y, source, places)  # type: ignore[return-value]
