"""The feed-forward part of a block for inference: from the residual and its norm to the new residual, weights packed once."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fledge.generation.packed_linear import PackedSwiGLU, can_pack
from fledge.model.decoder import FeedForward
from fledge.model.moe import MoELayer

ResidualMLP = Callable[[Tensor, Tensor], Tensor]  # residual [N, D] and normed [N, D] -> new residual [N, D]


def feed_of(mlp: FeedForward | MoELayer, dtype: torch.dtype) -> ResidualMLP:
    """Of a dense network or of a mixture."""
    return mixture_feed(mlp, dtype) if isinstance(mlp, MoELayer) else network_feed(mlp, dtype)


def network_feed(mlp: FeedForward, dtype: torch.dtype) -> PackedSwiGLU:
    """A dense network."""
    return PackedSwiGLU(mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight, dtype)


def mixture_feed(mixture: MoELayer, dtype: torch.dtype) -> ResidualMLP:
    """A mixture: each expert with the rows that chose it, in the order of experts. Where nothing is packed its training module
    does as well, as it is: many experts are one kernel there."""
    stacks = mixture.experts
    if not can_pack(stacks.gate_proj.detach()[:1].to(dtype)):
        return lambda x, normed: x + mixture(normed[None])[0]
    matrices = zip(stacks.gate_proj, stacks.up_proj, stacks.down_proj, strict=True)
    experts = [PackedSwiGLU(gate, up, down, dtype) for gate, up, down in matrices]
    shared, scale = mixture.shared_expert, mixture.shared_expert_gate
    beside = None
    if isinstance(shared, FeedForward) and scale is not None:
        beside = network_feed(shared, dtype), scale.weight.detach().to(dtype)

    def feed(x: Tensor, normed: Tensor) -> Tensor:
        _, _, chosen, weights = mixture.gate(normed)
        out = x.clone()
        for number, expert in enumerate(experts):
            rows, places = (chosen == number).nonzero(as_tuple=True)
            if len(rows):
                gated = expert.inner(normed[rows]) * weights[rows, places, None]
                out.index_add_(0, rows, expert.down(gated.to(dtype)))
        if beside is not None:
            network, weight = beside
            out.addcmul_(F.linear(normed, weight).sigmoid(), network.down(network.inner(normed)))
        return out

    return feed
