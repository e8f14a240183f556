"""Every attention backend is the written-out definition, forward and backward."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fledge.model.attention import BACKENDS, QUERY_BLOCK, visible, written_out

FAST = sorted(set(BACKENDS) - {"written_out"})


def _inputs(length: int, heads: int, kv_heads: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    q = torch.randn(2, heads, length, 8)
    k, v = torch.randn(2, kv_heads, length, 8), torch.randn(2, kv_heads, length, 8)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def _documents(length: int, cuts: tuple[int, ...] = (3, 100, 129)) -> Tensor:
    """Numbers from 1, two rows cut at different places, the second ending in padding (0)."""
    places = torch.arange(length)
    first = 1 + sum((places >= cut).long() for cut in cuts)
    second = 1 + sum((places >= cut + 2).long() for cut in cuts)
    second[length - length // 5 :] = 0
    return torch.stack((torch.as_tensor(first), torch.as_tensor(second)))


def _value_and_gradients(backend: str, tensors: tuple[Tensor, ...], documents: Tensor | None) -> list[Tensor]:
    q, k, v = tensors
    out = BACKENDS[backend](q, k, v, documents)
    upstream = torch.linspace(-1, 1, out.numel()).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * upstream).sum(), (q, k, v))]


@pytest.mark.parametrize("packed", [False, True], ids=["one document", "packed"])
@pytest.mark.parametrize("length", [1, 7, 129, 256, 300])
@pytest.mark.parametrize("backend", FAST)
def test_backend_equals_the_written_out_definition(backend: str, length: int, packed: bool) -> None:
    documents = _documents(length) if packed else None
    for heads, kv_heads in ((4, 2), (4, 4), (6, 1)):
        tensors = _inputs(length, heads, kv_heads)
        expected = _value_and_gradients("written_out", tensors, documents)
        got = _value_and_gradients(backend, tensors, documents)
        for name, left, right in zip(("out", "q", "k", "v"), got, expected, strict=True):
            torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_written_out_is_the_published_formula_of_one_query() -> None:
    q, k, v = (t.detach() for t in _inputs(5, 4, 2))
    out = written_out(q, k, v, None)
    for head in range(4):
        for t in range(5):
            scores = [float(q[0, head, t] @ k[0, head // 2, s]) / math.sqrt(8) for s in range(t + 1)]
            total = sum(map(math.exp, scores))
            expected = sum(math.exp(score) / total * v[0, head // 2, s] for s, score in enumerate(scores))
            torch.testing.assert_close(out[0, head, t], expected, atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=15)
@given(data=st.data(), length=st.integers(1, 2 * QUERY_BLOCK + 3), backend=st.sampled_from(FAST))
def test_no_backend_looks_ahead_or_into_another_document(data: st.DataObject, length: int, backend: str) -> None:
    q, k, v = (t.detach() for t in _inputs(length, 2, 1))
    cut = data.draw(st.integers(0, length))
    changed = data.draw(st.integers(0, length - 1))
    documents = (1 + (torch.arange(length) >= cut).long()).expand(2, length)
    before = BACKENDS[backend](q, k, v, documents)
    k[:, :, changed] += 3.0
    v[:, :, changed] -= 5.0
    moved = (BACKENDS[backend](q, k, v, documents) - before).abs().amax(dim=(0, 1, 3)) > 1e-6
    places = torch.arange(length)
    may_see = (places >= changed) & (documents[0] == documents[0, changed])
    assert not moved[~may_see].any()
    assert moved[changed]


def test_visible_marks_the_square_of_a_block_of_queries() -> None:
    documents = torch.tensor([[1, 1, 2, 2]])
    expected = [[False, False, True, False], [False, False, True, True]]
    assert visible(documents, 2, 4, torch.device("cpu"))[0, 0].tolist() == expected
    assert visible(None, 1, 3, torch.device("cpu")).tolist() == [[True, True, False], [True, True, True]]
