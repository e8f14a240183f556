"""The head: from hidden states to losses and log-probabilities, a chunk of rows at a time.

The logits of a batch never exist together, and in float32 not even those of a chunk: all chunks share one buffer in the
dtype of the hidden states, a few of its rows at a time are widened, and the logits turn into their gradients in place.
So memory is that of the head's matrix and its gradient plus a bounded buffer, whatever the context and the vocabulary.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 512  # rows of logits at a time, at most, on a CPU; a GPU needs more to be busy
_CHUNK_ON_GPU = 8192
_LOGITS_BYTES, _LOGITS_BYTES_ON_GPU = 2**27, 2**29  # of the buffer of logits
_WIDENED, _WIDENED_ON_GPU = 2**20, 2**25  # logits in float32 at a time
_TILE, _TILE_ON_GPU = 2**22, 2**26  # entries of a low-precision product before it is added up in float32

LossKernel = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


def chunk_rows(vocabulary: int, dtype: torch.dtype, device: torch.device) -> int:
    """Rows of logits in the buffer: the same for every batch, so that a compiled kernel sees one shape."""
    on_gpu = device.type != "cpu"
    most, size = (_CHUNK_ON_GPU, _LOGITS_BYTES_ON_GPU) if on_gpu else (CHUNK, _LOGITS_BYTES)
    return max(16, min(most, size // (vocabulary * dtype.itemsize) // 16 * 16))


def _widened_rows(logits: Tensor) -> int:
    return max(1, (_WIDENED if logits.device.type == "cpu" else _WIDENED_ON_GPU) // logits.shape[-1])


def _exponentiate(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Turn logits [r, V] into exp(logits − maximum), in place; returns the sums of those and log Σ exp(logits), [r, 1]."""
    top = logits.amax(-1, keepdim=True)
    total = logits.sub_(top).exp_().sum(-1, keepdim=True)
    return total, top + total.log()


def _softmax_grad_chunk(logits: Tensor, weights: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Turn logits [r, V] into w·(p − ε/V), in place, with p their softmax and w the rows' weights [r].

    Returns log Σ exp(logits) [r] and the mean logit [r] (0 without smoothing), in float32. What the target adds concerns one
    entry of each row, and is done outside. This is the part that `torch.compile` makes one pass of.
    """
    wide = logits.float()
    mean = wide.mean(-1) if smoothing else torch.zeros_like(weights)
    total, norm = _exponentiate(wide)
    wide.mul_(weights[:, None] / total)
    if smoothing:
        wide.sub_(weights[:, None] * (smoothing / logits.shape[-1]))
    if wide.dtype != logits.dtype:
        logits.copy_(wide)
    return norm[:, 0], mean


def _loss_blocks(logits: Tensor, weights: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """`_loss_chunk`, a few rows at a time: what is widened to float32 stays small, and in the cache."""
    step = _widened_rows(logits)
    parts = [
        _softmax_grad_chunk(logits[start : start + step], weights[start : start + step], smoothing)
        for start in range(0, len(logits), step)
    ]
    norms, means = zip(*parts, strict=True)
    return torch.cat(norms), torch.cat(means)


class _Chunks:
    """Hidden states [N, D], or the given rows of them, and their logits, chunk after chunk."""

    def __init__(self, hidden: Tensor, weight: Tensor, rows: Tensor | None, whole: bool = False) -> None:
        """`whole`: the buffer has all its rows even where fewer are needed."""
        self.hidden, self.rows = hidden, rows
        self.weight = weight.to(hidden.dtype)  # rounded once, for all chunks
        self.count = len(hidden) if rows is None else len(rows)
        self.size = chunk_rows(len(weight), hidden.dtype, hidden.device)
        self.buffer = hidden.new_empty(self.size if whole else min(self.size, self.count), len(weight))

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Where a chunk lies among the rows, its hidden states [r, D], and its logits [r, V], valid until the next chunk."""
        for start in range(0, self.count, self.size):
            part = slice(start, min(start + self.size, self.count))
            states = self.hidden[part] if self.rows is None else self.hidden.index_select(0, self.rows[part])
            yield part, states, torch.mm(states, self.weight.t(), out=self.buffer[: len(states)])


class _Gradients:
    """What the chunks add up to: gradients of the hidden states [N, D] and of the head [V, D], where they are wanted."""

    def __init__(self, chunks: _Chunks, for_hidden: bool, for_weight: bool) -> None:
        hidden, weight = chunks.hidden, chunks.weight
        self.chunks, self.begun = chunks, False
        make = torch.empty_like if chunks.rows is None else torch.zeros_like
        self.by_hidden = make(hidden, memory_format=torch.contiguous_format) if for_hidden else None
        start = torch.empty if chunks.count else torch.zeros
        self.by_weight = start(weight.shape, dtype=torch.float32, device=weight.device) if for_weight else None

    def add(self, part: slice, states: Tensor, by_logits: Tensor) -> None:
        """Pass the gradients of a chunk's logits [r, V] on."""
        rows = self.chunks.rows
        if self.by_hidden is not None and rows is None:
            torch.mm(by_logits, self.chunks.weight, out=self.by_hidden[part])
        elif self.by_hidden is not None and rows is not None:
            self.by_hidden.index_copy_(0, rows[part], torch.mm(by_logits, self.chunks.weight))
        if self.by_weight is not None:
            self._add_weight(self.by_weight, states, by_logits)
            self.begun = True

    def _add_weight(self, total: Tensor, states: Tensor, by_logits: Tensor) -> None:
        """total [V, D] += by_logitsᵀ · states. A product in bfloat16 is made tile by tile: never a second [V, D]."""
        if states.dtype == total.dtype:
            total.addmm_(by_logits.t(), states, beta=1 if self.begun else 0)
            return
        step = max(1, (_TILE if total.device.type == "cpu" else _TILE_ON_GPU) // total.shape[1])
        product = states.new_empty(min(step, len(total)), total.shape[1])
        for start in range(0, len(total), step):
            tile, part = total[start : start + step], by_logits[:, start : start + step]
            made = torch.mm(part.t(), states, out=product[: len(tile)])
            if self.begun:
                tile.add_(made)
            else:
                tile.copy_(made)


def _differentiate(
    chunks: _Chunks, gradients: _Gradients, targets: Tensor, weights: Tensor, smoothing: float, kernel: LossKernel | None
) -> Tensor:
    """Σ w·ℓ over all chunks, adding up its gradients.

    d ℓ / d logits = p − ε/V − (1 − ε)·y with y the target (Szegedy et al. 2016, §7).
    """
    total = torch.zeros((), dtype=torch.float32, device=weights.device)
    for part, states, logits in chunks:
        at, w = targets[part, None], weights[part]
        picked = logits.gather(-1, at)[:, 0].float()
        if kernel is None:
            norm, mean = _loss_blocks(logits, w, smoothing)
        else:  # the whole buffer: one shape, however many of its rows are filled
            spare = chunks.size - len(logits)
            chunks.buffer[len(logits) :] = 0
            norm, mean = (made[: len(logits)] for made in kernel(chunks.buffer, F.pad(w, (0, spare)), smoothing))
        share = torch.expm1(picked - norm) + smoothing * (1 - 1 / logits.shape[-1])  # p − 1 without cancellation
        logits.scatter_(-1, at, (w * share)[:, None].to(logits.dtype))
        total += ((norm - (1 - smoothing) * picked - smoothing * mean) * w).sum()
        gradients.add(part, states, logits)
    return total


class _CrossEntropy(torch.autograd.Function):
    """Sum of weighted cross-entropy whose gradients are made on the way forward, while the logits are at hand."""

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
        chunks = _Chunks(hidden, weight, rows, whole=kernel is not None)
        gradients = _Gradients(chunks, *ctx.needs_input_grad[:2])
        total = _differentiate(chunks, gradients, targets, weights.float(), smoothing, kernel)
        ctx.save_for_backward(gradients.by_hidden, gradients.by_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradients are scaled where they are: they must not exist twice. (PyTorch refuses a second backward pass over
        the same graph, because they have changed.)"""
        by_hidden, by_weight = ctx.saved_tensors
        for made in (by_hidden, by_weight):
            if made is not None:
                made.mul_(gradients[0])
        return by_hidden, None if by_weight is None else by_weight.to(ctx.weight_dtype), None, None, None, None, None


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor,
    smoothing: float = 0.0,
    kernel: LossKernel | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    """Σ w·[(1−ε)·nll + ε·mean over the vocabulary of −log p], a float32 scalar; can be differentiated once.

    hidden [N, D], weight [V, D], targets [N], weights [N]. Rows of weight 0 are left out before any product: `rows` [n] are
    the others, where they are known (finding them on a GPU would wait for it). `kernel` is `_loss_chunk`, compiled: it
    always sees logits of `chunk_rows` rows.
    """
    rows = weights.nonzero(as_tuple=True)[0] if rows is None else rows
    if len(rows) == len(weights):
        return _CrossEntropy.apply(hidden, weight, targets, weights, None, smoothing, kernel)  # type: ignore[return-value]
    return _CrossEntropy.apply(hidden, weight, targets[rows], weights[rows], rows, smoothing, kernel)  # type: ignore[return-value]


def _score(chunks: _Chunks, targets: Tensor, judge: bool) -> tuple[Tensor, Tensor]:
    """log p(target) [n] in float32, and, to `judge`, whether the target is the likeliest token [n]."""
    logps = torch.empty(chunks.count, dtype=torch.float32, device=targets.device)
    right = torch.zeros(chunks.count, dtype=torch.bool, device=targets.device)
    for part, _, logits in chunks:
        step = _widened_rows(logits)
        for start in range(0, len(logits), step):
            place = slice(part.start + start, min(part.start + start + step, part.stop))
            wide, aim = logits[start : start + step].float(), targets[place, None]
            picked = wide.gather(-1, aim)
            if judge:
                right[place] = wide.argmax(-1) == aim[:, 0]
            logps[place] = (picked - _exponentiate(wide)[1])[:, 0]
    return logps, right


class _LogProbabilities(torch.autograd.Function):
    """log p(target) of each row; the backward pass makes its logits again instead of keeping them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor | None) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets, rows)
        return _score(_Chunks(hidden, weight, rows), targets, judge=False)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, targets, rows = ctx.saved_tensors
        chunks = _Chunks(hidden, weight, rows)
        made = _Gradients(chunks, *ctx.needs_input_grad[:2])
        _differentiate(chunks, made, targets, -gradients[0], 0.0, None)
        return made.by_hidden, None if made.by_weight is None else made.by_weight.to(weight.dtype), None, None


def log_probabilities(hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor | None = None) -> Tensor:
    """log p(target) [n] in float32, with gradients, for hidden [N, D] and targets [n]: of all rows of hidden, or of the
    given ones [n], which must differ."""
    return _LogProbabilities.apply(hidden, weight, targets, rows)  # type: ignore[return-value]


@torch.no_grad()
def token_logps_and_correct(
    hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """log p(target) [n] in float32 and whether the target is the likeliest token [n], without gradients; rows as above."""
    return _score(_Chunks(hidden, weight, rows), targets, judge=True)
