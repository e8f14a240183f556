"""Adapters that have learned something, on small models, and their directories."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledge.model.adapter_files import write_adapter
from fledge.model.adapters import adapter_weights, attach_adapter
from fledge.model.loading import load_model
from fledge.model.protocol import Adapter, LanguageModel
from fledge.model.weight_files import weights_hash
from fledge.recipe.schema import AdapterConfig
from tests.support.decoders import random_tokens


def scatter(weights: dict[str, Tensor], seed: int = 9) -> None:
    """Give all tensors of an adapter values that change the outputs."""
    generator = torch.Generator().manual_seed(seed)
    for name in sorted(weights):
        noise = torch.randn(weights[name].shape, generator=generator) / 4
        weights[name].add_(noise)


def adapted_model(base: Path, implementation: str = "auto", seed: int = 9, **settings: Any) -> LanguageModel:
    """The model in `base` with an adapter that has learned something."""
    model = load_model(base, implementation).eval()
    attach_adapter(model, Adapter(AdapterConfig(**settings), base, weights_hash(base)), seed=1)
    scatter(adapter_weights(model), seed)
    return model


def write_adapted(folder: Path, base: Path, seed: int = 9, **settings: Any) -> Path:
    """The directory of such an adapter."""
    write_adapter(folder, adapted_model(base, seed=seed, **settings))
    return folder


@torch.no_grad()
def logits(model: LanguageModel, vocab: int = 97) -> Tensor:
    """The logits of two rows of random tokens."""
    return model.logits(model(random_tokens(2, 10, vocab=vocab)))


def train_a_little(model: LanguageModel, steps: int) -> list[float]:
    """The losses of a few updates of what a model trains."""
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    tokens, losses = random_tokens(3, 12), []
    for step in range(steps):
        torch.manual_seed(step)
        logits = model.logits(model(tokens))
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses
