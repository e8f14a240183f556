"""Mixture of experts: each token passes through the `top_k` feed-forward networks that a router chooses for it.

Dropless: every token reaches all its experts, however uneven the load. Assignments (token, expert) are sorted by expert
and the experts become products over ranges of rows (`grouped.py`).

A router left to itself favours few experts. Two remedies:

- `loss`: a penalty on uneven load (Fedus et al. 2022, eq. 4) and one on large router logits (Zoph et al. 2022, eq. 5).
- `bias`: a number for each expert that is added to its probability when experts are chosen, not when their outputs are
  weighed; after each update it goes up by `bias_rate` where the load is under the mean and down where it is over (Wang
  et al. 2024, algorithm 1). The bias is a buffer of the model and a tensor of its file under the name that DeepSeek-V3
  gave it. The Qwen-MoE classes of transformers have no place for it: they report it as an unexpected key and choose
  without it, so a model that is to leave fledge is better balanced by `loss`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledge.model.grouped_mm import grouped_mm, permute, unpermute
from fledge.model.linear import Linear
from fledge.recipe.schema import ModelConfig, MoeConfig


@dataclass(frozen=True)
class RouterStats:
    """How the tokens of a batch were spread over the experts of L layers. Padding is not counted.

    `counts` [L, E] are assignments, `entropy` [L] the mean entropy of the router's distribution (nats). `balance` and
    `z` are means over the layers and have gradients: Σ_e E·f_e·P_e, with f_e the share of tokens that chose expert e
    (they sum to top_k, so an even load gives top_k) and P_e the mean probability of e; and mean (log Σ exp logits)².
    """

    counts: Tensor
    tokens: Tensor
    entropy: Tensor
    balance: Tensor
    z: Tensor

    @classmethod
    def of_layers(cls, statistics: Sequence[Tensor]) -> "RouterStats":
        """From what each layer's `Experts.mix` tells [E + 4]."""
        table = torch.stack(tuple(statistics))
        tokens, entropy, balance, z = table[:, -4:].unbind(1)
        return cls(table[:, :-4].detach(), tokens[0].detach(), entropy.detach(), balance.mean(), z.mean())

    @classmethod
    def merged(cls, routings: Iterable["RouterStats"]) -> "RouterStats":
        """That of several batches together: counts are added, means are weighed by tokens."""
        parts = list(routings)
        tokens = torch.stack([part.tokens for part in parts])
        shares = tokens / tokens.sum().clamp(min=1)

        def mean(values: list[Tensor]) -> Tensor:
            return torch.tensordot(shares, torch.stack(values), dims=1)

        return cls(
            counts=torch.stack([part.counts for part in parts]).sum(0),
            tokens=tokens.sum(),
            entropy=mean([part.entropy for part in parts]),
            balance=mean([part.balance for part in parts]),
            z=mean([part.z for part in parts]),
        )

    @property
    def load(self) -> Tensor:
        """Share of a layer's assignments that each expert got [L, E]; 1/E is even."""
        return self.counts / self.counts.sum(1, keepdim=True).clamp(min=1)

    def detach(self) -> "RouterStats":
        """The numbers without their graph."""
        return RouterStats(self.counts, self.tokens, self.entropy, self.balance.detach(), self.z.detach())

    def all_reduced(self, add_up: Callable[[list[Tensor]], None]) -> "RouterStats":
        """That of this batch and of those of others, over whom `add_up` adds tensors in place."""
        parts = [self.counts.clone(), self.tokens.clone()]
        parts += [value * self.tokens for value in (self.entropy, self.balance, self.z)]
        add_up(parts)
        counts, tokens, *sums = parts
        return RouterStats(counts, tokens, *(value / tokens.clamp(min=1) for value in sums))

    def zeros_like(self) -> "RouterStats":
        """That of a batch without tokens."""
        return RouterStats(*map(torch.zeros_like, (self.counts, self.tokens, self.entropy, self.balance, self.z)))

    def penalty(self, config: MoeConfig) -> Tensor:
        """What is added to the mean loss of a batch: balance_weight · balance + z_weight · z."""
        weight = config.router_aux_loss_coef if config.load_balancing == "aux_loss" else 0.0
        return weight * self.balance + config.router_z_loss_coef * self.z


class Router(nn.Module):
    """Probabilities of the experts for each token, in float32 whatever the experts compute in."""

    e_score_correction_bias: Tensor | None

    def __init__(self, width: int, config: MoeConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_experts, width))
        nn.init.normal_(self.weight, 0.0, 0.02)
        self.top_k, self.normalise = config.num_experts_per_tok, config.norm_topk_prob
        biased = config.load_balancing == "bias"
        self.register_buffer("e_score_correction_bias", torch.zeros(config.num_experts) if biased else None)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [N, D] -> logits and probabilities [N, E], chosen experts [N, k] and their weights [N, k]."""
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
        """rows [M, D] sorted by expert, each multiplied by its weight [M] on the way -> [M, D].

        The weight is applied before the last product, which is linear: its gradient then needs no output of that
        product, and [M, D] less is kept for the backward pass.
        """
        inner = torch.cat((self.gate_proj, self.up_proj), 1).to(rows.dtype)
        gate, up = grouped_mm(rows, inner, ends, True).chunk(2, dim=-1)
        gated = (F.silu(gate) * up * weights[:, None]).to(rows.dtype)
        return grouped_mm(gated, self.down_proj.to(rows.dtype), ends, True)


class MoELayer(nn.Module):
    """The feed-forward part of a block: routed experts, and `shared`, a network that every token passes through.

    The shared network's output is scaled by a sigmoid of its own (Yang et al. 2024, Qwen2-MoE). Names are those of the
    Qwen-MoE files.
    """

    def __init__(self, config: ModelConfig, moe: MoeConfig, shared: nn.Module | None) -> None:
        super().__init__()
        self.gate = Router(config.hidden_size, moe)
        self.experts = GroupedExperts(config.hidden_size, config.intermediate_size, moe.num_experts)
        self.shared_expert = shared
        self.shared_expert_gate = None if shared is None else Linear(config.hidden_size, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        return self.forward_with_stats(x, None)[0]

    def forward_with_stats(self, x: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """x [B, T, D] -> [B, T, D], and what `Routing.of_layers` reads [E + 4].

        `real` [B, T] says which positions are not padding; None: all. Padding passes through experts too (a fixed
        number of rows is what keeps a compiled block compiled), but does not count.
        """
        flat = x.flatten(0, -2)
        logits, probabilities, chosen, weights = self.gate(flat)
        k, count = chosen.shape[1], probabilities.shape[1]
        order = chosen.flatten().argsort(stable=True)  # assignments by expert, and by token within an expert
        places = order.argsort().view(chosen.shape)  # where each assignment went
        source = order // k
        ends = _chosen_by(chosen, count).sum(0).cumsum(0)
        rows = permute(flat, source, places)
        out = unpermute(self.experts(rows, weights.flatten()[order], ends), source, places).view_as(x)
        if self.shared_expert is not None and self.shared_expert_gate is not None:
            share = self.shared_expert_gate(x).sigmoid()
            out = out + share * self.shared_expert(x)
        return out, _statistics(logits, probabilities, chosen, real)


def _chosen_by(chosen: Tensor, experts: int) -> Tensor:
    """Which experts each token chose: [N, k] -> 0 or 1 [N, E]."""
    return (chosen[:, :, None] == torch.arange(experts, device=chosen.device)).sum(1)


def _statistics(logits: Tensor, probabilities: Tensor, chosen: Tensor, real: Tensor | None) -> Tensor:
    """Assignments of each expert [E], tokens, mean entropy, balance and z of one layer, as one tensor [E + 4]."""
    experts = logits.shape[1]
    counted = logits.new_ones(logits.shape[0]) if real is None else real.flatten().float()
    tokens = counted.sum()
    share = counted / tokens.clamp(min=1)  # a mean over real tokens is a product with this
    counts = (_chosen_by(chosen, experts) * counted[:, None]).sum(0)
    balance = experts * (counts / tokens.clamp(min=1) * (share @ probabilities)).sum()
    z = (share * logits.logsumexp(-1).square()).sum()
    entropy = -(share * (probabilities * logits.log_softmax(-1)).sum(-1)).sum()
    return torch.cat((counts, torch.stack((tokens, entropy.detach(), balance, z))))


@torch.no_grad()
def update_biases(model: nn.Module, routing: RouterStats, learned: Tensor | None = None) -> None:
    """After an update, raise the biases of experts with less than the mean load and lower those with more. `learned` is a
    bool scalar: false where the update was skipped, which changes nothing here either.

    `routing` is that of the whole update (`Routing.merged`), over all ranks. Does nothing where the recipe balances by
    a loss. The bias is part of the model's state, so a resumed run goes on with it exactly.
    """
    config: ModelConfig = model.config  # type: ignore[assignment]
    if config.moe is None or config.moe.load_balancing != "bias":
        return
    missing = routing.counts.mean(1, keepdim=True) - routing.counts
    routers = [module for module in model.modules() if isinstance(module, Router)]
    for router, error in zip(routers, missing, strict=True):
        assert router.e_score_correction_bias is not None
        change = config.moe.bias_update_rate * error.sign()
        router.e_score_correction_bias += change if learned is None else change * learned
