"""Group relative policy optimization (Shao et al. 2024, "DeepSeekMath") on answers that the model itself has drawn."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Self

import torch
from torch import Tensor

from fledge.data import Batch
from fledge.model.adapter_reference import AdapterReference, reference_model
from fledge.model.moe import RouterStats
from fledge.model.protocol import LanguageModel, eval_mode
from fledge.objective.base import LossOutput, Ratio, SumOverRanks, WindowBatches
from fledge.objective.language import target_log_probabilities, target_metrics

ADVANTAGES, OLD_LOGPS, SAMPLING_LOGPS = "advantages", "old_logps", "sampling_logps"  # names in `Batch.token_values`
LossType = Literal["grpo", "dr_grpo", "dapo"]


def answer_weights(batch: Batch) -> Tensor:
    """1 / |o| [n] for each target with weight, where |o| is the summed weight of the targets of its answer."""
    index = batch.target_index
    owner, weights = batch.sequence_ids.flatten()[index], batch.loss_weights.flatten()[index]
    lengths = torch.zeros(batch.num_sequences + 1, device=weights.device).index_add_(0, owner, weights)
    return 1 / lengths[owner]


# -- what the sum over targets is divided by, and the weight of a target in it -------------------------------------------


@dataclass(frozen=True)
class Normalization:
    """How the losses of tokens become one number: Σ weight · loss ÷ Σ divisor over all batches of an update.

    `divisor(batch, max_new_tokens)`: what a batch adds to the divisor. `weights(batch)`: a factor [n] for each target with
    weight; None: 1.
    """

    divisor: Callable[[Batch, int], float]
    weights: Callable[[Batch], Tensor | None] = lambda batch: None


NORMALIZATIONS: dict[str, Normalization] = {
    # Shao et al. 2024, eq. 3: the mean over answers of the mean over their tokens.
    "grpo": Normalization(lambda batch, _: float(batch.num_sequences), answer_weights),
    # Liu et al. 2025, "Dr. GRPO", §3.2: a constant, so that long wrong answers are not favoured.
    "dr_grpo": Normalization(lambda batch, longest: float(batch.num_sequences * longest)),
    # Yu et al. 2025, "DAPO", eq. 12: the mean over the tokens of all answers.
    "dapo": Normalization(lambda batch, _: batch.weight),
}


@dataclass(frozen=True, kw_only=True)
class PolicyObjective:
    """The clipped surrogate of drawn answers, as a sum over their tokens.

    For a token with probability π, π_old when it was drawn, and π_ref under the reference, with ρ = π / π_old and advantage A:
    −min(ρ·A, clip(ρ, 1 − ε, 1 + ε_high)·A) + β·(π_ref/π − log(π_ref/π) − 1) (Shao et al. 2024, eq. 3 and 4).

    π are of the distribution that answers are drawn from, at `temperature`. A batch has the advantages and, where several
    updates share a rollout, the log-probabilities at its beginning in `token_values`; without the latter π_old = π. Those of
    the generator are compared with π where they are known. A batch without advantages (while autotune measures, or in
    evaluations) counts as one with the advantage 1. `reference`: needed for β > 0; None while autotune measures.
    `max_new_tokens`: the divisor of `dr_grpo`. `token_bytes` [V] as in `CausalLMObjective`.
    """

    loss_type: LossType = "dapo"
    epsilon: float = 0.2
    epsilon_high: float | None = None
    beta: float = 0.0
    temperature: float = 1.0
    max_new_tokens: int = 1
    reference: LanguageModel | AdapterReference | None = None
    token_bytes: Tensor | None = field(default=None, repr=False)

    @property
    def clip_range(self) -> tuple[float, float]:
        """The bounds of ρ: 1 − ε and 1 + ε_high."""
        return 1 - self.epsilon, 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)

    def normalizer(self, batch: Batch) -> float:
        """The contribution of the batch to the divisor, by `loss_type`."""
        return NORMALIZATIONS[self.loss_type].divisor(batch, self.max_new_tokens)

    def log_probabilities(self, model: LanguageModel, batch: Batch) -> tuple[Tensor, RouterStats | None]:
        """log π [n] of the targets with weight, and the routing of a mixture of experts."""
        return target_log_probabilities(model, batch, self.temperature)

    def _reference_log_probabilities(self, batch: Batch) -> Tensor | None:
        """log π_ref [n]; None without a KL term."""
        if not self.beta or self.reference is None:
            return None
        with torch.no_grad(), reference_model(self.reference) as model, eval_mode(model):
            logps = self.log_probabilities(model, batch.to(model.device))[0]
        return logps.to(batch.input_ids.device)

    def __call__(self, model: LanguageModel, batch: Batch) -> LossOutput:
        """The summed loss of the tokens, and the metrics that are means over tokens."""
        reference_logps = self._reference_log_probabilities(batch)
        logps, routing = self.log_probabilities(model, batch)
        index, values = batch.target_index, batch.token_values
        weights = batch.loss_weights.flatten()[index]
        advantages = values[ADVANTAGES].flatten()[index] if ADVANTAGES in values else torch.ones_like(logps)
        old_logps = values[OLD_LOGPS].flatten()[index] if OLD_LOGPS in values else logps.detach()
        ratio = (logps - old_logps).exp()
        clipped = ratio.clamp(*self.clip_range)
        losses = -torch.minimum(ratio * advantages, clipped * advantages)
        metrics = self._metrics(logps.detach(), ratio.detach(), advantages, weights)
        if reference_logps is not None:
            log_ratio = reference_logps - logps
            kl = log_ratio.exp() - log_ratio - 1
            losses = losses + self.beta * kl
            metrics["kl"] = Ratio((kl.detach() * weights).sum(), batch.weight)
        if SAMPLING_LOGPS in values:
            apart = (logps.detach() - values[SAMPLING_LOGPS].flatten()[index]).abs()
            metrics["sampling/logp_difference"] = Ratio((apart * weights).sum(), batch.weight)
        factors = NORMALIZATIONS[self.loss_type].weights(batch)
        loss = (losses * weights * (1 if factors is None else factors)).sum()
        return LossOutput(loss, metrics).with_router_loss(model, routing, self.normalizer(batch))

    @torch.no_grad()
    def _metrics(self, logps: Tensor, ratio: Tensor, advantages: Tensor, weights: Tensor) -> dict[str, Ratio]:
        """Names are those of TRL. `entropy` is estimated without logits, by −log π of the tokens that were drawn: its mean is
        the entropy where they are drawn from π itself."""
        low, high = self.clip_range
        is_low, is_high = (ratio < low) & (advantages < 0), (ratio > high) & (advantages > 0)
        count = weights.sum()
        return {
            "entropy": Ratio(-(logps * weights).sum(), count),
            "clip_ratio/low_mean": Ratio((is_low * weights).sum(), count),
            "clip_ratio/high_mean": Ratio((is_high * weights).sum(), count),
            "clip_ratio/region_mean": Ratio(((is_low | is_high) * weights).sum(), count),
        }

    def in_window(self, model: LanguageModel, batches: WindowBatches, sum_over_ranks: SumOverRanks) -> Self:
        """Itself: a batch has all that its loss depends on."""
        return self

    def evaluate(self, model: LanguageModel, batch: Batch) -> dict[str, Ratio]:
        """The metrics of `target_metrics` for the rows' own answers."""
        return target_metrics(model, batch, self.token_bytes)
