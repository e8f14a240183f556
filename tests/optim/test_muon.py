"""Muon's update is the orthogonalized momentum of each matrix, by the fewest products that do it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fledge.optim import muon
from fledge.optim.muon import COEFFICIENTS, GRAM_FROM, ROOM, Muon, newton_schulz, orthogonal_dtype
from tests.optim.test_build import matrices, random

SHAPES = [(24, 16), (16, 40), (16, 16), (24, 16)]


def composed(x: Tensor) -> Tensor:
    """All steps on singular values x."""
    for a, b, c in COEFFICIENTS:
        x = a * x + b * x**3 + c * x**5
    return x


def exact(matrix: Tensor) -> Tensor:
    """The steps on the singular values of a matrix, with the scale of `newton_schulz`, in float64."""
    u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u @ torch.diag(composed(s / (ROOM * s.square().norm()).sqrt())) @ vt


def test_each_step_is_the_best_for_what_the_one_before_left() -> None:
    low, high = 0.01, 1.0
    for a, b, c in COEFFICIENTS:
        root = math.sqrt((3 * b) ** 2 - 20 * a * c)
        turns = [math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c))]
        assert low < turns[0] < turns[1] < high
        errors = [1 - (a * x + b * x**3 + c * x**5) for x in (low, *turns, high)]
        # Four errors of one size and alternating sign: no polynomial of this form has a smaller largest error (Chebyshev).
        for number, error in enumerate(errors):
            assert error * (-1) ** number == pytest.approx(errors[0], abs=2e-3)
        low, high = 1 - errors[0], 1 + errors[0]
    assert (low, high) == pytest.approx((0.731, 1.269), abs=2e-3)


@given(st.integers(2, 20), st.integers(2, 20), st.floats(0, 2), st.floats(-6, 6), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_steps_act_on_singular_values_alone(rows: int, columns: int, steepness: float, size: float, seed: int) -> None:
    few = min(rows, columns)
    u, v = (torch.linalg.qr(random(side, few, seed=seed + side))[0] for side in (rows, columns))
    matrix = 10**size * u @ torch.diag(torch.arange(1.0, few + 1) ** -steepness) @ v.mT
    torch.testing.assert_close(newton_schulz(matrix[None])[0].double(), exact(matrix), atol=2e-3, rtol=0)


@pytest.mark.parametrize("shape", [(64, 64), (64, 80), (64, 128), (128, 64)])
@pytest.mark.parametrize("steepness", [0.0, 0.5, 1.0])
def test_rounding_to_bfloat16_changes_little(shape: tuple[int, int], steepness: float) -> None:
    few = min(shape)
    u, v = (torch.linalg.qr(random(side, few, seed=side + number))[0] for number, side in enumerate(shape))
    matrix = u @ torch.diag(torch.arange(1.0, few + 1) ** -steepness) @ v.mT
    wanted, got = exact(matrix), newton_schulz(matrix[None].bfloat16())[0].double()
    assert torch.cosine_similarity(got.flatten(), wanted.flatten(), dim=0) > 0.98
    assert torch.linalg.svdvals(got).max() < 2


def test_no_gradient_at_all_gives_no_update() -> None:
    for shape in ((2, 8, 8), (2, 8, 32)):
        for dtype in (torch.float32, torch.bfloat16):
            assert newton_schulz(torch.zeros(shape, dtype=dtype)).eq(0).all()


def test_momentum_decay_and_size_are_those_of_torch_muon() -> None:
    ours, theirs = matrices(*SHAPES), matrices(*SHAPES)
    mine = Muon(ours, lr=0.02, weight_decay=0.1, dtype=torch.bfloat16)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for number in range(3):
        for one, two in zip(ours, theirs, strict=True):
            one.grad = two.grad = random(*one.shape, seed=7 * number + one.numel())
        before = [parameter.detach().clone() for parameter in ours]
        mine.step()
        reference.step()
        for one, two, was in zip(ours, theirs, before, strict=True):
            change, expected = (one.detach() - was).flatten(), (two.detach() - was).flatten()
            assert torch.cosine_similarity(change, expected, dim=0) > 0.9
            assert float(change.norm()) == pytest.approx(float(expected.norm()), rel=0.2)
            two.data.copy_(one.data)


def test_the_update_is_orthogonal_and_has_the_rms_of_adamw() -> None:
    (parameter,) = matrices((64, 48))
    before = parameter.detach().clone()
    Muon([parameter], lr=1.0, weight_decay=0.0, dtype=torch.float32).step()
    change = before - parameter.detach()
    assert 0.15 < change.square().mean().sqrt() < 0.25
    values = torch.linalg.svdvals(change / (0.2 * math.sqrt(64)))
    assert values.min() > 0.7 and values.max() < 1.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(16, 20), (20, 16), (16, 48), (48, 16)])
def test_a_stack_equals_its_matrices_and_a_tall_matrix_its_transpose(shape: tuple[int, int], dtype: torch.dtype) -> None:
    stack = random(5, *shape).to(dtype)
    stacked = newton_schulz(stack)
    one_by_one = torch.stack([newton_schulz(matrix[None])[0] for matrix in stack])
    bound = 1e-5 if dtype is torch.float32 else 0.05
    torch.testing.assert_close(stacked, one_by_one, atol=bound, rtol=0)
    torch.testing.assert_close(newton_schulz(stack.mT.contiguous()).mT, stacked, atol=bound, rtol=0)


def test_both_orders_of_the_products_give_one_result(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = random(3, 16, 40)
    assert GRAM_FROM * 16 <= 40
    of_gram = newton_schulz(stack)
    monkeypatch.setattr(muon, "GRAM_FROM", math.inf)
    torch.testing.assert_close(newton_schulz(stack), of_gram, atol=1e-4, rtol=0)


def test_each_expert_of_a_stack_is_trained_like_a_separate_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    (stacked,) = matrices((3, 16, 24))
    separate = [nn.Parameter(matrix.clone()) for matrix in stacked.detach()]
    assert stacked.grad is not None
    for parameter, grad in zip(separate, stacked.grad, strict=True):
        parameter.grad = grad.clone()
    Muon([stacked], lr=0.1, weight_decay=0.1, dtype=torch.float32).step()
    monkeypatch.setattr("fledge.optim.muon.MAX_STACK_NUMEL", 1)  # one by one
    Muon(separate, lr=0.1, weight_decay=0.1, dtype=torch.float32).step()
    torch.testing.assert_close(stacked.detach(), torch.stack([p.detach() for p in separate]), atol=1e-6, rtol=1e-5)


def test_products_are_float32_or_bfloat16_and_vectors_are_an_error() -> None:
    assert orthogonal_dtype(torch.device("cpu")) in (torch.float32, torch.bfloat16)
    with pytest.raises(ValueError, match="stacks"):
        Muon([nn.Parameter(torch.ones(3))], lr=0.1, weight_decay=0.0)
