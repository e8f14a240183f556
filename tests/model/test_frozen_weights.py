"""Frozen weights in the dtype of the products: equal training, less memory."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fledge.model.adapters import adapter_weights, attach_adapter
from fledge.model.cost import ModelCost
from fledge.model.frozen_weights import frozen_matrices, round_frozen_weights
from fledge.model.loading import load_model
from fledge.model.protocol import Adapter, LanguageModel
from fledge.recipe.schema import AdapterConfig
from tests.support.adapters import train_a_little
from tests.support.decoders import make_decoder

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_dropout": 0.3},
    "some layers": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["down_proj", "norm"]},
    "dora": {"r": 3, "use_dora": True, "target_modules": ["q_proj", "up_proj"]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with biases and a head of its own."""
    folder = tmp_path_factory.mktemp("base")
    make_decoder(attention_bias="qkv", tie_word_embeddings=False).save_pretrained(folder, bos=1, eos=[2], pad=0)
    return folder


def _adapted(base: Path, kind: str, implementation: str = "auto") -> LanguageModel:
    model = load_model(base, implementation).train()
    attach_adapter(model, Adapter(AdapterConfig(**KINDS[kind]), base, None), seed=1)
    model.compute_dtype = torch.bfloat16
    return model


@pytest.mark.parametrize("implementation", ["native", "transformers"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_computes_the_same_numbers(base: Path, kind: str, implementation: str) -> None:
    if implementation == "transformers":
        pytest.importorskip("transformers")
    exact, rounded = _adapted(base, kind, implementation), _adapted(base, kind, implementation)
    count = sum(weight.numel() for weight in frozen_matrices(rounded))
    assert round_frozen_weights(rounded, torch.bfloat16) == 2 * count > 0
    assert frozen_matrices(rounded) == []
    losses = train_a_little(exact, steps=4)
    assert train_a_little(rounded, steps=4) == losses and losses[-1] < losses[0]
    learned = adapter_weights(exact)
    assert all(torch.equal(weight, learned[name]) for name, weight in adapter_weights(rounded).items())


def test_dora_keeps_the_weights_whose_rows_it_measures(base: Path) -> None:
    model = _adapted(base, "dora")
    round_frozen_weights(model, torch.bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters() if name.endswith("_proj.weight")}
    kept = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert kept == {name for name in dtypes if name.endswith(("q_proj.weight", "up_proj.weight"))}


def test_trained_weights_and_float32_stay_as_they_are(base: Path) -> None:
    assert round_frozen_weights(_adapted(base, "lora"), torch.float32) == 0
    whole = load_model(base)
    assert round_frozen_weights(whole, torch.bfloat16) == 0
    model = _adapted(base, "some layers")
    round_frozen_weights(model, torch.bfloat16)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters() if parameter.requires_grad)
    assert model.lm_head_weight.dtype == torch.float32  # logits of float32 hidden states need it


def test_the_savings_are_those_of_the_planner(base: Path) -> None:
    model = _adapted(base, "lora")
    saved = round_frozen_weights(model, torch.bfloat16)
    cost = ModelCost(model.config, model.vocab_size)
    copies = model.config.num_hidden_layers * cost.weight_copies(2)
    assert cost.frozen_savings(2, 2) == saved + copies  # float32 becomes bf16, and the copies are no others
    assert cost.frozen_savings(2, 2, every=1) == saved
    assert cost.frozen_savings(4, 4) == 0
