"""Direct preference optimisation (Rafailov et al. 2023) on packed pairs."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fledge.data import Batch
from fledge.model.linear_cross_entropy import log_probabilities
from fledge.model.moe import RouterStats
from fledge.model.protocol import LanguageModel, eval_mode
from fledge.objective.language import LossOutput


def sequence_log_probabilities(model: LanguageModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Summed log-probabilities [S] of the weighted targets of every sequence in a batch, and how many there are [S]."""
    return _scored(model, batch)[:2]


def _scored(model: LanguageModel, batch: Batch) -> tuple[Tensor, Tensor, RouterStats | None]:
    """The same, and how a mixture of experts routed the batch."""
    states, routing = model.forward_with_router_stats(batch.input_ids, batch.position_ids, batch.documents)
    hidden = states.flatten(0, 1)
    weights = batch.loss_weights.flatten()
    keep = batch.target_index
    logps = log_probabilities(hidden, model.lm_head_weight, batch.targets.flatten()[keep], keep)
    owner = batch.sequence_ids.flatten()[keep]
    sums = torch.zeros(batch.num_sequences, dtype=torch.float32, device=logps.device).index_add(0, owner, logps * weights[keep])
    counts = torch.zeros(batch.num_sequences, device=logps.device).index_add(0, owner, weights[keep])
    return sums, counts, routing


def preference_loss(logits: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """−log σ(βΔ) for Δ = (lc − rc) − (lr − rr) (eq. 7); with ε the labels are taken to be flipped that often (cDPO)."""
    loss = -F.logsigmoid(beta * logits)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * F.logsigmoid(-beta * logits)
    return loss


@dataclass(frozen=True)
class DPOObjective:
    """DPO with a reference: `reference` is a frozen model, or the table [examples, 2] of its log-probabilities."""

    beta: float
    label_smoothing: float
    sft_loss_weight: float
    reference: LanguageModel | Tensor

    def normalizer(self, batch: Batch) -> float:
        """Pairs of the batch."""
        return float(len(batch.examples))

    def reference_log_probabilities(self, batch: Batch) -> Tensor:
        """Summed log-probabilities [pairs, 2] of (chosen, rejected) under the reference."""
        if isinstance(self.reference, Tensor):
            return self.reference[torch.tensor(batch.examples, dtype=torch.long)].to(batch.input_ids.device)
        with torch.no_grad(), eval_mode(self.reference):
            return sequence_log_probabilities(self.reference, batch)[0].view(-1, 2)

    def __call__(self, model: LanguageModel, batch: Batch) -> LossOutput:
        sums, counts, routing = _scored(model, batch)
        policy, reference = sums.view(-1, 2), self.reference_log_probabilities(batch)
        rewards = self.beta * (policy - reference)  # [pairs, 2], the implicit rewards of chosen and rejected
        logits = (rewards[:, 0] - rewards[:, 1]) / self.beta
        loss = preference_loss(logits, self.beta, self.label_smoothing).sum()
        if self.sft_loss_weight:
            loss = loss - self.sft_loss_weight * (policy[:, 0] / counts.view(-1, 2)[:, 0]).sum()
        detached = rewards.detach()
        metrics = {
            "rewards/chosen": detached[:, 0].sum(),
            "rewards/rejected": detached[:, 1].sum(),
            "rewards/margins": (detached[:, 0] - detached[:, 1]).sum(),
            "rewards/accuracies": (detached[:, 0] > detached[:, 1]).float().sum(),
            "logps/chosen": policy.detach()[:, 0].sum(),
            "logps/rejected": policy.detach()[:, 1].sum(),
        }
        return LossOutput(loss, metrics).with_router_loss(model, routing, self.normalizer(batch))


@torch.no_grad()
def compute_ref_log_probs(model: LanguageModel, batches: Iterable[Batch], examples: int, device: torch.device) -> Tensor:
    """Log-probabilities [examples, 2] of all pairs under the reference, computed once."""
    table = torch.full((examples, 2), float("nan"))
    for batch in batches:
        with eval_mode(model):
            sums, _ = sequence_log_probabilities(model, batch.to(device))
        table[torch.tensor(batch.examples, dtype=torch.long)] = sums.view(-1, 2).cpu()
    if table.isnan().any():
        raise AssertionError("a pair was not scored by the reference")
    return table
