"""Cross-entropy and log-probabilities from hidden states and the head's matrix, a chunk of rows at a time.

The logits of a batch never exist together: all chunks share one buffer in the dtype of the hidden states, only a few of its
rows at a time are converted to float32, and the gradients of the logits replace the logits in place. The memory is therefore
the head's matrix, its gradient, and a bounded buffer, for any context and vocabulary. Symbols: N rows of hidden states, n rows
with a target, r rows of a chunk; width D, vocabulary V.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fledge.model.product_shapes import repeating_length

CHUNK = 512  # most rows of logits in a chunk on a CPU; a GPU needs more to be busy
_CHUNK_ON_GPU = 8192
_LOGITS_BYTES, _LOGITS_BYTES_ON_GPU = 2**27, 2**29  # size of the buffer of logits
_FLOAT32_LOGITS, _FLOAT32_LOGITS_ON_GPU = 2**20, 2**25  # logits that are converted to float32 at a time
_TILE, _TILE_ON_GPU = 2**20, 2**26  # numbers of a low-precision product before it is accumulated in float32

LossKernel = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""A function with the arguments and results of `_softmax_grad_chunk`."""


def chunk_rows(vocabulary: int, dtype: torch.dtype, device: torch.device) -> int:
    """Number of rows of the buffer of logits; it does not depend on the batch, so that a kernel is compiled for one shape."""
    on_gpu = device.type != "cpu"
    most, size = (_CHUNK_ON_GPU, _LOGITS_BYTES_ON_GPU) if on_gpu else (CHUNK, _LOGITS_BYTES)
    return max(16, min(most, size // (vocabulary * dtype.itemsize) // 16 * 16))


def float32_logits(device: torch.device) -> int:
    """Number of logits in low precision that are converted to float32 at a time."""
    return _FLOAT32_LOGITS if device.type == "cpu" else _FLOAT32_LOGITS_ON_GPU


def tile_numbers(device: torch.device) -> int:
    """Numbers of a low-precision product for the gradient of the head's matrix, which is then added in float32."""
    return _TILE if device.type == "cpu" else _TILE_ON_GPU


def _float32_blocks(logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield a few rows of logits [r, V] at a time, and these in float32: themselves where they are, else in one buffer, because
    an allocator that gives and takes such blocks one by one may leave a hole for each (32 of 4 MiB were seen)."""
    step = max(1, float32_logits(logits.device) // logits.shape[-1])
    is_float32 = logits.dtype == torch.float32
    buffer = None if is_float32 else logits.new_empty(min(step, len(logits)), logits.shape[-1], dtype=torch.float32)
    for start in range(0, len(logits), step):
        rows = slice(start, min(start + step, len(logits)))
        block = logits[rows]
        yield rows, block if buffer is None else buffer[: len(block)].copy_(block)


def _exponentiate(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Replace logits [r, V] by exp(logits − maximum), in place; returns their sums and log Σ exp(logits), both [r, 1]."""
    top = logits.amax(-1, keepdim=True)
    total = logits.sub_(top).exp_().sum(-1, keepdim=True)
    return total, top + total.log()


def _softmax_grad_chunk(logits: Tensor, weights: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Replace logits [r, V] by w·(p − ε/V), in place, with p their softmax, w the weights of the rows [r] and ε the smoothing.

    Returns log Σ exp(logits) [r] and the mean logit [r] (0 without smoothing), in float32. The term of the target changes one
    number of each row, and is added by the caller. `torch.compile` makes one pass over the logits of this function.
    """
    wide = logits.float()
    norm, mean = _softmax_grad(wide, weights, smoothing)
    if wide.dtype != logits.dtype:
        logits.copy_(wide)
    return norm, mean


def _softmax_grad(wide: Tensor, weights: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """`_softmax_grad_chunk` of float32 logits."""
    mean = wide.mean(-1) if smoothing else torch.zeros_like(weights)
    total, norm = _exponentiate(wide)
    wide.mul_(weights[:, None] / total)
    if smoothing:
        wide.sub_(weights[:, None] * (smoothing / wide.shape[-1]))
    return norm[:, 0], mean


def _softmax_grad_in_blocks(logits: Tensor, weights: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """`_softmax_grad_chunk`, a few rows at a time, so that the float32 copy stays small and in the processor's cache."""
    norms, means = torch.empty_like(weights), torch.empty_like(weights)
    for rows, wide in _float32_blocks(logits):
        norms[rows], means[rows] = _softmax_grad(wide, weights[rows], smoothing)
        if wide.dtype != logits.dtype:
            logits[rows] = wide
    return norms, means


class _Chunks:
    """Hidden states [N, D], or the given rows [n] of them, and their logits, chunk after chunk."""

    def __init__(self, hidden: Tensor, weight: Tensor, rows: Tensor | None, full_buffer: bool = False) -> None:
        """`full_buffer`: the buffer has `chunk_rows` rows even where fewer are needed."""
        self.hidden, self.rows = hidden, rows
        self.weight = weight.to(hidden.dtype)  # rounded once, for all chunks
        self.count = len(hidden) if rows is None else len(rows)
        self.size = chunk_rows(len(weight), hidden.dtype, hidden.device)
        self.buffer = hidden.new_empty(self.size if full_buffer else self._padded(self.count), len(weight))

    def _padded(self, count: int) -> int:
        """Rows of the products of so many rows of hidden states."""
        return min(self.size, repeating_length(count, self.hidden))

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield for each chunk the slice of its rows, its hidden states [r, D], with zeros behind them up to a length that
        repeats, and its logits [r, V], which the next chunk overwrites. The buffer is zero behind them, as far as the states
        are."""
        for start in range(0, self.count, self.size):
            span = slice(start, min(start + self.size, self.count))
            states = self.hidden[span] if self.rows is None else self.hidden.index_select(0, self.rows[span])
            count = len(states)
            if (more := self._padded(count) - count) > 0:
                states = F.pad(states, (0, 0, 0, more))
            torch.mm(states, self.weight.t(), out=self.buffer[: len(states)])
            yield span, states, self.buffer[:count]


class _Gradients:
    """Gradients of the hidden states [N, D] and of the head's matrix [V, D], each if it is needed, accumulated over the
    chunks."""

    def __init__(self, chunks: _Chunks, *, for_hidden: bool, for_weight: bool) -> None:
        hidden, weight = chunks.hidden, chunks.weight
        self.chunks, self.has_weight_sum = chunks, False
        make = torch.empty_like if chunks.rows is None else torch.zeros_like
        self.hidden = make(hidden, memory_format=torch.contiguous_format) if for_hidden else None
        make = torch.empty if chunks.count else torch.zeros
        self.weight = make(weight.shape, dtype=torch.float32, device=weight.device) if for_weight else None
        self.product = None  # a tile of the low-precision product for the weight; one buffer for all chunks
        if for_weight and hidden.dtype != torch.float32:
            self.product = hidden.new_empty(
                min(max(1, tile_numbers(weight.device) // weight.shape[1]), len(weight)), weight.shape[1]
            )

    def add(self, span: slice, states: Tensor, grad_logits: Tensor) -> None:
        """Add the contribution of a chunk with hidden states [≥ r, D] and gradients of its logits [≥ r, V], both zero behind
        row r."""
        rows, count = self.chunks.rows, span.stop - span.start
        if self.hidden is not None and rows is None and len(grad_logits) == count:
            torch.mm(grad_logits, self.chunks.weight, out=self.hidden[span])
        elif self.hidden is not None:
            gradient = torch.mm(grad_logits, self.chunks.weight)[:count]
            if rows is None:
                self.hidden[span] = gradient
            else:
                self.hidden.index_copy_(0, rows[span], gradient)
        if self.weight is not None:
            self._add_weight(self.weight, states, grad_logits)
            self.has_weight_sum = True

    def _add_weight(self, total: Tensor, states: Tensor, grad_logits: Tensor) -> None:
        """total [V, D] += grad_logitsᵀ · states. A product in bfloat16 is computed in tiles: never a second [V, D]."""
        product = self.product
        if product is None:
            total.addmm_(grad_logits.t(), states, beta=1 if self.has_weight_sum else 0)
            return
        step = max(1, len(product))
        for start in range(0, len(total), step):
            tile, columns = total[start : start + step], grad_logits[:, start : start + step]
            tile_product = torch.mm(columns.t(), states, out=product[: len(tile)])
            if self.has_weight_sum:
                tile.add_(tile_product)
            else:
                tile.copy_(tile_product)


def _differentiate(
    chunks: _Chunks,
    gradients: _Gradients,
    targets: Tensor,
    weights: Tensor,
    *,
    smoothing: float = 0.0,
    kernel: LossKernel | None = None,
) -> Tensor:
    """Σ w·ℓ over all chunks (scalar), with its gradients accumulated in `gradients`. targets and weights [n].

    d ℓ / d logits = p − ε/V − (1 − ε)·y with y the one-hot target (Szegedy et al. 2016, §7).
    """
    total = torch.zeros((), dtype=torch.float32, device=weights.device)
    for span, states, logits in chunks:
        target, w = targets[span, None], weights[span]
        target_logits = logits.gather(-1, target)[:, 0].float()
        if kernel is None:
            norm, mean = _softmax_grad_in_blocks(logits, w, smoothing)
        else:  # the whole buffer: one shape, however many of its rows are filled
            spare = chunks.size - len(logits)
            chunks.buffer[len(logits) :] = 0
            norm, mean = (values[: len(logits)] for values in kernel(chunks.buffer, F.pad(w, (0, spare)), smoothing))
        share = torch.expm1(target_logits - norm) + smoothing * (1 - 1 / logits.shape[-1])  # p − 1 without cancellation
        each = torch.arange(len(logits), device=logits.device)
        logits[each, target[:, 0]] = (w * share).to(logits.dtype)  # scatter_ in bfloat16 copies all of them to float32
        total += ((norm - (1 - smoothing) * target_logits - smoothing * mean) * w).sum()
        gradients.add(span, states, chunks.buffer[: len(states)])
    return total


class _CrossEntropy(torch.autograd.Function):
    """Sum of weighted cross-entropy. The gradients are computed in the forward pass, while the logits exist."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor,
        rows: Tensor | None,
        smoothing: float,
        kernel: LossKernel | None,
    ) -> Tensor:
        chunks = _Chunks(hidden, weight, rows, full_buffer=kernel is not None)
        for_hidden, for_weight, *_ = ctx.needs_input_grad
        gradients = _Gradients(chunks, for_hidden=for_hidden, for_weight=for_weight)
        total = _differentiate(chunks, gradients, targets, weights.float(), smoothing=smoothing, kernel=kernel)
        ctx.save_for_backward(gradients.hidden, gradients.weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Scale the gradients in place, so that they do not exist twice. (PyTorch raises on a second backward pass over this
        graph, because they have changed.)"""
        grad_hidden, grad_weight = ctx.saved_tensors
        for gradient in (grad_hidden, grad_weight):
            if gradient is not None:
                gradient.mul_(gradients[0])
        return grad_hidden, None if grad_weight is None else grad_weight.to(ctx.weight_dtype), None, None, None, None, None


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor,
    smoothing: float = 0.0,
    kernel: LossKernel | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """Σ w·[(1−ε)·nll + ε·mean over the vocabulary of −log p], a float32 scalar that can be differentiated once.

    hidden [N, D], weight [V, D], targets [N], weights w [N], smoothing ε. Rows of weight 0 are left out before any product.
    `rows` [n]: the rows with weight, if the caller knows them (finding them on a GPU would wait for the device). `kernel`: the
    compiled `_softmax_grad_chunk`, which always gets logits of `chunk_rows` rows; None: not compiled.
    """
    rows = weights.nonzero(as_tuple=True)[0] if rows is None else rows
    if len(rows) == len(weights):
        return _CrossEntropy.apply(hidden, weight, targets, weights, None, smoothing, kernel)  # type: ignore[return-value]
    return _CrossEntropy.apply(hidden, weight, targets[rows], weights[rows], rows, smoothing, kernel)  # type: ignore[return-value]


def _score(chunks: _Chunks, targets: Tensor, compare: bool) -> tuple[Tensor, Tensor]:
    """log p(target) [n] in float32; and, to `compare`, whether the target is the likeliest token [n], else False."""
    logps = torch.empty(chunks.count, dtype=torch.float32, device=targets.device)
    correct = torch.zeros(chunks.count, dtype=torch.bool, device=targets.device)
    for span, _, logits in chunks:
        for rows, wide in _float32_blocks(logits):
            block = slice(span.start + rows.start, span.start + rows.stop)
            target = targets[block, None]
            target_logits = wide.gather(-1, target)
            if compare:
                correct[block] = wide.argmax(-1) == target[:, 0]
            logps[block] = (target_logits - _exponentiate(wide)[1])[:, 0]
    return logps, correct


class _LogProbabilities(torch.autograd.Function):
    """log p(target) of each row. The backward pass computes the logits again instead of keeping them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor | None) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets, rows)
        return _score(_Chunks(hidden, weight, rows), targets, compare=False)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, targets, rows = ctx.saved_tensors
        chunks = _Chunks(hidden, weight, rows)
        for_hidden, for_weight, *_ = ctx.needs_input_grad
        sums = _Gradients(chunks, for_hidden=for_hidden, for_weight=for_weight)
        _differentiate(chunks, sums, targets, -gradients[0])
        return sums.hidden, None if sums.weight is None else sums.weight.to(weight.dtype), None, None


def log_probabilities(hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor | None = None) -> Tensor:
    """log p(target) [n] in float32, with gradients, for hidden [N, D], weight [V, D] and targets [n]. `rows` [n], all
    different: the row of hidden for each target; None: all rows, n = N."""
    return _LogProbabilities.apply(hidden, weight, targets, rows)  # type: ignore[return-value]


@torch.no_grad()
def token_logps_and_correct(
    hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """log p(target) [n] in float32 and whether the target is the likeliest token [n], without gradients. Arguments as in
    `log_probabilities`."""
    return _score(_Chunks(hidden, weight, rows), targets, compare=True)
