"""Products by groups of rows, and the permutation of rows before and after them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fledge.model.grouped_mm import grouped_mm, grouped_outer, permute, place_ends, unpermute
from tests.support.experts import random_tensor


@given(lengths=st.lists(st.integers(0, 7), min_size=1, max_size=6), inner=st.integers(1, 5), outer=st.integers(1, 5))
def test_grouped_products_and_their_gradients_equal_products_of_each_group(lengths: list[int], inner: int, outer: int) -> None:
    ends = torch.tensor(lengths).cumsum(0)
    rows, upstream = random_tensor(sum(lengths), inner).requires_grad_(), random_tensor(sum(lengths), outer, seed=2)
    matrices = random_tensor(len(lengths), inner, outer, seed=1).requires_grad_()
    turned = matrices.detach().transpose(1, 2).contiguous().requires_grad_()
    groups = rows.split(lengths)
    expected = torch.cat([group @ matrix for group, matrix in zip(groups, matrices, strict=True)])
    by_rows, by_matrices = torch.autograd.grad(expected, (rows, matrices), upstream)
    for form, transpose in ((matrices, False), (turned, True)):
        product = grouped_mm(rows, form, ends, transpose)
        torch.testing.assert_close(product, expected, atol=1e-5, rtol=1e-5)
        mine, theirs = torch.autograd.grad(product, (rows, form), upstream)
        torch.testing.assert_close(mine, by_rows, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(theirs.transpose(1, 2) if transpose else theirs, by_matrices, atol=1e-5, rtol=1e-5)


@given(lengths=st.lists(st.integers(0, 70), min_size=1, max_size=6))
def test_products_in_bfloat16_equal_products_of_each_group(lengths: list[int]) -> None:
    """Their rows are padded, so that shapes repeat; no row of another group comes into a result."""
    ends = torch.tensor(lengths).cumsum(0)
    rows, right = random_tensor(sum(lengths), 8).bfloat16(), random_tensor(sum(lengths), 4, seed=2).bfloat16()
    matrices = random_tensor(len(lengths), 8, 4, seed=1).bfloat16()
    groups = rows.split(lengths)
    expected = torch.cat([group.float() @ matrix.float() for group, matrix in zip(groups, matrices, strict=True)])
    torch.testing.assert_close(grouped_mm(rows, matrices, ends, False).float(), expected, atol=2e-2, rtol=2e-2)
    outer = torch.stack([a.float().t() @ b.float() for a, b in zip(groups, right.split(lengths), strict=True)])
    torch.testing.assert_close(grouped_outer(rows, right, ends).float(), outer, atol=4e-2, rtol=2e-2)


def test_a_gradient_of_one_expanded_number_is_accepted() -> None:
    rows, matrices, ends = random_tensor(6, 4).requires_grad_(), random_tensor(2, 4, 3).requires_grad_(), torch.tensor([2, 6])
    grouped_mm(rows, matrices, ends, False).sum().backward()  # its gradient has strides of 0
    assert rows.grad is not None
    torch.testing.assert_close(rows.grad, matrices.sum(2).repeat_interleave(torch.tensor([2, 4]), 0))


def test_the_custom_operators_pass_pytorchs_opcheck() -> None:
    rows, matrices, ends = random_tensor(6, 4).requires_grad_(), random_tensor(2, 4, 3).requires_grad_(), torch.tensor([2, 6])
    torch.library.opcheck(grouped_mm, (rows, matrices, ends, False))
    torch.library.opcheck(grouped_mm, (rows, random_tensor(2, 3, 4).requires_grad_(), ends, True))
    torch.library.opcheck(grouped_outer, (rows.detach(), random_tensor(6, 3), ends))


def test_permute_and_unpermute_are_transposes_of_each_other() -> None:
    source = torch.tensor([0, 2, 1, 0, 1, 2])
    positions = torch.tensor([[0, 3], [2, 4], [1, 5]])
    x, y = random_tensor(3, 5).double().requires_grad_(), random_tensor(6, 5, seed=1).double().requires_grad_()
    left, right = permute(x, source, positions), unpermute(y, source, positions)
    assert torch.equal(left, x[source]) and torch.equal(right, y[positions].sum(1))
    torch.testing.assert_close((left * y).sum(), (x * right).sum())
    assert torch.autograd.gradcheck(lambda a: permute(a, source, positions), x)
    assert torch.autograd.gradcheck(lambda a: unpermute(a, source, positions), y)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("lengths", [[40, 7, 0, 81], [0, 0, 128, 0]])
def test_the_grouped_gpu_kernel_equals_the_loop_over_groups(lengths: list[int]) -> None:
    ends = torch.tensor(lengths).cumsum(0)
    rows, matrices, upstream = random_tensor(128, 64), random_tensor(4, 96, 64), random_tensor(128, 96, seed=2)
    results = []
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        a, b = (t.to(device, dtype).requires_grad_() for t in (rows, matrices))
        out = grouped_mm(a, b, ends.to(device), True)
        out.backward(upstream.to(device, dtype))
        results.append([t.detach().float().cpu() for t in (out, a.grad, b.grad) if t is not None])
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right, atol=0.3, rtol=0.05)


def test_the_ends_of_groups_are_placed_where_the_products_read_them() -> None:
    ends, rows = torch.tensor([2, 6]), random_tensor(6, 4)
    placed = place_ends(ends, rows, 8)
    assert placed.device.type == "cpu" and torch.equal(placed, ends)
    torch.library.opcheck(place_ends, (ends, rows, 8))
