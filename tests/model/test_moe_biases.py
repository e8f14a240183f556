"""Biases of the router balance the load of experts without a loss."""

from pathlib import Path

import torch
from torch import Tensor

from fledge.model.decoder import Decoder
from fledge.model.moe import MoELayer, Router, RouterStats, update_biases
from fledge.model.pretrained import from_pretrained
from tests.support.decoders import gradients, make_decoder, random_tokens


def _biases(model: Decoder) -> Tensor:
    return torch.stack([m.e_score_correction_bias for m in model.modules() if isinstance(m, Router)])  # type: ignore[misc]


def test_a_bias_rises_where_the_load_is_small_and_falls_where_it_is_large() -> None:
    model = make_decoder(
        qk_norm=True,
        moe={
            "num_experts": 3,
            "num_experts_per_tok": 1,
            "norm_topk_prob": False,
            "load_balancing": "bias",
            "bias_update_rate": 0.5,
        },
    )
    one = torch.tensor(1.0)
    routing = RouterStats(torch.tensor([[5.0, 0, 1], [2, 2, 2]]), one, torch.ones(2), one, one)
    for _ in range(2):
        update_biases(model, routing)
    assert torch.equal(_biases(model), torch.tensor([[-1.0, 1, 1], [0, 0, 0]]))
    plain = make_decoder(qk_norm=True, moe={"num_experts": 3, "num_experts_per_tok": 2})
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    update_biases(plain, routing)
    update_biases(make_decoder(), routing)
    assert all(torch.equal(before[name], tensor) for name, tensor in plain.state_dict().items())


def _train(model: Decoder, first: int, last: int) -> RouterStats:
    """Train by plain gradient descent, with an update of the biases after each step: the last routing statistics."""
    routing = None
    for step in range(first, last):
        hidden, routing = model.forward_with_router_stats(random_tokens(2, 40, seed=step))
        assert routing is not None
        hidden.square().mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.01 * parameter.grad
        gradients(model)
        update_biases(model, routing)
    assert routing is not None
    return routing


def test_biases_make_a_lopsided_load_even() -> None:
    model = make_decoder(
        qk_norm=True, moe={"num_experts": 4, "num_experts_per_tok": 2, "load_balancing": "bias", "bias_update_rate": 0.01}
    )
    first = model.blocks()[0].mlp
    assert isinstance(first, MoELayer)
    with torch.no_grad():
        first.gate.weight[:3] = 2 * first.gate.weight[3] + 0.3 * first.gate.weight[:3]  # the fourth is first or last
        first.gate.weight[0] -= 2 * first.gate.weight[3]
    tokens, off = random_tokens(4, 60), []
    with torch.no_grad():
        for _ in range(60):
            routing = model.forward_with_router_stats(tokens)[1]
            assert routing is not None
            off.append(float((4 * routing.load - 1).abs().max()))
            update_biases(model, routing)
    assert off[0] > 0.3 and max(off[-5:]) < 0.1


def test_biases_continue_exactly_from_a_saved_model(tmp_path: Path) -> None:
    model = make_decoder(qk_norm=True, moe={"num_experts": 4, "num_experts_per_tok": 2, "load_balancing": "bias"})
    _train(model, 0, 5)
    assert _biases(model).abs().max() > 0
    model.save_pretrained(tmp_path, bos=1, eos=[2], pad=0)
    again = from_pretrained(tmp_path)
    _train(model, 5, 9)
    _train(again, 5, 9)
    left, right = model.state_dict(), again.state_dict()
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
