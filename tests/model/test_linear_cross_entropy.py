"""The head in chunks is the plain cross-entropy, in value and in every gradient."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fledge.model import linear_cross_entropy
from fledge.model.cpu_products import multiplies_bf16
from fledge.model.linear_cross_entropy import (
    CHUNK,
    _softmax_grad_chunk,
    chunk_rows,
    cross_entropy,
    log_probabilities,
    token_logps_and_correct,
)
from tests.support.decoders import assert_same_gradients, gradients, make_decoder, random_tokens

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


@pytest.mark.parametrize("kernel", [None, _softmax_grad_chunk], ids=["own", "passed"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [0, 1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 300])
def test_cross_entropy_equals_the_plain_one(rows: int, smoothing: float, kernel: object) -> None:
    hidden, weight, targets, weights = _inputs(rows)
    got = cross_entropy(hidden, weight, targets, weights, smoothing=smoothing, kernel=kernel)  # type: ignore[arg-type]
    assert got.dtype == torch.float32 and got.dim() == 0
    _assert_equal(got, _plain(hidden, weight, targets, weights, smoothing), (hidden, weight), upstream=0.37)


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(0, CHUNK + 40), seed=st.integers(0, 99), smoothing=st.floats(0, 0.9), passed=st.booleans())
def test_cross_entropy_equals_the_plain_one_for_any_size_and_smoothing(
    rows: int, seed: int, smoothing: float, passed: bool
) -> None:
    hidden, weight, targets, weights = _inputs(rows, seed)
    got = cross_entropy(hidden, weight, targets, weights, smoothing=smoothing, kernel=_softmax_grad_chunk if passed else None)
    _assert_equal(got, _plain(hidden, weight, targets, weights, smoothing), (hidden, weight))


@pytest.mark.parametrize("kernel", [None, _softmax_grad_chunk], ids=["own", "passed"])
def test_rows_of_weight_zero_are_never_read(kernel: object) -> None:
    hidden, weight, targets, weights = _inputs(40)
    weights[0] = 1.0  # the row that fills up the last chunk
    expected = cross_entropy(hidden, weight, targets, weights, 0.1)
    off = weights == 0
    spoiled = hidden.detach().clone()
    spoiled[off] = float("nan")
    spoiled.requires_grad_()
    got = cross_entropy(spoiled, weight, targets.masked_fill(off, -100), weights, smoothing=0.1, kernel=kernel)  # type: ignore[arg-type]
    torch.testing.assert_close(got, expected)
    by_hidden, by_weight = torch.autograd.grad(got, (spoiled, weight))
    assert not by_weight.isnan().any() and (by_hidden[off] == 0).all()


def test_all_weights_zero_give_zero_and_zero_gradients() -> None:
    hidden, weight, targets, weights = _inputs(20)
    loss = cross_entropy(hidden, weight, targets, torch.zeros_like(weights))
    assert loss.item() == 0
    assert all((g == 0).all() for g in torch.autograd.grad(loss, (hidden, weight)))


def test_a_kernel_always_gets_full_chunks() -> None:
    shapes = []

    def watched(logits: Tensor, weights: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        shapes.append((*logits.shape, *weights.shape))
        return _softmax_grad_chunk(logits, weights, smoothing)

    for rows in (5, CHUNK, 2 * CHUNK + 9):
        hidden, weight, targets, weights = _inputs(rows)
        cross_entropy(hidden, weight, targets, weights, smoothing=0.0, kernel=watched)
    assert set(shapes) == {(CHUNK, VOCAB, CHUNK)}


@pytest.mark.parametrize("kernel", [None, _softmax_grad_chunk], ids=["own", "passed"])
@pytest.mark.parametrize("width, vocabulary", [(WIDTH, VOCAB), (512, 9000)], ids=["small", "several tiles"])
def test_bfloat16_keeps_loss_and_gradients_to_one_percent(width: int, vocabulary: int, kernel: object) -> None:
    """Compared with the plain head in float32 on equal hidden states: loss within 0.1 %, gradients within 1 % of their norm."""
    generator = torch.Generator().manual_seed(0)
    rounded = torch.randn(700, width, generator=generator).bfloat16().requires_grad_()
    weight = (torch.randn(vocabulary, width, generator=generator) * 2 / width**0.5).requires_grad_()
    targets, weights = torch.randint(vocabulary, (700,), generator=generator), torch.rand(700, generator=generator)
    weights[::5] = 0
    exact = rounded.detach().float().requires_grad_()
    plain = _plain(exact, weight, targets, weights, 0.1)
    got = cross_entropy(rounded, weight, targets, weights, smoothing=0.1, kernel=kernel)  # type: ignore[arg-type]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, plain, atol=0, rtol=1e-3)
    by_hidden, by_weight = torch.autograd.grad(got, (rounded, weight))
    assert by_hidden.dtype == torch.bfloat16 and by_weight.dtype == torch.float32
    for a, b in zip((by_hidden, by_weight), torch.autograd.grad(plain, (exact, weight)), strict=True):
        assert torch.linalg.vector_norm(a.float() - b) / torch.linalg.vector_norm(b) < 0.01


def test_a_row_that_is_nearly_certain_keeps_its_small_gradient_in_bfloat16() -> None:
    """p(target) = 0.999 rounds to 1 in bfloat16; its gradient p − 1 must not round to 0."""
    weight = torch.eye(4, requires_grad=True)
    hidden = torch.tensor([[8.0, 0, 0, 0]]).bfloat16()
    cross_entropy(hidden, weight, torch.tensor([0]), torch.ones(1)).backward()
    assert weight.grad is not None
    p = hidden.float().softmax(-1)[0, 0]
    assert weight.grad[0, 0].item() == pytest.approx(8 * (p - 1).item(), rel=0.01) and p > 0.998


class _Largest(TorchDispatchMode):
    """Records the largest number of entries of any tensor, and of any float32 tensor with one column per vocabulary entry."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.entries, self.wide = vocabulary, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.entries = max(self.entries, tensor.numel())
                if tensor.dtype == torch.float32 and tensor.shape[-1:] == (self.vocabulary,):
                    self.wide = max(self.wide, tensor.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("work", ["loss", "log probabilities", "scores"])
def test_no_tensor_grows_with_tokens_times_vocabulary(work: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_cross_entropy, "_LOGITS_BYTES", 2**22)  # small, so that a few rows are many chunks
    vocabulary, rows = 65_536, 100
    limit = chunk_rows(vocabulary, dtype, torch.device("cpu"))
    assert 3 * limit <= rows and limit * vocabulary * dtype.itemsize <= 2**22
    hidden = torch.randn(rows, 8).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, 8).requires_grad_()
    targets = torch.randint(vocabulary, (rows,))
    with _Largest(vocabulary) as watch:
        if work == "loss":
            cross_entropy(hidden, weight, targets, torch.ones(rows)).backward()
        elif work == "log probabilities":
            log_probabilities(hidden, weight, targets).sum().backward()
        else:
            token_logps_and_correct(hidden, weight, targets)
    assert watch.entries <= limit * vocabulary
    assert watch.wide <= (2**20 if dtype == torch.bfloat16 else limit * vocabulary)  # in bfloat16 not even a whole chunk


@pytest.mark.parametrize("vocabulary", [6_400, 65_536, 151_936, 2_000_000])
def test_a_chunk_is_bounded_in_bytes_and_keeps_products_efficient(vocabulary: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        rows = chunk_rows(vocabulary, dtype, torch.device("cpu"))
        assert rows == 16 or rows * vocabulary * dtype.itemsize <= 2**27
        assert rows >= 192 or vocabulary > 200_000
        assert rows <= CHUNK


@pytest.mark.parametrize("rows", [8, CHUNK + 40])
def test_the_gradient_of_the_head_is_scaled_in_place_and_not_copied(rows: int) -> None:
    """The gradient [V, D] of the forward pass becomes .grad without a copy."""
    hidden, weight, targets, weights = _inputs(rows)
    loss = cross_entropy(hidden, weight, targets, weights)
    held = loss.grad_fn.saved_tensors[1]  # type: ignore[union-attr]
    address = held.data_ptr()
    del held
    (loss / 3).backward()
    assert weight.grad is not None and weight.grad.data_ptr() == address


def test_a_second_backward_pass_raises() -> None:
    hidden, weight, targets, weights = _inputs(20)
    loss = cross_entropy(hidden, weight, targets, weights)
    (loss / 3).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_tensor_gets_no_gradient_and_leaves_the_others_unchanged(frozen: str) -> None:
    hidden, weight, targets, weights = _inputs(90)
    moving = weight if frozen == "hidden" else hidden
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    loss = cross_entropy(hidden, weight, targets, weights, 0.1)
    assert sum(tensor is not None for tensor in loss.grad_fn.saved_tensors) == 1  # type: ignore[union-attr]
    _assert_equal(loss, _plain(hidden, weight, targets, weights, 0.1), (moving,))
    logps = log_probabilities(hidden, weight, targets).sum()
    plain = (hidden @ weight.t()).log_softmax(-1).gather(-1, targets[:, None]).sum()
    _assert_equal(logps, plain, (moving,))


def test_micro_batches_add_up_in_the_gradient() -> None:
    hidden, weight, targets, weights = _inputs(300)
    for rows in (slice(0, 100), slice(100, 300)):
        (cross_entropy(hidden[rows], weight, targets[rows], weights[rows]) / 7).backward()
    expected = torch.autograd.grad(_plain(hidden, weight, targets, weights, 0.0) / 7, (hidden, weight))
    torch.testing.assert_close((hidden.grad, weight.grad), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradients_of_a_model_equal_the_gradients_of_plain_logits(tied: bool, smoothing: float) -> None:
    model, tokens = make_decoder(tie_word_embeddings=tied), random_tokens(3, 30)
    targets, weights = random_tokens(3, 30, seed=1).flatten(), torch.rand(90) * (torch.rand(90) > 0.3)
    cross_entropy(model(tokens).flatten(0, 1), model.lm_head_weight, targets, weights, smoothing).backward()
    got = gradients(model)
    embedding, head = model.embed_tokens.weight, model.lm_head_weight
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
    grads = torch.autograd.grad(got, (hidden, weight), upstream)
    for a, b in zip(grads, torch.autograd.grad(plain, (hidden, weight), upstream), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_log_probabilities_of_a_row_do_not_depend_on_the_selected_rows() -> None:
    hidden, weight, targets, _ = _inputs(CHUNK + 90)
    rows = torch.randperm(len(hidden), generator=torch.Generator().manual_seed(1))[: CHUNK + 20]
    got, expected = log_probabilities(hidden, weight, targets[rows], rows), log_probabilities(hidden, weight, targets)[rows]
    _assert_equal(got.sum(), expected.sum(), (hidden, weight))
    torch.testing.assert_close(got, expected)
    logps, correct = token_logps_and_correct(hidden, weight, targets[rows], rows)
    assert torch.equal(logps, got.detach()) and torch.equal(correct, token_logps_and_correct(hidden, weight, targets)[1][rows])


def test_scores_mark_targets_that_are_the_likeliest_token() -> None:
    hidden, weight, targets, _ = _inputs(64)
    logits = (hidden @ weight.t()).detach()
    targets[:10] = logits[:10].argmax(-1)
    logps, correct = token_logps_and_correct(hidden, weight, targets)
    assert not logps.requires_grad
    torch.testing.assert_close(logps, logits.log_softmax(-1)[torch.arange(64), targets])
    assert torch.equal(correct, logits.argmax(-1) == targets) and correct[:10].all() and not correct.all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_gpu_computes_what_the_cpu_computes(dtype: torch.dtype) -> None:
    results = []
    for device in ("cpu", "cuda"):
        hidden, weight, targets, weights = (t.detach().to(device) for t in _inputs(900))
        hidden, weight = hidden.to(dtype).requires_grad_(), weight.requires_grad_()
        loss = cross_entropy(hidden, weight, targets, weights, 0.1)
        logps = log_probabilities(hidden, weight, targets)
        grads = torch.autograd.grad(loss, (hidden, weight)) + torch.autograd.grad(logps.sum(), (hidden, weight))
        results.append(
            [t.detach().float().cpu() for t in (loss, logps, token_logps_and_correct(hidden, weight, targets)[0], *grads)]
        )
    for a, b in zip(*results, strict=True):
        assert torch.linalg.vector_norm(a - b) <= (1e-5 if dtype == torch.float32 else 0.01) * torch.linalg.vector_norm(a)


PEAK = """
import torch
from fledge.model.linear_cross_entropy import cross_entropy

def resident(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) / 1024

def step(vocabulary, width, rows):
    hidden = torch.randn(rows, width).bfloat16().requires_grad_()
    weight = torch.randn(vocabulary, width, requires_grad=True)
    before = resident("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    cross_entropy(hidden, weight, torch.randint(vocabulary, (rows,)), torch.ones(rows)).backward()
    return resident("VmHWM") - before

torch.set_num_threads(1)
step(100, 64, 32)  # what the first products load
print(step(65_536, 128, 1100))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from /proc")
@pytest.mark.skipif(
    not multiplies_bf16(), reason="this CPU multiplies no bfloat16: the library holds the products in float32 first"
)
def test_a_step_in_bfloat16_holds_no_hidden_copy_of_the_logits() -> None:
    """64 MiB of logits, a head of 16 MiB in bfloat16, its gradient of 32, a tile of 6 and 4 of float32 rows. In bfloat16
    `scatter_` holds all logits once more in float32, 128 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert 100 < float(done.stdout) < 150
