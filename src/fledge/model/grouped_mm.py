"""Grouped matrix products: rows sorted by group, each multiplied by the matrix of its group, as a mixture of experts needs.

A group is a range of rows. The lengths of the ranges change from step to step, the number of rows does not. A compiled
block must not be compiled again for every new set of lengths, so the products are custom operators, which a compiler
does not look into: lengths are data to it, and no shape depends on them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fledge.model.product_shapes import repeating_length

KERNEL_CAPABILITIES = (9, 10)  # first numbers of the compute capabilities with the grouped kernel
ALIGNMENT = 8  # bfloat16 numbers in the 16 bytes to which the rows of the grouped kernel are aligned


def _has_grouped_kernel(rows: Tensor, *sizes: int) -> bool:
    """Whether the device computes all groups in one kernel that reads their lengths itself: bfloat16 on CUDA with aligned rows,
    on the architectures that PyTorch has this kernel for. On others, `F.grouped_mm` asks the device for the lengths."""
    return (
        rows.is_cuda
        and rows.dtype == torch.bfloat16
        and hasattr(F, "grouped_mm")
        and torch.cuda.get_device_capability(rows.device)[0] in KERNEL_CAPABILITIES
        and all(size % ALIGNMENT == 0 for size in sizes)
    )


@torch.library.custom_op("fledge::place_ends", mutates_args=())
def place_ends(ends: Tensor, rows: Tensor, size: int) -> Tensor:
    """The ends [G] of the groups where all products of a layer read them: on the device, int32, if it has the kernel for rows
    [M, K] and matrices of K and `size` columns; else in main memory, so that the host waits once and not in every product."""
    if not rows.is_cuda or not _has_grouped_kernel(rows, rows.shape[1], size):
        return ends.cpu() if ends.is_cuda else ends.clone()
    return ends.to(torch.int32)


@place_ends.register_fake
def _(ends: Tensor, rows: Tensor, size: int) -> Tensor:
    if not rows.is_cuda or not _has_grouped_kernel(rows, rows.shape[1], size):
        return torch.empty_like(ends, device="cpu")
    return torch.empty_like(ends, dtype=torch.int32)


def _ranges(ends: Tensor) -> list[tuple[int, int]]:
    """(start, stop) of each group from the ends [G] of the groups."""
    stops = ends.tolist()
    return list(zip([0, *stops[:-1]], stops, strict=True))


def _product_of_group(rows: Tensor, start: int, stop: int, matrix: Tensor, out: Tensor) -> None:
    """out[start:stop] = rows[start:stop] · matrix. Rows of later groups may be multiplied too, and are written again by
    them."""
    end = start + repeating_length(stop - start, rows)
    if end <= len(rows):
        torch.mm(rows[start:end], matrix, out=out[start:end])
    else:
        out[start:stop] = (F.pad(rows[start:stop], (0, 0, 0, end - stop)) @ matrix)[: stop - start]


@torch.library.custom_op("fledge::grouped_mm", mutates_args=())
def grouped_mm(rows: Tensor, matrices: Tensor, ends: Tensor, transpose: bool) -> Tensor:
    """Row m of group g times matrix g, or times its transpose: rows [M, K], matrices [G, K, O] or [G, O, K] -> [M, O].

    Group g is rows ends[g-1] … ends[g]-1; the last of `ends` [G] is M. They are where `place_ends` puts them. `rows` and
    `matrices` have one dtype, and both get gradients.
    """
    if transpose:
        matrices = matrices.transpose(1, 2)
    if ends.is_cuda and _has_grouped_kernel(rows, *matrices.shape[1:]):
        return F.grouped_mm(rows.contiguous(), matrices, offs=ends.to(torch.int32))
    out = rows.new_empty(rows.shape[0], matrices.shape[2])
    for group, (start, stop) in enumerate(_ranges(ends)):
        if start < stop:
            _product_of_group(rows, start, stop, matrices[group], out)
    return out


@grouped_mm.register_fake
def _(rows: Tensor, matrices: Tensor, ends: Tensor, transpose: bool) -> Tensor:
    return rows.new_empty(rows.shape[0], matrices.shape[1 if transpose else 2])


@torch.library.custom_op("fledge::grouped_outer", mutates_args=())
def grouped_outer(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """Σ over the rows m of group g of left[m] ⊗ right[m]: left [M, K], right [M, O], ends [G] -> [G, K, O]; zero for a
    group without rows."""
    if ends.is_cuda and _has_grouped_kernel(left, left.shape[1], right.shape[1]):
        products = F.grouped_mm(left.contiguous().t(), right.contiguous(), offs=ends.to(torch.int32))
        empty = ends.diff(prepend=ends.new_zeros(1)) == 0  # the kernel may leave groups without rows unwritten
        return products.masked_fill_(empty[:, None, None], 0)
    out = left.new_empty(ends.shape[0], left.shape[1], right.shape[1])
    for group, (start, stop) in enumerate(_ranges(ends)):
        if start < stop:
            more = repeating_length(stop - start, left) - (stop - start)
            mine, theirs = (F.pad(side[start:stop], (0, 0, 0, more)) if more else side[start:stop] for side in (left, right))
            torch.mm(mine.t(), theirs, out=out[group])
        else:
            out[group].zero_()
    return out


@grouped_outer.register_fake
def _(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    return left.new_empty(ends.shape[0], left.shape[1], right.shape[1])


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: Tensor) -> None:
    *tensors, ctx.transpose = inputs
    ctx.save_for_backward(*tensors)


def _grouped_mm_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    rows, matrices, ends = ctx.saved_tensors
    grad_rows, grad_matrices = None, None
    if ctx.needs_input_grad[0]:
        grad_rows = grouped_mm(upstream, matrices, ends, not ctx.transpose)
    if ctx.needs_input_grad[1]:
        grad_matrices = grouped_outer(*((upstream, rows) if ctx.transpose else (rows, upstream)), ends)
    return grad_rows, grad_matrices, None, None


grouped_mm.register_autograd(_grouped_mm_backward, setup_context=_save_for_backward)


class _Permute(torch.autograd.Function):
    """x [N, D] -> x[source] [M, D].

    `positions` [N, k] are the k rows of the result in which each row of x stands, so that its gradient is a sum of k rows in
    a fixed order: the bits do not depend on the order of execution, as those of a scatter-add would.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, positions: Tensor) -> Tensor:
        ctx.save_for_backward(source, positions)
        return x.index_select(0, source)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (upstream,) = gradients
        source, positions = ctx.saved_tensors
        return _Unpermute.apply(upstream, source, positions), None, None  # type: ignore[return-value]


class _Unpermute(torch.autograd.Function):
    """y [M, D] -> for each of N rows the sum of its k rows y[positions] [N, D]."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, source: Tensor, positions: Tensor) -> Tensor:
        ctx.save_for_backward(source, positions)
        N, k = positions.shape
        return y.index_select(0, positions.flatten()).view(N, k, -1).sum(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (upstream,) = gradients
        source, _ = ctx.saved_tensors
        return upstream.index_select(0, source), None, None


def permute(x: Tensor, source: Tensor, positions: Tensor) -> Tensor:
    """x [N, D] -> x[source] [M, D]. `positions` [N, k] are the k indices in `source` that hold the number of each row."""
    return _Permute.apply(x, source, positions)  # type: ignore[return-value]


def unpermute(y: Tensor, source: Tensor, positions: Tensor) -> Tensor:
    """y [M, D] -> the sum of y[positions] over k [N, D]; the transpose of `permute`."""
    return _Unpermute.apply(y, source, positions)  # type: ignore[return-value]
