"""Every parameter is trained by exactly one optimizer, and its state survives a save."""

import pytest
import torch

from fledge.model.decoder import Decoder
from fledge.recipe.schema import ModelConfig, OptimizerConfig
from fledge.train.optimizer import build_optimizers, optimizer_tensors, restore_optimizers

SIZES = ModelConfig(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=32,
    qk_norm=True,
    tie_word_embeddings=False,
)


def model() -> Decoder:
    made = Decoder(SIZES, 40)
    made.initialise(0)
    return made


def step(decoder: Decoder, optimizers: list[torch.optim.Optimizer], seed: int) -> None:
    tokens = torch.randint(0, 40, (2, 8), generator=torch.Generator().manual_seed(seed))
    decoder.logits(decoder(tokens)).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()
    decoder.zero_grad()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_each_parameter_has_one_owner_and_only_matrices_decay(name: str) -> None:
    decoder = model()
    optimizers = build_optimizers(decoder, OptimizerConfig(name=name, weight_decay=0.1))  # type: ignore[arg-type]
    owned = [(id(p), group["weight_decay"]) for o in optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(key for key, _ in owned) == sorted(id(p) for p in decoder.parameters())
    decays = dict(owned)
    for full, parameter in decoder.named_parameters():
        assert decays[id(parameter)] == (0.1 if parameter.dim() > 1 and "embed" not in full else 0.0), full
    muon = {id(p) for o in optimizers if isinstance(o, torch.optim.Muon) for g in o.param_groups for p in g["params"]}
    blocks = {id(p) for full, p in decoder.named_parameters() if full.startswith("layers") and p.dim() == 2}
    assert muon == (blocks if name == "muon" else set())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_restored_optimizer_goes_on_bit_for_bit(name: str) -> None:
    config = OptimizerConfig(name=name, lr=0.01)  # type: ignore[arg-type]
    whole = model()
    optimizers = build_optimizers(whole, config)
    for seed in range(3):
        step(whole, optimizers, seed)
    resumed = model()
    resumed.load_state_dict(whole.state_dict())
    saved = {key: tensor.clone() for key, tensor in optimizer_tensors(whole, optimizers).items()}
    again = build_optimizers(resumed, config)
    restore_optimizers(resumed, again, saved)
    step(whole, optimizers, 9)
    step(resumed, again, 9)
    for (full, one), two in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two), full
