"""The feed-forward part of a block for inference: from the residual and its norm to the new residual, weights packed once."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fledge.generation.packed_linear import PackedSwiGLU, can_pack, module_product, product
from fledge.model.decoder import FeedForward
from fledge.model.moe import GroupedExperts, MoELayer

ResidualMLP = Callable[[Tensor, Tensor], Tensor]  # residual [N, D] and normed [N, D] -> new residual [N, D]


def feed_of(mlp: nn.Module, dtype: torch.dtype) -> ResidualMLP:
    """A dense network or a mixture with packed weights. Any other module, and a mixture on a machine that packs nothing
    (many experts are one kernel there), is called as it is."""
    if type(mlp) is FeedForward:
        return network_feed(mlp, dtype)
    if type(mlp) is MoELayer and type(mlp.experts) is GroupedExperts and can_pack(_first_matrix(mlp.experts).to(dtype)):
        return mixture_feed(mlp, dtype)
    return lambda x, normed: x + mlp(normed[None])[0]


def network_feed(mlp: FeedForward, dtype: torch.dtype) -> PackedSwiGLU:
    """A dense network."""
    return PackedSwiGLU(*(module_product(module, dtype) for module in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)))


def mixture_feed(mixture: MoELayer, dtype: torch.dtype) -> ResidualMLP:
    """A mixture: each expert with the rows that chose it, in the order of experts."""
    stacks = mixture.experts
    matrices = zip(stacks.gate_proj, stacks.up_proj, stacks.down_proj, strict=True)
    experts = [PackedSwiGLU(*(product(weight, dtype) for weight in weights)) for weights in matrices]
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
    """Adds the shared network, scaled by its own gate, to `out` [N, D] in place; None where the mixture has none."""
    network, gate = mixture.shared_expert, mixture.shared_expert_gate
    if network is None or gate is None:
        return None
    if type(network) is not FeedForward:
        return lambda out, normed: out.addcmul_(gate(normed).sigmoid(), network(normed))
    packed = network_feed(network, dtype)
    return lambda out, normed: out.addcmul_(gate(normed).sigmoid(), packed.down(packed.inner(normed)))
