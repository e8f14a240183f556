"""The cost model of a decoder agrees with the built decoder and with the products that it computes."""

import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fledge.model.adapters import attach_adapter
from fledge.model.cost import ModelCost, checkpointed_layers, parameters, training_flops_per_token
from fledge.model.decoder import Decoder
from fledge.model.linear_cross_entropy import cross_entropy
from fledge.model.protocol import Adapter
from fledge.optim.build import build_optimizers, optimizer_tensors
from fledge.recipe import ModelConfig, recipe_from_dict
from fledge.recipe.schema import AdapterConfig, OptimizerConfig
from tests.support.decoders import make_config, make_decoder, random_tokens


def _preset(name: str) -> tuple[ModelConfig, int]:
    stage = {"kind": "pretrain", "data": {"train": "corpus.txt"}}
    recipe = recipe_from_dict({"preset": name, "stages": {"pretrain": stage}})
    return recipe.model, recipe.tokenizer.vocab_size


def _built(config: ModelConfig, vocab: int) -> Decoder:
    with torch.device("meta"):
        return Decoder(config, vocab)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_parameter_counts_equal_the_built_model(tied: bool, qk_norm: bool, kv_heads: int) -> None:
    config = make_config(tie_word_embeddings=tied, qk_norm=qk_norm, num_key_value_heads=kv_heads, num_hidden_layers=3)
    model, counted = _built(config, 203), parameters(config, 203)
    assert counted.total == counted.active == sum(p.numel() for p in model.parameters())
    matrices = [p.numel() for name, p in model.named_parameters() if p.dim() == 2 and (tied or "embed" not in name)]
    assert counted.matmul == sum(matrices)


@pytest.mark.parametrize("bias", ["none", "qkv", "qkvo"])
@pytest.mark.parametrize("head_dim", [None, 4, 24])
def test_parameter_counts_include_biases_and_the_size_of_heads(bias: str, head_dim: int | None) -> None:
    config = make_config(attention_bias=bias, head_dim=head_dim, num_hidden_layers=3)
    model, counted = _built(config, 203), parameters(config, 203)
    assert counted.total == counted.active == sum(p.numel() for p in model.parameters())
    assert counted.matmul == sum(p.numel() for p in model.parameters() if p.dim() == 2)


@pytest.mark.parametrize(("name", "millions"), [("26m", 25.8), ("104m", 104.0)])
def test_dense_presets_have_their_published_size(name: str, millions: float) -> None:
    config, vocab = _preset(name)
    count = parameters(config, vocab).total
    assert round(count / 1e6, 1) == millions
    assert count == sum(p.numel() for p in _built(config, vocab).parameters())


def test_mixture_presets_have_their_published_size() -> None:
    config, vocab = _preset("145m")
    assert round(parameters(config, vocab).total / 1e6, 1) == 145.0
    config, vocab = _preset("45m-moe")
    assert round(parameters(config, vocab).total / 1e6, 1) == 44.7
    assert round(parameters(config, vocab).active / 1e6, 1) == 26.6


def test_a_mixture_counts_experts_router_and_active_parameters() -> None:
    dense = parameters(make_config(), 97)
    mixture = parameters(make_config(moe={"num_experts": 8, "num_experts_per_tok": 2, "num_shared_experts": 1}), 97)
    expert, router, layers = 3 * 32 * 48, 32 * 8 + 32, 2  # the router, and the sigmoid of the shared expert
    assert mixture.total - dense.total == layers * (8 * expert + router)
    assert mixture.active - dense.active == layers * (2 * expert + router)
    assert mixture.matmul - dense.matmul == layers * (2 * expert + router)


@pytest.mark.parametrize("shared", [0, 1, 3])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_parameter_counts_of_a_mixture_equal_the_built_model(shared: int, top_k: int) -> None:
    moe = {
        "num_experts": 4,
        "num_experts_per_tok": top_k,
        "num_shared_experts": shared,
        "norm_topk_prob": top_k > 1,
        "load_balancing": "bias",
    }
    config = make_config(moe=moe, qk_norm=not shared)
    model, counted = _built(config, 203), parameters(config, 203)
    assert counted.total == sum(p.numel() for p in model.parameters())
    idle = sum(p[top_k:].numel() for name, p in model.named_parameters() if ".experts." in name)
    assert counted.active == counted.total - idle
    matrices = sum(p.numel() for p in model.parameters() if p.dim() >= 2)
    assert counted.matmul == matrices - idle


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head_dim", [None, 24])
def test_training_flops_are_three_times_the_products_of_a_causal_forward_pass(tied: bool, head_dim: int | None) -> None:
    model, context = make_decoder(tie_word_embeddings=tied, num_hidden_layers=3, head_dim=head_dim), 40
    model.set_attention_backend("reference")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.logits(model(random_tokens(1, context)))
    upper_half = 4 * 3 * 4 * (head_dim or 8) * context / 2  # per token: the square also has what nobody may see
    per_token = counter.get_total_flops() / context - upper_half
    assert training_flops_per_token(model.config, model.vocab_size, context) == pytest.approx(3 * per_token, rel=1e-9)


@pytest.mark.parametrize("every", [0, 1, 2, 3])
def test_training_flops_count_forward_backward_and_recomputation(every: int) -> None:
    layers, width, inner, context = 4, 32, 48, 40
    model, tokens = make_decoder(num_hidden_layers=layers).train(), random_tokens(1, context)
    model.set_attention_backend("reference")
    model.activation_checkpoint_every = every
    again = len(checkpointed_layers(layers, every)) / layers
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model.logits(model(tokens))[0], tokens[0]).backward()
    cost = ModelCost(model.config, model.vocab_size)
    unseen = 4 * layers * width * context / 2  # the written-out square also computes what nobody may see
    last = 2 * layers * width * inner  # nothing needs the output of a block's last product, so it is not made again
    expected = cost.training_body_flops(context, again) + (3 + again) * unseen - again * last + cost.training_head_flops()
    assert counter.get_total_flops() / context == pytest.approx(expected, rel=1e-9)
    assert cost.training_flops(context, again) - cost.training_flops(context) == pytest.approx(again * cost.body_flops(context))


def test_kv_bytes_count_the_keys_and_values_of_all_blocks() -> None:
    model, shared = make_decoder(num_key_value_heads=2), make_decoder(num_key_value_heads=1)
    for one in (model, shared):
        cos, sin = one.rope_cos_sin(torch.arange(24)[None])
        x = one.embed_tokens(random_tokens(1, 24))
        tensors = [tensor for block in one.blocks() for tensor in block.self_attn.project(x, cos, sin)[1:]]
        assert ModelCost(one.config, 97).kv_bytes(24, size=4) == sum(tensor.numel() * tensor.itemsize for tensor in tensors)
    assert ModelCost(model.config, 97).kv_bytes(24) == 2 * ModelCost(shared.config, 97).kv_bytes(24)


def test_state_bytes_count_weights_gradients_and_optimizer_states() -> None:
    config = make_config(hidden_size=128, intermediate_size=256)
    for name in ("adamw", "muon", "adamw8bit"):
        model = Decoder(config, 512)
        optimizers = build_optimizers(model, OptimizerConfig(name=name, learning_rate=0.01))  # type: ignore[arg-type]
        model(random_tokens(1, 8)).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
        state = sum(tensor.nbytes for tensor in optimizer_tensors(model, optimizers).values())
        real = state + sum(2 * p.nbytes for p in model.parameters())
        assert ModelCost(config, 512).state_bytes(name) == pytest.approx(real, rel=0.01)


# -- what is kept for the backward pass --------------------------------------------------------------------------------


class _Kept:
    """A tensor that autograd keeps; its bytes count as long as it lives."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _saved_bytes(model: Decoder, tokens: Tensor) -> int:
    """Bytes of all storages that one micro-batch leaves for its backward pass, but for the model's own and the batch's,
    and the gradient of the head, which is made on the way forward."""
    mine = [*model.parameters(), *model.buffers(), tokens]
    own = {tensor.untyped_storage().data_ptr() for tensor in mine}
    references: list[weakref.ref[_Kept]] = []

    def pack(tensor: Tensor) -> _Kept:
        kept = _Kept(tensor)
        references.append(weakref.ref(kept))
        return kept

    documents = torch.ones_like(tokens)
    own.add(documents.untyped_storage().data_ptr())
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        hidden = model(tokens, None, documents).flatten(0, 1)
        loss = cross_entropy(hidden, model.lm_head_weight, tokens.flatten(), torch.ones(tokens.numel()))
    alive = [kept.tensor.untyped_storage() for kept in (reference() for reference in references) if kept is not None]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in alive if storage.data_ptr() not in own}
    assert loss.requires_grad
    return sum(sizes.values()) - model.lm_head_weight.numel() * 4


KINDS = {
    "dense": {},
    "dense, every head its own key": {"num_key_value_heads": 8},
    "dense, norms of queries and keys": {"qk_norm": True},
    "dense, biases": {"attention_bias": "qkvo"},
    "dense, wide heads": {"qk_norm": True, "head_dim": 32},
    "dense, a head of its own": {"tie_word_embeddings": False},
    "mixture": {"qk_norm": True, "moe": {"num_experts": 8, "num_experts_per_tok": 2}},
    "mixture with a shared network": {"moe": {"num_experts": 4, "num_experts_per_tok": 2, "num_shared_experts": 2}},
}
DTYPES = [pytest.param(torch.float32, id="fp32"), pytest.param(torch.bfloat16, id="bf16")]


def _measurable(dtype: torch.dtype, **changes: object) -> Decoder:
    sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 352}
    model = make_decoder(vocab=300, **{**sizes, "max_position_embeddings": 1024, **changes}).train()
    model.set_attention_backend("blocked")
    model.compute_dtype = dtype
    return model


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_kept_bytes_equal_the_bytes_that_autograd_keeps(kind: str, dtype: torch.dtype) -> None:
    model, tokens = _measurable(dtype, **KINDS[kind]), random_tokens(2, 192)
    for every in (0, 1, 2, 3):
        model.activation_checkpoint_every = every
        expected = ModelCost(model.config, 300).kept_bytes(tokens.numel(), dtype.itemsize, False, every)
        assert expected == pytest.approx(_saved_bytes(model, tokens), rel=0.001), f"every {every}"


def test_a_block_counts_in_full_while_it_is_recomputed() -> None:
    cost = ModelCost(make_config(num_hidden_layers=4), 97)
    block = 100 * cost.block_bytes(4, False)
    kept = [cost.kept_bytes(100, 4, False, every) for every in range(5)]
    assert kept[0] - kept[1] == pytest.approx(4 * (block - 100 * 32 * 4))
    held = [cost.activation_bytes(100, 4, False, every) for every in range(5)]
    assert held[1] == kept[1] + block and held[2] == kept[2] + block and held[4] == kept[4] + block
    assert held[3] == kept[3]  # when the third is computed again, the fourth is done with
    assert held[0] == kept[0] > held[2] > held[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("dense", torch.bfloat16),
        ("dense, norms of queries and keys", torch.float32),
        ("dense, wide heads", torch.float32),
        ("mixture", torch.bfloat16),
    ],
    ids=str,
)
def test_kept_bytes_of_compiled_code_equal_the_bytes_that_autograd_keeps(kind: str, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    model, tokens = _measurable(dtype, **{**KINDS[kind], "num_hidden_layers": 2}), random_tokens(2, 256)
    for block in model.blocks():
        block.compile(dynamic=False)
    expected = ModelCost(model.config, 300).kept_bytes(tokens.numel(), dtype.itemsize, True)
    assert expected == pytest.approx(_saved_bytes(model, tokens), rel=0.2 if "mixture" in kind else 0.08)


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 3},
        {"r": 3, "target_modules": ["q_proj", "v_proj"]},
        {"r": 3, "target_modules": ["down_proj", "k_proj", "o_proj"], "use_dora": True},
        {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 5},
    ],
)
def test_what_an_adapter_trains_equals_the_built_model(settings: dict[str, Any]) -> None:
    model, config = make_decoder(attention_bias="qkv"), AdapterConfig.model_validate(settings)
    attach_adapter(model, Adapter(config, None, None), seed=1)
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert model.cost.trained_by(config) == trained


@pytest.mark.parametrize(
    "settings",
    [{"target_modules": "q.*"}, {"target_modules": ["layers.0.q_proj"]}, {"rank_pattern": {"q_proj": 2}},
     {"modules_to_save": ["embed_tokens"]}],
)  # fmt: skip
def test_what_sizes_do_not_tell_of_an_adapter_is_not_told(settings: dict[str, Any]) -> None:
    assert make_decoder().cost.trained_by(AdapterConfig.model_validate(settings)) is None
