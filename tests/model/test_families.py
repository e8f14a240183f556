"""Models of every family that the native decoder computes: equal logits, from transformers and back."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from fledge.generation import SamplingParams
from fledge.model.architectures import ARCHITECTURES
from fledge.model.decoder import Decoder
from fledge.model.hf_config import read_config
from fledge.model.huggingface import document_positions
from fledge.model.loading import describe_model, load_model
from fledge.model.pretrained import from_pretrained
from fledge.optim.build import build_optimizers
from fledge.recipe.schema import OptimizerConfig
from tests.support.decoders import make_decoder, random_tokens
from tests.support.generating import generate
from tests.support.transformers_models import write_model

LINEAR = {"rope_type": "linear", "factor": 3.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
ROPES: dict[str, dict[str, Any]] = {
    "linear": LINEAR,
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn with every key": {
        **YARN,
        "beta_fast": 4.0,
        "beta_slow": 0.5,
        "mscale": 0.7,
        "mscale_all_dim": 0.3,
        "truncate": False,
    },
    "yarn with a factor": {**YARN, "attention_factor": 1.7, "beta_fast": 2.0},
    "yarn that shortens": {**YARN, "factor": 0.5},
}
MIXTURE = {"moe_intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": True}
SHARED = {"shared_expert_intermediate_size": 48, "qkv_bias": True}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama with biases": ("Llama", {"attention_bias": True}),
    "llama with small heads": ("Llama", {"head_dim": 4, "num_key_value_heads": 1}),
    "llama 3.1": ("Llama", {"rope_parameters": {**LLAMA3, "rope_theta": 500_000.0}}),
    "mistral without window": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "mistral with a window as long as the text": ("Mistral", {"sliding_window": 64}),
    "qwen2": ("Qwen2", {}),
    "qwen2 with yarn": ("Qwen2", {"rope_parameters": {**YARN, "rope_theta": 1e6}, "num_key_value_heads": 4}),
    "qwen3 with wide heads": ("Qwen3", {"head_dim": 16}),
    "qwen3 with biases": ("Qwen3", {"head_dim": 8, "attention_bias": True}),
    "qwen3-moe with wide heads": ("Qwen3Moe", {**MIXTURE, "head_dim": 16, "attention_bias": True}),
    "qwen2-moe with biases": ("Qwen2Moe", {**MIXTURE, **SHARED}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 1]}),
    "smollm3 with biases": ("SmolLM3", {"no_rope_layer_interval": 3, "attention_bias": True}),
}
SAVED_AS = {"Mistral": "Llama", "SmolLM3": "Llama"}
TOKENS = random_tokens(2, 60)


def _logits(model: Decoder, *inputs: Any) -> Tensor:
    with torch.no_grad():
        return model.logits(model(*inputs))


def _native(folder: Path) -> Decoder:
    """The model of a folder, for which `auto` must choose the native decoder without a word."""
    lines: list[str] = []
    model = load_model(folder, log=lines.append)
    assert isinstance(model, Decoder) and not lines
    return model.eval()


def _assert_equal_logits(model: Decoder, theirs: Any) -> None:
    with torch.no_grad():
        torch.testing.assert_close(_logits(model, TOKENS), theirs(TOKENS).logits.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers_from_there_and_back(tmp_path: Path, family: str, tied: bool) -> None:
    architecture, changes = FAMILIES[family]
    theirs = write_model(tmp_path / "theirs", architecture, tie_word_embeddings=tied, **changes)
    model = _native(tmp_path / "theirs")
    assert (model.lm_head is None) == tied
    _assert_equal_logits(model, theirs)
    counted = describe_model(tmp_path / "theirs").cost.parameters()
    assert counted == model.cost.parameters() and counted.total == sum(p.numel() for p in theirs.parameters())

    model.save_pretrained(tmp_path / "ours", bos=1, eos=[2], pad=0)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert type(again).__name__ == f"{SAVED_AS.get(architecture, architecture)}ForCausalLM"
    _assert_equal_logits(model, again)
    assert from_pretrained(tmp_path / "ours").config == model.config


@pytest.mark.parametrize("family", FAMILIES)
def test_shards_of_half_precision_load_as_the_same_numbers(tmp_path: Path, family: str) -> None:
    architecture, changes = FAMILIES[family]
    theirs = write_model(tmp_path / "whole", architecture, **changes)
    for dtype in (torch.bfloat16, torch.float16):
        folder = tmp_path / str(dtype)
        theirs.to(dtype).save_pretrained(folder, max_shard_size="20KB")
        assert len(list(folder.glob("*.safetensors"))) > 1
        _assert_equal_logits(_native(folder), transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_packed_documents_have_the_logits_that_transformers_gives_to_each(tmp_path: Path, family: str) -> None:
    architecture, changes = FAMILIES[family]
    theirs, model = write_model(tmp_path, architecture, **changes), _native(tmp_path)
    documents = torch.tensor([[1] * 20 + [2] * 7 + [3] * 33, [1] * 41 + [2] * 19])
    for backend in ("sdpa", "blocked", "reference"):
        model.set_attention_backend(backend)
        packed = model.logits(model(TOKENS, document_positions(TOKENS, documents), documents))
        for row, numbers in enumerate(documents):
            for number in range(1, int(numbers.max()) + 1):
                here = numbers == number
                alone = theirs(TOKENS[row, here][None]).logits[0]
                torch.testing.assert_close(packed[row, here], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_generated_tokens_are_the_greedy_choices_of_full_forward_passes(tmp_path: Path, family: str) -> None:
    architecture, changes = FAMILIES[family]
    write_model(tmp_path, architecture, **changes)
    model = _native(tmp_path)
    prompts = [random_tokens(length, seed=length).tolist() for length in (1, 5, 12)]
    for prompt, answer in zip(prompts, generate(model, prompts, (), SamplingParams(max_new_tokens=30)), strict=True):
        tokens = [*prompt, *answer.tokens]
        best = _logits(model, torch.tensor([tokens]))[0].argmax(-1)
        assert best[len(prompt) - 1 : -1].tolist() == list(answer.tokens) and len(answer.tokens) == 30


@pytest.mark.parametrize("old_key", [False, True], ids=["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("kind", ROPES)
def test_scaled_rotary_positions_are_those_of_transformers(tmp_path: Path, kind: str, old_key: bool) -> None:
    write_model(tmp_path, "Llama", rope_parameters={**ROPES[kind], "rope_theta": 500.0})
    if old_key:
        path = tmp_path / "config.json"
        raw = json.loads(path.read_text())
        scaling = raw.pop("rope_parameters")
        raw |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": {"type": scaling.pop("rope_type"), **scaling}}
        path.write_text(json.dumps(raw))
    model, theirs = _native(tmp_path), transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.rope_theta == 500.0
    _assert_equal_logits(model, theirs)
    positions = torch.arange(64)[None]
    for ours, expected in zip(model.rope_cos_sin(positions), theirs.model.rotary_emb(TOKENS.float(), positions), strict=True):
        torch.testing.assert_close(ours[:, 0], expected, atol=1e-5, rtol=0)
    plain = make_decoder(rope_theta=500.0)
    assert not torch.allclose(plain.rope_cos_sin(positions)[0], model.rope_cos_sin(positions)[0], atol=1e-3)

    model.save_pretrained(tmp_path / "ours", bos=1, eos=[2], pad=0)
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert {**written["rope_scaling"], "rope_theta": 500.0} == written["rope_parameters"] and written["rope_theta"] == 500.0
    _assert_equal_logits(model, transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours"))


def test_the_old_key_decides_where_both_are_given_as_in_transformers(tmp_path: Path) -> None:
    make_decoder(rope_theta=333.0).save_pretrained(tmp_path, bos=1, eos=[2], pad=0)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "rope_scaling": YARN, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}))
    scaling = read_config(tmp_path)[0].rope_scaling
    assert scaling is not None and scaling.rope_type == "yarn"
    _assert_equal_logits(_native(tmp_path), transformers.AutoModelForCausalLM.from_pretrained(tmp_path))


def test_yarn_without_its_optional_keys_takes_them_from_the_longest_text(tmp_path: Path) -> None:
    make_decoder().save_pretrained(tmp_path, bos=1, eos=[2], pad=0)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "rope_scaling": {"type": "yarn", "factor": 2.0}}))
    model = _native(tmp_path)
    assert model.config.rope_scaling is not None and model.config.rope_scaling.original_max_position_embeddings == 64
    assert model.magnitude == pytest.approx(0.1 * math.log(2) + 1)
    _assert_equal_logits(model, transformers.AutoModelForCausalLM.from_pretrained(tmp_path))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_keys_that_a_file_leaves_out_have_the_values_of_transformers(name: str) -> None:
    kind = ARCHITECTURES[name]
    config = getattr(transformers, name.replace("ForCausalLM", "Config"))
    assert config.model_type == kind.model_type
    theirs = {field.name: field.default for field in dataclasses.fields(config)} | {"rope_theta": config.default_theta}
    usual = {
        "head_dim": None, "num_key_value_heads": None, "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
        "qkv_bias": False, "rope_theta": 10_000.0, "hidden_act": "silu", "norm_topk_prob": False, "decoder_sparse_step": 1,
        "router_aux_loss_coef": 0.001, "initializer_range": 0.02, "use_sliding_window": False,
    }  # fmt: skip
    for key, value in {**usual, **kind.defaults}.items():
        assert theirs.get(key, value) == value, key


@pytest.mark.parametrize("family", ["qwen2", "llama with biases", "qwen3-moe with wide heads"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_biases_are_vectors_without_weight_decay_that_adamw_trains(tmp_path: Path, family: str, optimizer: Any) -> None:
    architecture, changes = FAMILIES[family]
    write_model(tmp_path, architecture, **changes)
    model = _native(tmp_path).train()
    biases = {name: parameter for name, parameter in model.named_parameters() if name.endswith(".bias")}
    assert len(biases) == (2 * 3 if family == "qwen2" else 2 * 4)
    assert {model.parameter_role(name) for name in biases} == {"vector"}
    optimizers = build_optimizers(model, OptimizerConfig(name=optimizer, learning_rate=0.01, weight_decay=0.1))
    groups = {id(p): (type(o).__name__, group) for o in optimizers for group in o.param_groups for p in group["params"]}
    for parameter in biases.values():
        kind, group = groups[id(parameter)]
        assert kind != "Muon" and group["weight_decay"] == 0
    before = {name: parameter.detach().clone() for name, parameter in biases.items()}
    model(TOKENS).square().sum().backward()
    for one in optimizers:
        one.step()
    moved = {name for name, parameter in biases.items() if not torch.equal(parameter, before[name])}
    assert {name for name in biases if "k_proj" not in name} <= moved  # a bias of keys moves all scores of a query alike


def test_fresh_biases_are_zero() -> None:
    model = Decoder(make_decoder(attention_bias="qkvo", head_dim=12).config, 97)
    model.init_weights(0)
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith(".bias")]
    assert len(biases) == 8 and not any(bool(bias.any()) for bias in biases)
