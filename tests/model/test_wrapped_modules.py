"""A module that wraps a linear layer of the decoder, as an adapter does, takes part in training and in generation."""

import pytest
import torch
from torch import Tensor, nn

from fledge.errors import FledgeError
from fledge.generation.native import InferenceModel
from fledge.model.decoder import Decoder
from fledge.model.linear import Linear
from tests.support.decoders import make_decoder, random_tokens

SHARED = {"num_experts": 4, "num_experts_per_tok": 2, "num_shared_experts": 1}
DENSE_LAYERS = [
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
]  # fmt: skip
MIXTURE_LAYERS = [
    "mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert.down_proj",
    "mlp.shared_expert_gate", "mlp.shared_expert",
]  # fmt: skip
LAYERS = [*((name, None) for name in DENSE_LAYERS), *((name, SHARED) for name in MIXTURE_LAYERS)]


class LowRank(nn.Module):
    """base(x) + x·Aᵀ·Bᵀ with a frozen base, as in LoRA (Hu et al. 2021), in the dtype of x; counts its calls."""

    def __init__(self, base: nn.Module, width_in: int, width_out: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.base = base.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(4, width_in, generator=generator) / 4)
        self.B = nn.Parameter(torch.randn(width_out, 4, generator=generator) / 4)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """The product of the base plus the low-rank product."""
        self.calls += 1
        return self.base(x) + x @ self.A.to(x.dtype).T @ self.B.to(x.dtype).T


def wrap(model: Decoder, name: str) -> LowRank:
    """Replace one module of the first block by a wrapper."""
    block = model.blocks()[0]
    owner, _, attribute = name.rpartition(".")
    base = block.get_submodule(name)
    width = model.config.hidden_size
    width_in, width_out = (base.in_features, base.out_features) if isinstance(base, Linear) else (width, width)
    wrapper = LowRank(base, width_in, width_out)
    setattr(block.get_submodule(owner), attribute, wrapper)
    return wrapper


@pytest.mark.parametrize(("name", "moe"), LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrapper_is_called_changes_the_logits_and_gets_gradients(name: str, moe: object, dtype: torch.dtype) -> None:
    model, tokens = make_decoder(moe=moe), random_tokens(2, 12)
    model.compute_dtype = dtype
    before = model.logits(model(tokens)).detach()
    wrapper = wrap(model, name)
    logits = model.logits(model(tokens))
    assert wrapper.calls == 1
    assert (logits - before).abs().max() > 1e-2
    logits.square().mean().backward()
    for parameter in (wrapper.A, wrapper.B):
        assert parameter.grad is not None and parameter.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in wrapper.base.parameters())


@pytest.mark.parametrize(("name", "moe"), LAYERS)
@torch.no_grad()
def test_generation_computes_with_the_wrapper(name: str, moe: object) -> None:
    model = make_decoder(moe=moe)
    wrapper = wrap(model, name)
    prompts = [random_tokens(length, seed=length).tolist() for length in (7, 3)]
    inference = InferenceModel(model)
    cache = inference.empty_cache(2, 20)
    wrapper.calls = 0
    first = inference.forward(cache, [], [], prompts)
    assert wrapper.calls == 1
    second = inference.forward(cache, [5, 6], [7, 3], [])
    assert wrapper.calls == 2
    for logits, sequences in ((first, prompts), (second, [[*prompts[0], 5], [*prompts[1], 6]])):
        expected = torch.stack([model.logits(model(torch.tensor([tokens])))[0, -1] for tokens in sequences])
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_generation_calls_a_wrapped_embedding() -> None:
    class Shifted(nn.Module):
        """The vectors of an embedding, all moved by one."""

        def __init__(self, base: nn.Embedding) -> None:
            super().__init__()
            self.base = base

        def forward(self, tokens: Tensor) -> Tensor:
            return self.base(tokens) + 1

    model, prompt = make_decoder(tie_word_embeddings=False), random_tokens(9).tolist()
    model.embed_tokens = Shifted(model.embed_tokens)  # type: ignore[assignment]
    inference = InferenceModel(model)
    logits = inference.forward(inference.empty_cache(1, 9), [], [], [prompt])
    torch.testing.assert_close(logits[0], model.logits(model(torch.tensor([prompt])))[0, -1], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_wrapped_head_is_an_error_because_only_its_matrix_would_be_read(tied: bool) -> None:
    model = make_decoder(tie_word_embeddings=tied)
    name = "embed_tokens" if tied else "lm_head"
    setattr(model, name, LowRank(getattr(model, name), 32, 97))
    with pytest.raises(FledgeError, match="LowRank"):
        _ = model.lm_head_weight


def test_a_linear_layer_computes_in_the_dtype_of_its_input_and_keeps_float32_gradients() -> None:
    layer, x = Linear(5, 3), torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    rounded = layer(x.bfloat16())
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, nn.functional.linear(x.bfloat16(), layer.weight.bfloat16(), layer.bias.bfloat16()))
    rounded.float().sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32
