"""Next-token prediction: pretraining and supervised fine-tuning differ only in the weights of their batches."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from fledge.data import Batch
from fledge.model.device_copy import to_device
from fledge.model.linear_cross_entropy import LossKernel, cross_entropy, log_probabilities, token_logps_and_correct
from fledge.model.moe import RouterStats
from fledge.model.protocol import LanguageModel, eval_mode
from fledge.objective.base import (
    LossOutput,
    Ratio,
    SumOverRanks,
    WindowBatches,
    as_number,
    bits_per_unit,
    integer_total,
    perplexity,
)
from fledge.objective.token_losses import TokenLosses


def target_log_probabilities(model: LanguageModel, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, RouterStats | None]:
    """The log-probabilities [n] of the targets with weight, at a temperature, and the router statistics of a mixture of experts
    (None: a dense model)."""
    states, routing = model.forward_with_router_stats(*batch.model_inputs)
    hidden = states.flatten(0, 1)
    if temperature != 1.0:
        hidden = hidden / temperature  # logits are linear in it
    index = batch.target_index
    return log_probabilities(hidden, model.lm_head_weight, batch.targets.flatten()[index], index), routing


@dataclass(frozen=True)
class CausalLMObjective:
    """Σ weight × cross-entropy of the next token.

    `kernel`: the compiled chunk of the cross-entropy, if autotune found that compiling pays. `token_bytes` [V]: UTF-8 length of
    each token's text; with it evaluations also give bits per byte, which compares models with different tokenizers.
    `token_losses`: evaluations add their targets to it.
    """

    label_smoothing: float = 0.0
    kernel: LossKernel | None = None
    token_bytes: Tensor | None = None
    token_losses: TokenLosses | None = None

    def normalizer(self, batch: Batch) -> float:
        """The sum of the weights of the batch."""
        return batch.weight

    def __call__(self, model: LanguageModel, batch: Batch) -> LossOutput:
        """Σ weight × cross-entropy, smoothed by `label_smoothing`."""
        states, routing = model.forward_with_router_stats(*batch.model_inputs)
        hidden = states.flatten(0, 1)
        targets, weights = batch.targets.flatten(), batch.loss_weights.flatten()
        loss = cross_entropy(
            hidden,
            model.lm_head_weight,
            targets,
            weights,
            smoothing=self.label_smoothing,
            kernel=self.kernel,
            rows=batch.target_index,
        )
        output = LossOutput(loss)
        return output if routing is None else output.with_router_loss(model, routing, self.normalizer(batch))

    def evaluate(self, model: LanguageModel, batch: Batch) -> dict[str, Ratio]:
        """The metrics of `target_metrics`; the loss is not smoothed."""
        return target_metrics(model, batch, self.token_bytes, self.token_losses)

    def adding_to(self, token_losses: TokenLosses) -> "CausalLMObjective":
        """The objective whose evaluations add their targets to `token_losses`."""
        return replace(self, token_losses=token_losses)

    def in_window(self, model: LanguageModel, batches: WindowBatches, sum_over_ranks: SumOverRanks) -> Self:
        """Itself: the loss of a batch depends on nothing else."""
        return self


@torch.no_grad()
def target_metrics(
    model: LanguageModel, batch: Batch, token_bytes: Tensor | None = None, token_losses: TokenLosses | None = None
) -> dict[str, Ratio]:
    """`loss` (nats), `perplexity` and `token_accuracy` per weighted target, `tokens` (the sum of the weights), and with
    `token_bytes` [V] `bits_per_byte` = Σ weight · nll / (ln 2 · Σ weight · bytes). The targets are added to `token_losses`."""
    with eval_mode(model):
        hidden = model(*batch.model_inputs).flatten(0, 1)
    index = batch.target_index
    logps, correct = token_logps_and_correct(hidden, model.lm_head_weight, batch.targets.flatten()[index], index)
    weights = batch.loss_weights.flatten()[index].double()
    nll, weight = as_number(-(logps * weights).sum()), as_number(weights.sum())
    metrics = {
        "loss": Ratio(nll, weight),
        "perplexity": Ratio(nll, weight, perplexity),
        "token_accuracy": Ratio(as_number((correct * weights).sum()), weight),
        "tokens": Ratio(weight, 1.0, integer_total),
    }
    token_bytes = None if token_bytes is None else to_device(token_bytes, batch.targets.device)
    if token_losses is not None:
        token_losses.add(batch, logps, token_bytes)
    if token_bytes is not None:
        sizes = token_bytes[batch.targets]
        num_bytes = as_number((sizes * batch.loss_weights).sum(dtype=torch.float64))
        metrics["bits_per_byte"] = Ratio(nll, num_bytes, bits_per_unit)
    return metrics
