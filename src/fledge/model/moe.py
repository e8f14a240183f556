"""Mixture of experts: each token passes through the `num_experts_per_tok` networks that a router chooses for it.

No token is dropped: every token reaches all its experts, however uneven the load. Assignments (token, expert) are sorted
by expert, and the experts are products over ranges of rows (`grouped_mm.py`).

A router without load balancing favours few experts. The recipe has two methods (`load_balancing`):

- `aux_loss`: a loss on uneven load (Fedus et al. 2022, eq. 4) and a loss on large router logits (Zoph et al. 2022, eq. 5).
- `bias`: a number for each expert that is added to its probability when experts are chosen, but not when their outputs
  are weighted. After each update the bias of an expert rises by `bias_update_rate` if its load is below the mean, and falls
  if it is above (Wang et al. 2024, algorithm 1). The bias is a buffer of the model, saved under DeepSeek-V3's name. The
  Qwen-MoE classes of transformers have no such tensor: they report an unexpected key and choose experts without it, so use
  `aux_loss` for a model that will be loaded by transformers.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledge.model.grouped_mm import grouped_mm, permute, place_ends, unpermute
from fledge.model.linear import Linear
from fledge.recipe.schema import ModelConfig, MoeConfig


@dataclass(frozen=True)
class RouterStats:
    """How the routers of L layers distributed the tokens of a batch over E experts. Padding is not counted.

    `counts` [L, E]: assignments of tokens to experts. `tokens` (scalar): number of tokens. `entropy` [L]: mean entropy of the
    router's distribution (nats). `aux_loss` and `z_loss` (scalars with gradients) are means over the layers: `aux_loss` of
    Σ_e E·f_e·P_e, where f_e is the share of tokens that chose expert e and P_e its mean probability (an even load gives
    `num_experts_per_tok`); `z_loss` of the mean of (log Σ exp logits)².
    """

    counts: Tensor
    tokens: Tensor
    entropy: Tensor
    aux_loss: Tensor
    z_loss: Tensor

    @classmethod
    def of_layers(cls, statistics: Sequence[Tensor]) -> "RouterStats":
        """Combine the statistics [E + 4] of all layers (`MoELayer.forward_with_stats`)."""
        table = torch.stack(tuple(statistics))
        tokens, entropy, aux_loss, z_loss = table[:, -4:].unbind(1)
        return cls(
            counts=table[:, :-4].detach(),
            tokens=tokens[0].detach(),
            entropy=entropy.detach(),
            aux_loss=aux_loss.mean(),
            z_loss=z_loss.mean(),
        )

    @classmethod
    def merged(cls, routings: Iterable["RouterStats"]) -> "RouterStats":
        """The statistics of several batches together: counts are added, means are weighted by tokens."""
        batches = list(routings)
        tokens = torch.stack([batch.tokens for batch in batches])
        shares = tokens / tokens.sum().clamp(min=1)

        def mean(values: list[Tensor]) -> Tensor:
            return torch.tensordot(shares, torch.stack(values), dims=1)

        return cls(
            counts=torch.stack([batch.counts for batch in batches]).sum(0),
            tokens=tokens.sum(),
            entropy=mean([batch.entropy for batch in batches]),
            aux_loss=mean([batch.aux_loss for batch in batches]),
            z_loss=mean([batch.z_loss for batch in batches]),
        )

    @property
    def load(self) -> Tensor:
        """The share of a layer's assignments that each expert got [L, E]; 1/E for an even load."""
        return self.counts / self.counts.sum(1, keepdim=True).clamp(min=1)

    def detach(self) -> "RouterStats":
        """The statistics without their graph."""
        return replace(self, aux_loss=self.aux_loss.detach(), z_loss=self.z_loss.detach())

    def all_reduced(self, all_reduce_: Callable[[list[Tensor]], None]) -> "RouterStats":
        """The statistics of the batches of all ranks together; `all_reduce_` sums tensors over the ranks in place."""
        totals = [self.counts.clone(), self.tokens.clone()]
        totals += [value * self.tokens for value in (self.entropy, self.aux_loss, self.z_loss)]
        all_reduce_(totals)
        counts, tokens, *sums = totals
        entropy, aux_loss, z_loss = (value / tokens.clamp(min=1) for value in sums)
        return RouterStats(counts=counts, tokens=tokens, entropy=entropy, aux_loss=aux_loss, z_loss=z_loss)

    def zeros_like(self) -> "RouterStats":
        """The statistics of a batch without tokens."""
        return RouterStats(
            counts=torch.zeros_like(self.counts),
            tokens=torch.zeros_like(self.tokens),
            entropy=torch.zeros_like(self.entropy),
            aux_loss=torch.zeros_like(self.aux_loss),
            z_loss=torch.zeros_like(self.z_loss),
        )

    def penalty(self, config: MoeConfig) -> Tensor:
        """The loss (scalar) to add to the mean loss of a batch: router_aux_loss_coef · aux_loss + router_z_loss_coef · z_loss.

        The first term is 0 if biases balance the load.
        """
        weight = config.router_aux_loss_coef if config.load_balancing == "aux_loss" else 0.0
        return weight * self.aux_loss + config.router_z_loss_coef * self.z_loss


class Router(nn.Module):
    """Scores the experts for each token, in float32 for any dtype of the experts."""

    e_score_correction_bias: Tensor | None

    def __init__(self, width: int, config: MoeConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_experts, width))
        nn.init.normal_(self.weight, 0.0, 0.02)
        self.top_k, self.normalise = config.num_experts_per_tok, config.norm_topk_prob
        biased = config.load_balancing == "bias"
        self.register_buffer("e_score_correction_bias", torch.zeros(config.num_experts) if biased else None)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [N, D] -> logits and probabilities [N, E], the chosen experts and their weights [N, k]."""
        logits = F.linear(x.float(), self.weight.float())
        probabilities = logits.softmax(-1)
        scores = probabilities.detach()
        if self.e_score_correction_bias is not None:
            scores = scores + self.e_score_correction_bias
        chosen = scores.topk(self.top_k, dim=-1).indices
        weights = probabilities.gather(-1, chosen)
        if self.normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return logits, probabilities, chosen, weights


class GroupedExperts(nn.Module):
    """SwiGLU networks of equal size, their matrices stacked: gate and up [E, I, D], down [E, D, I]."""

    def __init__(self, width: int, size: int, experts: int) -> None:
        super().__init__()
        self.gate_proj = nn.Parameter(torch.empty(experts, size, width))
        self.up_proj = nn.Parameter(torch.empty(experts, size, width))
        self.down_proj = nn.Parameter(torch.empty(experts, width, size))
        for matrices in self.parameters():
            nn.init.normal_(matrices, 0.0, 0.02)

    def forward(self, rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
        """Rows [M, D] sorted by expert, with weights [M] and the ends [E] of the experts' ranges -> [M, D], each output
        multiplied by its weight.

        The weight is applied before the last product, which is linear: the gradient of the weight then does not need the
        output of that product, and [M, D] less is kept for the backward pass.
        """
        inner = torch.cat((self.gate_proj, self.up_proj), 1).to(rows.dtype)
        gate, up = grouped_mm(rows, inner, ends, True).chunk(2, dim=-1)
        gated = (F.silu(gate) * up * weights[:, None]).to(rows.dtype)
        return grouped_mm(gated, self.down_proj.to(rows.dtype), ends, True)


class MoELayer(nn.Module):
    """The feed-forward part of a block: routed experts and, optionally, a shared network for every token.

    The output of the shared network is scaled by the sigmoid of a gate (Yang et al. 2024, Qwen2-MoE). Parameters have the names
    of the Qwen-MoE files.
    """

    def __init__(self, config: ModelConfig, moe: MoeConfig, shared: nn.Module | None) -> None:
        super().__init__()
        self.gate = Router(config.hidden_size, moe)
        self.experts = GroupedExperts(config.hidden_size, config.intermediate_size, moe.num_experts)
        self.expert_size, self.shared_expert = config.intermediate_size, shared
        self.shared_expert_gate = None if shared is None else Linear(config.hidden_size, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        return self.forward_with_stats(x, None)[0]

    def forward_with_stats(self, x: Tensor, token_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """x [B, T, D] -> [B, T, D], and the statistics [E + 4] that `RouterStats.of_layers` reads.

        `token_mask` [B, T] is true where a position is not padding; None: everywhere. Padding passes through experts too,
        because a fixed number of rows keeps a compiled block compiled, but it is not counted.
        """
        flat = x.flatten(0, -2)
        logits, probabilities, chosen, weights = self.gate(flat)
        k, experts = chosen.shape[1], probabilities.shape[1]
        order = chosen.flatten().argsort(stable=True)  # assignments by expert, and by token within an expert
        positions = order.argsort().view(chosen.shape)  # of each assignment in that order
        source = order // k
        ends = _one_hot_choices(chosen, experts).sum(0).cumsum(0)
        rows = permute(flat, source, positions)
        ends = place_ends(ends, rows.detach(), self.expert_size)
        out = unpermute(self.experts(rows, weights.flatten()[order], ends), source, positions).view_as(x)
        if self.shared_expert is not None and self.shared_expert_gate is not None:
            share = self.shared_expert_gate(x).sigmoid()
            out = out + share * self.shared_expert(x)
        return out, _statistics(logits, probabilities, chosen, token_mask)


def _one_hot_choices(chosen: Tensor, experts: int) -> Tensor:
    """The chosen experts of each token as 0 or 1: [N, k] -> [N, E]."""
    return (chosen[:, :, None] == torch.arange(experts, device=chosen.device)).sum(1)


def _statistics(logits: Tensor, probabilities: Tensor, chosen: Tensor, token_mask: Tensor | None) -> Tensor:
    """Assignments of each expert [E], tokens, mean entropy, balance and z of one layer, as one tensor [E + 4]."""
    experts = logits.shape[1]
    counted = logits.new_ones(logits.shape[0]) if token_mask is None else token_mask.flatten().float()
    tokens = counted.sum()
    share = counted / tokens.clamp(min=1)  # a mean over the counted tokens is a product with this
    counts = (_one_hot_choices(chosen, experts) * counted[:, None]).sum(0)
    balance = experts * (counts / tokens.clamp(min=1) * (share @ probabilities)).sum()
    z = (share * logits.logsumexp(-1).square()).sum()
    entropy = -(share * (probabilities * logits.log_softmax(-1)).sum(-1)).sum()
    return torch.cat((counts, torch.stack((tokens, entropy.detach(), balance, z))))


@torch.no_grad()
def update_biases(model: nn.Module, routing: RouterStats, applied: Tensor | None = None) -> None:
    """After an update, raise the bias of every expert whose load is below the mean, and lower it if the load is above.

    `routing`: statistics of the complete update (`RouterStats.merged`) over all ranks. `applied`: bool scalar, false for a
    skipped update, which leaves the biases unchanged; None: true. A model that is balanced by a loss has no biases. The biases
    are part of the model's state, so a resumed run continues with equal values."""
    config: ModelConfig = model.config  # type: ignore[assignment]
    if config.moe is None or config.moe.load_balancing != "bias":
        return
    deficit = routing.counts.mean(1, keepdim=True) - routing.counts
    routers = [module for module in model.modules() if isinstance(module, Router)]
    for router, missing in zip(routers, deficit, strict=True):
        assert router.e_score_correction_bias is not None
        change = config.moe.bias_update_rate * missing.sign()
        router.e_score_correction_bias += change if applied is None else change * applied
