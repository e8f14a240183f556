"""The feed-forward part of a block for inference, with packed weights: (residual, normed residual) -> new residual."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fledge.generation.packed_linear import PackedSwiGLU, can_pack, module_product, product
from fledge.model.decoder import FeedForward
from fledge.model.moe import GroupedExperts, MoELayer

ResidualMLP = Callable[[Tensor, Tensor], Tensor]  # residual [N, D] and normed [N, D] -> new residual [N, D]


def feed_of(mlp: nn.Module, dtype: torch.dtype) -> ResidualMLP:
    """A dense network or a mixture of experts with packed weights. Any other module is called unchanged, and so is a mixture on
    a machine without packing, where all experts are one kernel."""
    if type(mlp) is FeedForward:
        return network_feed(mlp, dtype)
    if type(mlp) is MoELayer and type(mlp.experts) is GroupedExperts and can_pack(_first_matrix(mlp.experts).to(dtype)):
        return mixture_feed(mlp, dtype)
    return lambda x, normed: x + mlp(normed[None])[0]


def network_feed(mlp: FeedForward, dtype: torch.dtype) -> PackedSwiGLU:
    """A dense network with packed weights."""
    return PackedSwiGLU(
        gate=module_product(mlp.gate_proj, dtype),
        up=module_product(mlp.up_proj, dtype),
        down=module_product(mlp.down_proj, dtype),
    )


def mixture_feed(mixture: MoELayer, dtype: torch.dtype) -> ResidualMLP:
    """A mixture of experts with packed weights: each expert computes the rows that are routed to it, in expert order."""
    stacks = mixture.experts
    experts = [
        PackedSwiGLU(gate=product(gate, dtype), up=product(up, dtype), down=product(down, dtype))
        for gate, up, down in zip(stacks.gate_proj, stacks.up_proj, stacks.down_proj, strict=True)
    ]
    shared = _shared_feed(mixture, dtype)

    def feed(x: Tensor, normed: Tensor) -> Tensor:
        _, _, chosen, weights = mixture.gate(normed)
        out = x.clone()
        for number, expert in enumerate(experts):
            rows, choices = (chosen == number).nonzero(as_tuple=True)
            if len(rows):
                gated = expert.inner(normed[rows]) * weights[rows, choices, None]
                out.index_add_(0, rows, expert.down(gated.to(dtype)))
        if shared is not None:
            shared(out, normed)
        return out

    return feed


def _first_matrix(experts: GroupedExperts) -> Tensor:
    return experts.gate_proj.detach()[:1]


def _shared_feed(mixture: MoELayer, dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor] | None:
    """A function that adds the shared network, scaled by its gate, to `out` [N, D] in place; None if the mixture has none."""
    network, gate = mixture.shared_expert, mixture.shared_expert_gate
    if network is None or gate is None:
        return None
    if type(network) is not FeedForward:
        return lambda out, normed: out.addcmul_(gate(normed).sigmoid(), network(normed))
    packed = network_feed(network, dtype)
    return lambda out, normed: out.addcmul_(gate(normed).sigmoid(), packed.down(packed.inner(normed)))
