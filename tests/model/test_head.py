"""The head in chunks is the plain cross-entropy, in value and in every gradient."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fledge.model.head import CHUNK, _loss_chunk, cross_entropy, log_probabilities, log_probabilities_chunk

from .conftest import assert_same_gradients, gradients, make_decoder, random_tokens

VOCAB, WIDTH = 50, 16


def _inputs(rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, head, targets and weights of which a third are 0."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, WIDTH, generator=generator).requires_grad_()
    weight = (0.5 * torch.randn(VOCAB, WIDTH, generator=generator)).requires_grad_()
    targets = torch.randint(VOCAB, (rows,), generator=generator)
    weights = torch.rand(rows, generator=generator) * (torch.rand(rows, generator=generator) > 1 / 3)
    return hidden, weight, targets, weights


def _plain(hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    return (F.cross_entropy(hidden @ weight.t(), targets, reduction="none", label_smoothing=smoothing) * weights).sum()


def _assert_equal(left: Tensor, right: Tensor, wrt: tuple[Tensor, ...], upstream: float = 1.0) -> None:
    torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)
    for a, b in zip(torch.autograd.grad(left * upstream, wrt), torch.autograd.grad(right * upstream, wrt), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", [None, _loss_chunk], ids=["own", "passed"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [0, 1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 300])
def test_cross_entropy_equals_the_plain_one(rows: int, smoothing: float, kernel: object) -> None:
    hidden, weight, targets, weights = _inputs(rows)
    got = cross_entropy(hidden, weight, targets, weights, smoothing, kernel)  # type: ignore[arg-type]
    assert got.dtype == torch.float32 and got.dim() == 0
    _assert_equal(got, _plain(hidden, weight, targets, weights, smoothing), (hidden, weight), upstream=0.37)


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(0, CHUNK + 40), seed=st.integers(0, 99), smoothing=st.floats(0, 0.9), passed=st.booleans())
def test_cross_entropy_equals_the_plain_one_everywhere(rows: int, seed: int, smoothing: float, passed: bool) -> None:
    hidden, weight, targets, weights = _inputs(rows, seed)
    got = cross_entropy(hidden, weight, targets, weights, smoothing, _loss_chunk if passed else None)
    _assert_equal(got, _plain(hidden, weight, targets, weights, smoothing), (hidden, weight))


@pytest.mark.parametrize("kernel", [None, _loss_chunk], ids=["own", "passed"])
def test_rows_of_weight_zero_are_never_looked_at(kernel: object) -> None:
    hidden, weight, targets, weights = _inputs(40)
    weights[0] = 1.0  # the row that fills up the last chunk
    expected = cross_entropy(hidden, weight, targets, weights, 0.1)
    off = weights == 0
    spoiled = hidden.detach().clone()
    spoiled[off] = float("nan")
    spoiled.requires_grad_()
    got = cross_entropy(spoiled, weight, targets.masked_fill(off, -100), weights, 0.1, kernel)  # type: ignore[arg-type]
    torch.testing.assert_close(got, expected)
    by_hidden, by_weight = torch.autograd.grad(got, (spoiled, weight))
    assert not by_weight.isnan().any() and (by_hidden[off] == 0).all()


def test_all_weights_zero_give_zero_and_zero_gradients() -> None:
    hidden, weight, targets, weights = _inputs(20)
    loss = cross_entropy(hidden, weight, targets, torch.zeros_like(weights))
    assert loss.item() == 0
    assert all((g == 0).all() for g in torch.autograd.grad(loss, (hidden, weight)))


def test_a_passed_kernel_sees_whole_chunks_only() -> None:
    shapes = []

    def watched(*args: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shapes.append(tuple(args[0].shape))
        return _loss_chunk(*args)  # type: ignore[arg-type]

    for rows in (5, CHUNK, 2 * CHUNK + 9):
        hidden, weight, targets, weights = _inputs(rows)
        cross_entropy(hidden, weight, targets, weights, 0.0, watched)  # type: ignore[arg-type]
    assert set(shapes) == {(CHUNK, WIDTH)}


def test_bfloat16_hidden_states_give_nearly_the_same() -> None:
    hidden, weight, targets, weights = _inputs(700)
    exact = cross_entropy(hidden, weight, targets, weights)
    rounded = cross_entropy(hidden.bfloat16(), weight, targets, weights)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, atol=0, rtol=0.01)
    for a, b in zip(*(torch.autograd.grad(loss, (hidden, weight)) for loss in (rounded, exact)), strict=True):
        assert a.dtype == torch.float32
        assert torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b) < 0.02


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradients_of_a_whole_model_equal_those_of_plain_logits(tied: bool, smoothing: float) -> None:
    model, tokens = make_decoder(tie_word_embeddings=tied), random_tokens(3, 30)
    targets, weights = random_tokens(3, 30, seed=1).flatten(), torch.rand(90) * (torch.rand(90) > 0.3)
    cross_entropy(model(tokens).flatten(0, 1), model.head_weight, targets, weights, smoothing).backward()
    got = gradients(model)
    embedding, head = model.embed_tokens.weight, model.head_weight
    _plain(model(tokens).flatten(0, 1), head, targets, weights, smoothing).backward()
    expected = gradients(model)
    assert_same_gradients(got, expected, atol=1e-5, rtol=1e-4)
    if tied:  # both uses are in the one gradient
        hidden = model(tokens).flatten(0, 1)
        by_lookup = torch.autograd.grad(_plain(hidden, head.detach(), targets, weights, smoothing), embedding)
        by_head = torch.autograd.grad(_plain(hidden.detach(), head, targets, weights, smoothing), head)
        torch.testing.assert_close(got["embed_tokens.weight"], by_lookup[0] + by_head[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rows", [0, 1, 7, CHUNK, CHUNK + 1, 2 * CHUNK + 300])
def test_log_probabilities_equal_the_plain_ones_under_any_upstream_gradient(rows: int) -> None:
    hidden, weight, targets, _ = _inputs(rows)
    upstream = torch.randn(rows, generator=torch.Generator().manual_seed(8))
    got = log_probabilities(hidden, weight, targets)
    plain = (hidden @ weight.t()).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(got, plain, atol=1e-5, rtol=1e-5)
    assert got.dtype == torch.float32 and got.shape == (rows,)
    made = torch.autograd.grad(got, (hidden, weight), upstream)
    for a, b in zip(made, torch.autograd.grad(plain, (hidden, weight), upstream), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_log_probabilities_of_a_chunk_say_where_the_target_is_the_likeliest_token() -> None:
    hidden, weight, targets, _ = _inputs(64)
    logits = (hidden @ weight.t()).detach()
    targets[:10] = logits[:10].argmax(-1)
    logps, correct = log_probabilities_chunk(hidden.detach(), weight.detach(), targets)
    torch.testing.assert_close(logps, logits.log_softmax(-1)[torch.arange(64), targets])
    assert torch.equal(correct, logits.argmax(-1) == targets) and correct[:10].all() and not correct.all()
