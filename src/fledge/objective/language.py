"""Next-token prediction: pretraining and supervised fine-tuning differ only in the weights of their batches."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fledge.data import Batch
from fledge.model.decoder import Decoder, evaluating
from fledge.model.head import CHUNK, Kernel, cross_entropy, log_probabilities_chunk


@dataclass(frozen=True)
class Outcome:
    """Loss as a sum, and metrics as sums, over the `weight` of the batch."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class LanguageObjective:
    """Σ weight × cross-entropy. `kernel` is a compiled head where the machine's probe found that it pays."""

    label_smoothing: float = 0.0
    kernel: Kernel | None = None

    def weight(self, batch: Batch) -> float:
        """What the loss of a window is divided by: its sum of weights."""
        return batch.weight

    def __call__(self, model: Decoder, batch: Batch) -> Outcome:
        hidden = model(batch.tokens, batch.positions, batch.documents).flatten(0, 1)
        loss = cross_entropy(
            hidden, model.head_weight, batch.targets.flatten(), batch.weights.flatten(), self.label_smoothing, self.kernel
        )
        return Outcome(loss)


@torch.no_grad()
def evaluate_language(model: Decoder, batch: Batch) -> dict[str, float]:
    """Sums over a batch: `nll` (weighted), `correct` (weighted) and `weight`; never smoothed, dropout off."""
    with evaluating(model):
        hidden = model(batch.tokens, batch.positions, batch.documents).flatten(0, 1)
    weights, targets = batch.weights.flatten(), batch.targets.flatten()
    keep = weights.nonzero(as_tuple=True)[0]
    sums = {"nll": 0.0, "correct": 0.0, "weight": float(weights.sum(dtype=torch.float64))}
    for start in range(0, len(keep), CHUNK):
        rows = keep[start : start + CHUNK]
        logps, correct = log_probabilities_chunk(hidden[rows], model.head_weight, targets[rows])
        sums["nll"] -= float((logps.double() * weights[rows]).sum())
        sums["correct"] += float((correct * weights[rows]).sum(dtype=torch.float64))
    return sums
