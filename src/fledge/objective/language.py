"""Next-token prediction: pretraining and supervised fine-tuning differ only in the weights of their batches."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fledge.data import Batch
from fledge.model.decoder import Decoder, evaluating
from fledge.model.experts import Routing
from fledge.model.head import Kernel, cross_entropy, scores


@dataclass(frozen=True)
class Outcome:
    """Loss as a sum, and metrics as sums, over the `weight` of the batch.

    `auxiliary` is a sum as well: it is trained with the loss but not reported in it (the balance of a mixture of experts, whose
    state `routing` describes).
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    auxiliary: Tensor | None = None
    routing: Routing | None = None

    def detached(self) -> "Outcome":
        """The same without the graph: what is left when the gradients are made."""
        routing = None if self.routing is None else self.routing.detach()
        return Outcome(self.loss.detach(), self.metrics, None, routing)

    def nothing(self) -> "Outcome":
        """That of a batch of no weight, with the same names."""
        metrics = {name: torch.zeros_like(value) for name, value in self.metrics.items()}
        return Outcome(torch.zeros_like(self.loss), metrics, None, self.routing and self.routing.nothing())

    def routed(self, model: Decoder, routing: Routing | None, weight: float) -> "Outcome":
        """With what the routing of a batch of this weight adds; as it is where the model is dense."""
        moe = model.config.moe
        if moe is None or routing is None:
            return self
        return replace(self, auxiliary=weight * routing.penalty(moe), routing=routing)


@dataclass(frozen=True)
class LanguageObjective:
    """Σ weight × cross-entropy. `kernel` is a compiled head where the machine's probe found that it pays."""

    label_smoothing: float = 0.0
    kernel: Kernel | None = None

    def weight(self, batch: Batch) -> float:
        """What the loss of a window is divided by: its sum of weights."""
        return batch.weight

    def __call__(self, model: Decoder, batch: Batch) -> Outcome:
        states, routing = model.states(batch.tokens, batch.positions, batch.documents)
        hidden = states.flatten(0, 1)
        targets, weights = batch.targets.flatten(), batch.weights.flatten()
        loss = cross_entropy(hidden, model.head_weight, targets, weights, self.label_smoothing, self.kernel, batch.places)
        return Outcome(loss) if routing is None else Outcome(loss).routed(model, routing, self.weight(batch))


@torch.no_grad()
def evaluate_language(model: Decoder, batch: Batch) -> dict[str, float]:
    """Sums over a batch: `nll` (weighted), `correct` (weighted) and `weight`; never smoothed, dropout off."""
    with evaluating(model):
        hidden = model(batch.tokens, batch.positions, batch.documents).flatten(0, 1)
    weights, targets = batch.weights.flatten(), batch.targets.flatten()
    keep = batch.places
    logps, correct = scores(hidden, model.head_weight, targets[keep], keep)
    weights = weights[keep].double()
    return {"nll": -float((logps * weights).sum()), "correct": float((correct * weights).sum()), "weight": float(weights.sum())}
