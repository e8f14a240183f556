"""Tiny decoders whose weights are large enough for every part of the model to show in the logits."""

import torch
from torch import Tensor

from fledge.model.decoder import Decoder
from fledge.recipe import ModelConfig

VOCAB = 97


def make_config(**changes: object) -> ModelConfig:
    """A configuration of two layers of width 32 with four query and two key-value heads."""
    sizes: dict[str, object] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
    }
    return ModelConfig.model_validate({**sizes, **changes})


def scatter_norms(model: torch.nn.Module, seed: int = 5) -> None:
    """Set every norm weight to a different value near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))


def make_decoder(seed: int = 0, vocab: int = VOCAB, **changes: object) -> Decoder:
    """A decoder in evaluation mode."""
    model = Decoder(make_config(**changes), vocab)
    model.init_weights(seed)
    scatter_norms(model)
    return model.eval()


def random_tokens(*shape: int, seed: int = 0, vocab: int = VOCAB) -> Tensor:
    """Random tokens of this shape."""
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(seed))


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of every gradient, by name; the gradients are removed from the model."""
    copies = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return copies


def assert_same_gradients(left: dict[str, Tensor], right: dict[str, Tensor], atol: float, rtol: float = 0.0) -> None:
    """Check that names and values are equal."""
    assert left.keys() == right.keys() and left
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], atol=atol, rtol=rtol, msg=lambda text, name=name: f"{name}: {text}")
