"""Dropout: its share, its mean, equal numbers in compiled code, and another mask for each call."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fledge.model.dropout import LEVELS, dropout


@settings(deadline=None, max_examples=40)
@given(st.floats(0, 1, exclude_max=True), st.lists(st.integers(0, 7), min_size=1, max_size=3), st.integers(0, 2**31))
def test_what_is_kept_is_scaled_and_the_rest_is_zero(rate: float, shape: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.ones(shape, dtype=torch.float64)
    out, kept = dropout(x, rate), LEVELS - round(rate * LEVELS)
    assert out.shape == x.shape and out.dtype == x.dtype
    assert set(out.flatten().tolist()) <= {0.0, LEVELS / max(kept, 1)}


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.05, 0.5, 0.9])
def test_the_share_and_the_mean_are_right_everywhere(rate: float) -> None:
    torch.manual_seed(3)
    out = dropout(torch.ones(400_003), rate)
    for part in (out, out[::4], out[1::4], out[2::4], out[3::4]):  # the four places of a random number
        sigma = (rate * (1 - rate) / len(part)) ** 0.5
        assert float((part == 0).double().mean()) == pytest.approx(rate, abs=5 * sigma + 1e-9)
    assert float(out.double().mean()) == pytest.approx(1, abs=0.03)
    assert rate == 0 or not torch.equal(out[0::4] == 0, out[1::4] == 0)


def _twice(x: Tensor) -> Tensor:
    return torch.stack((dropout(x, 0.5), dropout(x, 0.5)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_code_draws_the_same_masks_and_gradients_use_them(dtype: torch.dtype) -> None:
    results = []
    for function in (_twice, torch.compile(_twice, fullgraph=True)):
        x = torch.linspace(1, 2, 600).to(dtype).view(20, 30).requires_grad_()
        torch.manual_seed(5)
        out = function(x)
        out.float().square().sum().backward()
        assert x.grad is not None
        results.append((out.detach(), x.grad))
    (plain, plain_grad), (compiled, compiled_grad) = results
    assert torch.equal(plain, compiled) and torch.allclose(plain_grad, compiled_grad, rtol=1e-2)
    assert not torch.equal(plain[0], plain[1])
    neither = (plain == 0).all(dim=0)
    assert neither.any() and torch.equal(plain_grad == 0, neither)


def test_the_seed_decides() -> None:
    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return dropout(torch.ones(100), 0.5)

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
