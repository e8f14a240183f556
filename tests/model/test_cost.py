"""What a decoder costs, held to the decoder that is built and to the products it does."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fledge.model.cost import parameters, training_flops_per_token
from fledge.model.decoder import Decoder
from fledge.recipe import ModelConfig, recipe_from_dict

from .conftest import make_config, make_decoder, random_tokens


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
def test_counts_equal_those_of_the_built_model(tied: bool, qk_norm: bool, kv_heads: int) -> None:
    config = make_config(tie_word_embeddings=tied, qk_norm=qk_norm, num_key_value_heads=kv_heads, num_hidden_layers=3)
    model, counted = _built(config, 203), parameters(config, 203)
    assert counted.total == counted.active == sum(p.numel() for p in model.parameters())
    matrices = [p.numel() for name, p in model.named_parameters() if p.dim() == 2 and (tied or "embed" not in name)]
    assert counted.multiplying == sum(matrices)


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


def test_a_mixture_counts_its_experts_its_router_and_those_active() -> None:
    dense = parameters(make_config(), 97)
    mixture = parameters(make_config(moe={"experts": 8, "top_k": 2, "shared_experts": 1}), 97)
    expert, router, layers = 3 * 32 * 48, 32 * 8 + 32, 2  # the router, and the sigmoid of the shared expert
    assert mixture.total - dense.total == layers * (8 * expert + router)
    assert mixture.active - dense.active == layers * (2 * expert + router)
    assert mixture.multiplying - dense.multiplying == layers * (2 * expert + router)


@pytest.mark.parametrize("shared", [0, 1, 3])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_counts_of_a_mixture_equal_those_of_the_built_model(shared: int, top_k: int) -> None:
    moe = {"experts": 4, "top_k": top_k, "shared_experts": shared, "normalise_top_k": top_k > 1, "balance": "bias"}
    config = make_config(moe=moe, qk_norm=not shared)
    model, counted = _built(config, 203), parameters(config, 203)
    assert counted.total == sum(p.numel() for p in model.parameters())
    idle = sum(p[top_k:].numel() for name, p in model.named_parameters() if ".experts." in name)
    assert counted.active == counted.total - idle
    matrices = sum(p.numel() for p in model.parameters() if p.dim() >= 2)
    assert counted.multiplying == matrices - idle


@pytest.mark.parametrize("tied", [True, False])
def test_training_flops_are_three_times_the_products_of_a_causal_forward_pass(tied: bool) -> None:
    model, context = make_decoder(tie_word_embeddings=tied, num_hidden_layers=3), 40
    model.use_attention("written_out")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.logits(model(random_tokens(1, context)))
    upper_half = 4 * 3 * 32 * context / 2  # per token: the written-out square also computes what nobody may see
    per_token = counter.get_total_flops() / context - upper_half
    assert training_flops_per_token(model.config, model.vocab_size, context) == pytest.approx(3 * per_token, rel=1e-9)
