"""Tiny mixtures of experts, and their definition as a loop over single tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fledge.model.decoder import FeedForward
from fledge.model.moe import MoELayer
from tests.support.decoders import make_config

WIDTH, SIZE = 32, 48


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    """A tensor of this shape from the standard normal distribution."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_experts(seed: int = 0, **moe: object) -> MoELayer:
    """A mixture of width 32 with large weights, and with biases that change the choice of experts if it has biases."""
    shared = int(moe.get("num_shared_experts", 0))  # type: ignore[call-overload]
    config = make_config(moe=moe, qk_norm=not shared, hidden_size=WIDTH, intermediate_size=SIZE)
    assert config.moe is not None
    experts = MoELayer(config, config.moe, FeedForward(WIDTH, shared * SIZE) if shared else None)
    with torch.no_grad():
        for number, parameter in enumerate(experts.parameters()):
            parameter.copy_(0.2 * random_tensor(*parameter.shape, seed=100 * seed + number))
        for buffer in experts.buffers():
            buffer.copy_(torch.linspace(0.3, -0.3, len(buffer)))
    return experts


def one_by_one(experts: MoELayer, x: Tensor) -> Tensor:
    """The definition in plain formulas: each token [D] passes through each of its experts."""
    router, stacked = experts.gate, experts.experts
    out = []
    for token in x.flatten(0, -2):
        p = (router.weight @ token).softmax(0)
        score = p if router.e_score_correction_bias is None else p + router.e_score_correction_bias
        chosen = score.topk(router.top_k).indices.tolist()
        total = sum(p[e] for e in chosen) if router.normalise else 1.0
        output = torch.zeros_like(token)
        for e in chosen:
            inner = F.silu(stacked.gate_proj[e] @ token) * (stacked.up_proj[e] @ token)
            output = output + p[e] / total * (stacked.down_proj[e] @ inner)
        if experts.shared_expert is not None and experts.shared_expert_gate is not None:
            output = output + torch.sigmoid(experts.shared_expert_gate.weight[0] @ token) * experts.shared_expert(token)
        out.append(output)
    return torch.stack(out).view_as(x)
