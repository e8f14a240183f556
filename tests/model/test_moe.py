"""Mixtures of experts: values, gradients and routing statistics, compared with a loop over single tokens."""

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from fledge.model.decoder import Decoder
from fledge.model.moe import MoELayer, Router, RouterStats
from fledge.recipe.schema import MoeConfig
from tests.support.decoders import assert_same_gradients, gradients, make_config, make_decoder, random_tokens
from tests.support.experts import WIDTH, make_experts, one_by_one, random_tensor

SHAPES = [
    pytest.param({"num_experts": 4, "num_experts_per_tok": 2}, id="top 2 of 4"),
    pytest.param({"num_experts": 5, "num_experts_per_tok": 3, "norm_topk_prob": False}, id="plain weights"),
    pytest.param({"num_experts": 3, "num_experts_per_tok": 1, "norm_topk_prob": False}, id="top 1"),
    pytest.param({"num_experts": 2, "num_experts_per_tok": 2}, id="all active"),
    pytest.param({"num_experts": 4, "num_experts_per_tok": 2, "num_shared_experts": 2}, id="shared"),
    pytest.param({"num_experts": 4, "num_experts_per_tok": 2, "load_balancing": "bias"}, id="biased choice"),
]


@pytest.mark.parametrize("moe", SHAPES)
def test_values_and_all_gradients_equal_a_loop_over_tokens(moe: dict[str, object]) -> None:
    experts, upstream = make_experts(**moe), random_tensor(3, 9, WIDTH, seed=8)
    results = []
    for run in (experts, lambda x: one_by_one(experts, x)):
        x = random_tensor(3, 9, WIDTH, seed=7).requires_grad_()
        out = run(x)
        (out * upstream).sum().backward()
        assert x.grad is not None
        results.append((out.detach(), {**gradients(experts), "x": x.grad}))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=1e-5)
    assert len(results[0][1]) == len(list(experts.parameters())) + 1
    assert_same_gradients(results[0][1], results[1][1], atol=1e-5, rtol=1e-5)


def test_no_token_is_dropped_however_uneven_the_load() -> None:
    experts = make_experts(num_experts=4, num_experts_per_tok=1, norm_topk_prob=False)
    with torch.no_grad():
        experts.gate.weight.zero_()
        experts.gate.weight[2] = 1.0
    x = random_tensor(1, 60, WIDTH).abs()  # all to expert 2
    out, statistics = experts.forward_with_stats(x, None)
    assert statistics[:4].tolist() == [0, 0, 60, 0]
    torch.testing.assert_close(out, one_by_one(experts, x), atol=1e-5, rtol=1e-5)
    out.sum().backward()
    grad = experts.experts.down_proj.grad
    assert grad is not None and grad[2].abs().min() > 0 and torch.equal(grad[[0, 1, 3]], torch.zeros_like(grad[[0, 1, 3]]))


def _logits(router: Router, x: Tensor) -> Tensor:
    return x.flatten(0, -2) @ router.weight.t()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_balance_and_z_follow_their_formulas(top_k: int, padded: bool) -> None:
    experts = make_experts(num_experts=4, num_experts_per_tok=top_k, norm_topk_prob=top_k > 1)
    x = 2 * random_tensor(2, 30, WIDTH, seed=3)
    real = torch.ones(2, 30, dtype=torch.bool)
    if padded:
        real[0, 11:] = False
    _, statistics = experts.forward_with_stats(x, real if padded else None)
    routing = RouterStats.of_layers([statistics])
    logits = _logits(experts.gate, x)
    theirs = load_balancing_loss_func((logits,), 4, top_k, real.long() if padded else None)
    assert isinstance(theirs, Tensor)
    torch.testing.assert_close(routing.aux_loss, theirs)
    kept = logits[real.flatten()]
    torch.testing.assert_close(routing.z_loss, kept.exp().sum(-1).log().square().mean())
    p = kept.softmax(-1)
    torch.testing.assert_close(routing.entropy[0], torch.distributions.Categorical(p).entropy().mean())
    counts = torch.bincount(p.topk(top_k).indices.flatten(), minlength=4).float()
    assert torch.equal(routing.counts[0], counts) and routing.tokens == real.sum()
    torch.testing.assert_close(routing.load[0], counts / (top_k * real.sum()))
    mine = torch.autograd.grad(routing.aux_loss + routing.z_loss, experts.gate.weight, retain_graph=True)[0]
    expected = torch.autograd.grad(theirs + kept.logsumexp(-1).square().mean(), experts.gate.weight)[0]
    torch.testing.assert_close(mine, expected, atol=1e-6, rtol=1e-5)


def test_an_even_load_has_the_least_balance_loss_top_k_and_full_entropy() -> None:
    experts = make_experts(num_experts=8, num_experts_per_tok=2)
    with torch.no_grad():
        experts.gate.weight.zero_()
        experts.gate.weight[:, :8] = 1e-4 * torch.eye(8)
    x = torch.eye(8).roll(1, 0) + torch.eye(8)  # token i likes the experts i and i - 1
    routing = RouterStats.of_layers([experts.forward_with_stats(F.pad(x, (0, WIDTH - 8))[None], None)[1]]).detach()
    assert torch.equal(routing.load, torch.full((1, 8), 1 / 8))
    assert float(routing.aux_loss) == pytest.approx(2.0, rel=1e-6)
    assert float(routing.entropy) == pytest.approx(math.log(8), rel=1e-6)


def test_padding_changes_neither_statistics_nor_their_gradients() -> None:
    model = make_decoder(qk_norm=True, moe={"num_experts": 4, "num_experts_per_tok": 2})
    tokens, documents = random_tokens(2, 24), torch.ones(2, 24, dtype=torch.long)
    documents[:, 15:] = 0
    results = []
    for filling in (0, 1):
        tokens[:, 15:] = random_tokens(2, 9, seed=filling)
        hidden, routing = model.forward_with_router_stats(tokens, None, documents)
        assert routing is not None
        (routing.aux_loss + routing.z_loss).backward()
        results.append((hidden[:, :15].detach(), routing.detach(), gradients(model)))
    alone = model.forward_with_router_stats(tokens[:, :15])[1]
    assert alone is not None
    for left, right in ((results[0], results[1]), (results[0], (results[0][0], alone.detach(), results[0][2]))):
        torch.testing.assert_close(left[0], right[0])
        assert torch.equal(left[1].counts, right[1].counts) and left[1].tokens == right[1].tokens == 30
        torch.testing.assert_close(left[1].entropy, right[1].entropy)
        torch.testing.assert_close(left[1].z_loss, right[1].z_loss)
        assert_same_gradients(left[2], right[2], atol=1e-6)


def test_a_batch_of_padding_only_has_finite_statistics() -> None:
    experts = make_experts(num_experts=4, num_experts_per_tok=2)
    _, statistics = experts.forward_with_stats(random_tensor(1, 5, WIDTH), torch.zeros(1, 5, dtype=torch.bool))
    routing = RouterStats.of_layers([statistics])
    assert torch.equal(statistics, torch.zeros(8)) and torch.equal(routing.load, torch.zeros(1, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_step_gives_the_same_bits(dtype: torch.dtype) -> None:
    experts = make_experts(num_experts=4, num_experts_per_tok=2, num_shared_experts=1)

    def step() -> dict[str, Tensor]:
        x = random_tensor(4, 128, WIDTH).to(dtype).requires_grad_()
        out, statistics = experts.forward_with_stats(x, None)
        (out.float().square().sum() + RouterStats.of_layers([statistics]).aux_loss).backward()
        assert x.grad is not None
        return {**gradients(experts), "x": x.grad}

    torch.set_num_threads(2)
    first, again = step(), step()
    torch.set_num_threads(1)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_router_is_float32_under_bfloat16() -> None:
    experts = make_experts(num_experts=4, num_experts_per_tok=2)
    x = random_tensor(1, 50, WIDTH).bfloat16()
    logits, probabilities, _, weights = experts.gate(x[0])
    assert {t.dtype for t in (logits, probabilities, weights)} == {torch.float32}
    assert torch.equal(logits, x[0].float() @ experts.gate.weight.t())
    out, statistics = experts.forward_with_stats(x, None)
    assert out.dtype == torch.bfloat16 and statistics.dtype == torch.float32
    torch.testing.assert_close(out.float(), one_by_one(experts, x.float()), atol=0.05, rtol=0.05)
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in experts.parameters())


def test_merged_statistics_of_two_batches_equal_the_statistics_of_one_joint_batch() -> None:
    model = make_decoder(qk_norm=True, moe={"num_experts": 4, "num_experts_per_tok": 2})
    tokens, documents = random_tokens(3, 20), torch.ones(3, 20, dtype=torch.long)
    documents[0, 4:] = 0
    together = model.forward_with_router_stats(tokens, None, documents)[1]
    batches = [model.forward_with_router_stats(tokens[rows], None, documents[rows])[1] for rows in (slice(0, 1), slice(1, 3))]
    assert together is not None and batches[0] is not None and batches[1] is not None
    merged = RouterStats.merged([batch for batch in batches if batch is not None])
    assert torch.equal(merged.counts, together.counts) and merged.tokens == together.tokens == 44
    torch.testing.assert_close(merged.entropy, together.entropy)
    torch.testing.assert_close(merged.z_loss, together.z_loss)
    torch.testing.assert_close(merged.aux_loss, (4 * batches[0].aux_loss + 40 * batches[1].aux_loss) / 44)


def test_penalty_is_weighted_and_a_bias_has_no_balance_loss() -> None:
    one = torch.tensor(1.0)
    routing = RouterStats(torch.ones(1, 2), one, torch.ones(1), aux_loss=3 * one, z_loss=5 * one)
    assert (
        float(
            routing.penalty(MoeConfig(num_experts=2, num_experts_per_tok=2, router_aux_loss_coef=0.5, router_z_loss_coef=0.25))
        )
        == 2.75
    )
    assert (
        float(routing.penalty(MoeConfig(num_experts=2, num_experts_per_tok=2, load_balancing="bias", router_z_loss_coef=0.25)))
        == 1.25
    )


def test_a_dense_model_has_no_routing() -> None:
    model, tokens = make_decoder(), random_tokens(1, 5)
    hidden, routing = model.forward_with_router_stats(tokens)
    assert routing is None and torch.equal(hidden, model(tokens))


def test_routing_and_gradients_survive_activation_checkpointing() -> None:
    model = make_decoder(qk_norm=True, moe={"num_experts": 4, "num_experts_per_tok": 2})
    block, experts = model.blocks()[0], model.blocks()[0].mlp
    assert isinstance(experts, MoELayer)
    cos, sin = model.rope_cos_sin(torch.arange(12)[None])
    grads = []
    for kept in (True, False):
        x = random_tensor(1, 12, WIDTH).requires_grad_()
        call = (x, cos, sin, None, None)
        out, statistics = block(*call) if kept else checkpoint(block, *call, use_reentrant=False)
        (out.square().sum() + 3 * RouterStats.of_layers([statistics]).aux_loss).backward()
        assert x.grad is not None
        grads.append({**gradients(block), "x": x.grad})
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


def test_initial_weights_have_the_standard_deviation_of_the_recipe() -> None:
    model = Decoder(make_config(qk_norm=True, moe={"num_experts": 8, "num_experts_per_tok": 2}, intermediate_size=200), 97)
    model.init_weights(3)
    for name, parameter in model.named_parameters():
        if ".mlp." in name:
            expected = 0.2 / math.sqrt(4) if "down_proj" in name else 0.2
            assert float(parameter.detach().std()) == pytest.approx(expected, rel=0.15), name


@pytest.mark.parametrize(
    ("moe", "qk_norm", "message"),
    [
        (
            {"num_experts": 4, "num_experts_per_tok": 2},
            False,
            "Qwen3-MoE, which normalises queries and keys: set qk_norm: true",
        ),
        ({"num_experts": 4, "num_experts_per_tok": 2, "num_shared_experts": 1}, True, "Qwen2-MoE, .* set qk_norm: false"),
        ({"num_experts": 4, "num_experts_per_tok": 5}, True, "num_experts_per_tok 5 is more than the 4 experts"),
        ({"num_experts": 4, "num_experts_per_tok": 1}, True, "num_experts_per_tok 1 needs norm_topk_prob: false"),
        (
            {"num_experts": 4, "num_experts_per_tok": 2, "load_balancing": "bias", "router_aux_loss_coef": 0.1},
            True,
            "router_aux_loss_coef has no effect with load_balancing: bias",
        ),
        (
            {"num_experts": 4, "num_experts_per_tok": 2, "bias_update_rate": 0.1},
            True,
            "bias_update_rate has no effect with load_balancing: aux_loss",
        ),
        ({"num_experts": 4, "num_experts_per_tok": 2, "router_z_loss_coef": -1}, True, "router_z_loss_coef"),
    ],
)
def test_mixtures_that_cannot_be_trained_or_saved_are_errors(moe: dict[str, object], qk_norm: bool, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_config(moe=moe, qk_norm=qk_norm)


@pytest.mark.slow
def test_a_compiled_block_equals_the_plain_one_and_is_compiled_once_for_all_loads() -> None:
    model = make_decoder(
        qk_norm=True, moe={"num_experts": 4, "num_experts_per_tok": 2, "load_balancing": "bias"}, num_hidden_layers=1
    )
    model.set_attention_backend("blocked")
    documents = torch.ones(2, 40, dtype=torch.long)
    documents[1, 30:] = 0

    def backward(seed: int) -> tuple[dict[str, Tensor], RouterStats]:
        hidden, routing = model.forward_with_router_stats(random_tokens(2, 40, seed=seed), None, documents)
        assert routing is not None
        (hidden.square().sum() + routing.aux_loss + routing.z_loss).backward()
        return gradients(model), routing.detach()

    plain = [backward(seed) for seed in range(4)]
    assert len({tuple(routing.counts[0].tolist()) for _, routing in plain}) == 4
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for block in model.blocks():
        block.compile(dynamic=False, fullgraph=True)
    for seed, (expected, routing) in enumerate(plain):
        actual, routed = backward(seed)
        assert_same_gradients(actual, expected, atol=1e-4, rtol=1e-3)
        assert torch.equal(routed.counts, routing.counts)
        torch.testing.assert_close(routed.aux_loss, routing.aux_loss)
        torch.testing.assert_close(routed.entropy, routing.entropy)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
