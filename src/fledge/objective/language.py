"""Next-token prediction: pretraining and supervised fine-tuning differ only in the weights of their batches."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fledge.data import Batch
from fledge.model.linear_cross_entropy import LossKernel, cross_entropy, token_logps_and_correct
from fledge.model.moe import RouterStats
from fledge.model.protocol import LanguageModel, eval_mode


@dataclass(frozen=True)
class LossOutput:
    """Loss as a sum, and metrics as sums, over the `weight` of the batch.

    `auxiliary` is a sum as well: it is trained with the loss but not reported in it (the balance of a mixture of experts, whose
    state `routing` describes).
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    aux_loss: Tensor | None = None
    routing: RouterStats | None = None

    def detached(self) -> "LossOutput":
        """The same without the graph: what is left when the gradients are made."""
        routing = None if self.routing is None else self.routing.detach()
        return LossOutput(self.loss.detach(), self.metrics, None, routing)

    def nothing(self) -> "LossOutput":
        """That of a batch of no weight, with the same names."""
        metrics = {name: torch.zeros_like(value) for name, value in self.metrics.items()}
        return LossOutput(torch.zeros_like(self.loss), metrics, None, self.routing and self.routing.zeros_like())

    def with_router_loss(self, model: LanguageModel, routing: RouterStats | None, weight: float) -> "LossOutput":
        """With what the routing of a batch of this weight adds; as it is where the model is dense."""
        moe = model.config.moe
        if moe is None or routing is None:
            return self
        return replace(self, aux_loss=weight * routing.penalty(moe), routing=routing)


@dataclass(frozen=True)
class CausalLMObjective:
    """Σ weight × cross-entropy. `kernel` is a compiled head where the machine's probe found that it pays."""

    label_smoothing: float = 0.0
    kernel: LossKernel | None = None

    def normalizer(self, batch: Batch) -> float:
        """What the loss of a window is divided by: its sum of weights."""
        return batch.weight

    def __call__(self, model: LanguageModel, batch: Batch) -> LossOutput:
        states, routing = model.forward_with_router_stats(batch.input_ids, batch.position_ids, batch.documents)
        hidden = states.flatten(0, 1)
        targets, weights = batch.targets.flatten(), batch.loss_weights.flatten()
        loss = cross_entropy(
            hidden, model.lm_head_weight, targets, weights, self.label_smoothing, self.kernel, batch.target_index
        )
        return (
            LossOutput(loss) if routing is None else LossOutput(loss).with_router_loss(model, routing, self.normalizer(batch))
        )


@torch.no_grad()
def evaluate_language(model: LanguageModel, batch: Batch) -> dict[str, float]:
    """Sums over a batch: `nll` (weighted), `correct` (weighted) and `weight`; never smoothed, dropout off."""
    with eval_mode(model):
        hidden = model(batch.input_ids, batch.position_ids, batch.documents).flatten(0, 1)
    weights, targets = batch.loss_weights.flatten(), batch.targets.flatten()
    keep = batch.target_index
    logps, correct = token_logps_and_correct(hidden, model.lm_head_weight, targets[keep], keep)
    weights = weights[keep].double()
    return {"nll": -float((logps * weights).sum()), "correct": float((correct * weights).sum()), "weight": float(weights.sum())}
