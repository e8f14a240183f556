"""Model directories: what fledge writes transformers reads, what transformers writes fledge reads, the rest is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from fledge.errors import FledgeError
from fledge.generation import SamplingParams
from fledge.model.decoder import Decoder
from fledge.model.hf_config import read_config
from fledge.model.pretrained import from_pretrained
from fledge.recipe.schema import MoeConfig
from tests.support.decoders import make_decoder, random_tokens, scatter_norms
from tests.support.generating import generate

MIXTURE = {"num_experts": 5, "num_experts_per_tok": 2}
SHAPES = [
    pytest.param({"tie_word_embeddings": True}, id="llama tied"),
    pytest.param({"tie_word_embeddings": False}, id="llama untied"),
    pytest.param({"qk_norm": True, "tie_word_embeddings": True}, id="qwen3 tied"),
    pytest.param({"qk_norm": True, "tie_word_embeddings": False}, id="qwen3 untied"),
    pytest.param({"qk_norm": True, "moe": MIXTURE}, id="qwen3-moe"),
    pytest.param(
        {"qk_norm": True, "moe": {**MIXTURE, "norm_topk_prob": False, "router_z_loss_coef": 0.5}}, id="qwen3-moe plain weights"
    ),
    pytest.param({"moe": {**MIXTURE, "num_shared_experts": 2, "router_aux_loss_coef": 0.25}}, id="qwen2-moe"),
]
KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "qwen3-moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
    "qwen2-moe": (Qwen2MoeConfig, Qwen2MoeForCausalLM),
}
ROUTED = {"moe_intermediate_size": 24, "num_experts": 6, "num_experts_per_tok": 3, "router_aux_loss_coef": 0.125}
EXTRA: dict[str, dict[str, Any]] = {
    "qwen3-moe": {**ROUTED, "norm_topk_prob": True},
    "qwen2-moe": {**ROUTED, "shared_expert_intermediate_size": 48, "qkv_bias": False},
}


def _save(model: Decoder, folder: Path, eos: list[int]) -> Path:
    model.save_pretrained(folder, bos=1, eos=eos, pad=0)
    return folder


def _logits(model: Decoder, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model.logits(model(tokens))


def _written_by_transformers(folder: Path, kind: str, tied: bool, dtype: torch.dtype, shard: str = "1GB", **more: Any) -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 48, "max_position_embeddings": 64, "initializer_range": 0.2, "head_dim": 8,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": 333_000.0}, **EXTRA.get(kind, {}), **more,
    }  # fmt: skip
    torch.manual_seed(0)
    config, architecture = KINDS[kind]
    model = architecture(config(**sizes))
    scatter_norms(model)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return model.eval()


@pytest.mark.parametrize("changes", SHAPES)
def test_transformers_reads_what_fledge_writes(tmp_path: Path, changes: dict[str, object]) -> None:
    model = make_decoder(rope_theta=250_000.0, rms_norm_eps=1e-4, num_hidden_layers=3, **changes)
    prompts = [random_tokens(length, seed=length).tolist() for length in (1, 6, 11)]
    free = generate(model, prompts, frozenset(), SamplingParams(max_new_tokens=20))
    eos = sorted({answer.tokens[5] for answer in free})
    theirs, report = AutoModelForCausalLM.from_pretrained(
        _save(model, tmp_path, eos), dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    tokens = random_tokens(3, 40)
    with torch.no_grad():
        torch.testing.assert_close(_logits(model, tokens), theirs(tokens).logits, atol=1e-4, rtol=1e-4)
    ours = generate(model, prompts, frozenset(eos), SamplingParams(max_new_tokens=20))
    for prompt, answer in zip(prompts, ours, strict=True):
        generated = theirs.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=20)[0, len(prompt) :].tolist()
        assert answer.finish_reason == "stop" and generated == [*answer.tokens, answer.stop_token] and generated[-1] in eos


@pytest.mark.parametrize("changes", SHAPES)
def test_a_saved_model_loads_with_the_same_weights_and_configuration(tmp_path: Path, changes: dict[str, object]) -> None:
    model = make_decoder(rope_theta=123.0, dropout=0.25, **changes)
    again = from_pretrained(_save(model, tmp_path, [2]))
    assert again.config == model.config and again.vocab_size == model.vocab_size
    left, right = model.state_dict(), again.state_dict()
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_config_json_has_rope_under_the_old_and_the_new_key(tmp_path: Path) -> None:
    raw = json.loads((_save(make_decoder(rope_theta=77.0), tmp_path, [2, 3]) / "config.json").read_text())
    assert raw["rope_theta"] == 77.0
    assert raw["rope_parameters"] == {"rope_type": "default", "rope_theta": 77.0}
    assert (raw["eos_token_id"], raw["bos_token_id"], raw["pad_token_id"]) == ([2, 3], 1, 0)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [2, 3]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shard", ["1GB", "20KB"], ids=["one file", "sharded"])
def test_fledge_reads_what_transformers_writes(tmp_path: Path, kind: str, tied: bool, shard: str) -> None:
    theirs = _written_by_transformers(tmp_path, kind, tied, torch.float32, shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 2) == (shard == "20KB")
    model = from_pretrained(tmp_path)
    assert model.config.rope_theta == 333_000.0 and model.config.qk_norm == kind.startswith("qwen3")
    assert (model.lm_head is None) == tied
    tokens = random_tokens(2, 50)
    with torch.no_grad():
        torch.testing.assert_close(_logits(model, tokens), theirs(tokens).logits, atol=1e-4, rtol=1e-4)


def test_a_mixture_written_by_transformers_keeps_its_settings(tmp_path: Path) -> None:
    _written_by_transformers(tmp_path / "3", "qwen3-moe", True, torch.float32)
    _written_by_transformers(tmp_path / "2", "qwen2-moe", True, torch.float32)
    three, two = (read_config(tmp_path / name)[0] for name in ("3", "2"))
    assert three.moe == MoeConfig(num_experts=6, num_experts_per_tok=3, norm_topk_prob=True, router_aux_loss_coef=0.125)
    assert two.moe == MoeConfig(
        num_experts=6, num_experts_per_tok=3, norm_topk_prob=False, router_aux_loss_coef=0.125, num_shared_experts=2
    )
    assert three.intermediate_size == two.intermediate_size == 24


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_weights_load_as_the_same_numbers_in_float32(tmp_path: Path, kind: str) -> None:
    _written_by_transformers(tmp_path, kind, True, torch.bfloat16)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    stored = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    model = from_pretrained(tmp_path)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    tokens = random_tokens(2, 50)
    with torch.no_grad():
        torch.testing.assert_close(_logits(model, tokens), theirs(tokens).logits, atol=1e-4, rtol=1e-4)


def test_a_configuration_of_transformers_4_is_read(tmp_path: Path) -> None:
    _save(make_decoder(rope_theta=5000.0), tmp_path, [2])
    _edit(tmp_path, rope_parameters=None, rope_scaling=None, rope_theta=42.0)
    assert read_config(tmp_path)[0].rope_theta == 42.0


def _edit(folder: Path, **changes: object) -> None:
    """Change config.json; None removes a key."""
    path = folder / "config.json"
    raw = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))


def _weights(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return spoil


def _config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: _edit(folder, **changes)


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _index(name: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        text = json.dumps({"weight_map": {"model.norm.weight": name}})
        (folder / "model.safetensors.index.json").write_text(text)

    return spoil


QUERY = "model.layers.0.self_attn.q_proj.weight"
UNSUPPORTED = {
    "truncated": (_truncate, r"model\.safetensors: the weights are truncated"),
    "empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), "no safetensors file, or it is cut off"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors: the weights are missing"),
    "missing tensor": (_weights(lambda t: t.pop(QUERY)), rf"missing \['{QUERY}'\]"),
    "surplus tensor": (_weights(lambda t: t.update({"model.extra": torch.ones(2)})), r"unknown \['model\.extra'\]"),
    "wrong shape": (_weights(lambda t: t.update({QUERY: torch.ones(32, 16)})), r"q_proj\.weight is \[32, 16\], expected"),
    "untied without head": (_config(tie_word_embeddings=False), r"missing \['lm_head\.weight'\]"),
    "other architecture": (_config(architectures=["GPT2LMHeadModel"]), r"does not cover GPT2LMHeadModel .*LlamaForCausalLM"),
    "no architecture": (_config(architectures=None), "does not cover"),
    "rope scaling": (_config(rope_parameters={"rope_type": "longrope", "rope_theta": 1e4}), "rope_type = longrope"),
    "old rope scaling": (_config(rope_parameters=None, rope_scaling={"type": "dynamic"}), "rope_type = dynamic"),
    "both rope keys": (_config(rope_scaling={"rope_type": "dynamic", "factor": 2.0}), "rope_type = dynamic"),
    "rope without its keys": (_config(rope_scaling={"rope_type": "llama3", "factor": 8.0}), "llama3 needs low_freq_factor"),
    "rope without factor": (_config(rope_scaling={"rope_type": "linear"}), "the key 'factor' is missing"),
    "part of a head": (_config(partial_rotary_factor=0.5), "partial_rotary_factor = 0.5"),
    "part of a head, new key": (
        _config(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}),
        "partial_rotary_factor = 0.5",
    ),
    "rope by layer": (_config(rope_parameters={"full_attention": {"rope_type": "default"}}), "several kinds of layers"),
    "biases of the feed-forward network": (_config(mlp_bias=True), "mlp_bias = True"),
    "biases": (_config(attention_bias=True), r"missing \['model.layers.0.self_attn.k_proj.bias'"),
    "activation": (_config(hidden_act="gelu"), "hidden_act = gelu"),
    "head size": (_config(head_dim=16), r"_proj\.weight is \[.*\], expected \["),
    "sliding window": (_config(use_sliding_window=True), "use_sliding_window"),
    "key missing": (_config(rms_norm_eps=None), r"config\.json: the key 'rms_norm_eps' is missing"),
    "odd heads": (_config(num_attention_heads=5, head_dim=None), r"config\.json: hidden_size 32 is not a multiple"),
    "odd head size": (_config(head_dim=7), r"config\.json: head_dim must be even"),
    "negative size": (_config(intermediate_size=-1), r"config\.json: intermediate_size"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), r"config\.json: not readable"),
    "list config": (lambda f: (f / "config.json").write_text("[]"), r"config\.json: not readable"),
    "no config": (lambda f: (f / "config.json").unlink(), "there is no config.json"),
    "shard above": (_index("../model.safetensors"), r"outside the directory: '\.\./model\.safetensors'"),
    "absolute shard": (_index("/tmp/model.safetensors"), "outside the directory: '/tmp/model.safetensors'"),
    "shard below": (_index("sub/model.safetensors"), "outside the directory"),
    "pickled shard": (_index("pytorch_model.bin"), "'pytorch_model.bin'"),
    "shard not a name": (_index(3), "'3'"),
    "missing shard": (_index("model-00001-of-00002.safetensors"), r"00002\.safetensors: the weights are missing"),
    "empty index": (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "the index has no weight_map"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_a_damaged_or_unsupported_directory_is_an_error_with_its_reason(tmp_path: Path, case: str) -> None:
    spoil, message = UNSUPPORTED[case]
    _save(make_decoder(), tmp_path, [2])
    from_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(FledgeError, match=message) as caught:
        from_pretrained(tmp_path)
    assert caught.value.where is not None and str(tmp_path) in caught.value.where


UNSUPPORTED_MIXTURES: dict[str, tuple[str, dict[str, Any], str]] = {
    "some layers dense": ("qwen3-moe", {"mlp_only_layers": [1]}, r"mlp_only_layers = \[1\]"),
    "every other layer": ("qwen3-moe", {"decoder_sparse_step": 2}, "decoder_sparse_step = 2"),
    "biases": ("qwen2-moe", {"qkv_bias": True}, r"missing \['model.layers.0.self_attn.k_proj.bias'"),
    "biases by default": ("qwen2-moe", {"qkv_bias": None}, r"missing \['model.layers.0.self_attn.k_proj.bias'"),
    "shared size": ("qwen2-moe", {"shared_expert_intermediate_size": 47}, "47, which is not a multiple of .* 24"),
    "sliding layers": ("qwen2-moe", {"layer_types": ["sliding_attention"] * 3}, "layer_types: sliding_attention"),
    "more active than there are": ("qwen3-moe", {"num_experts_per_tok": 7}, "num_experts_per_tok 7 is more than the 6 experts"),
    "no size": ("qwen3-moe", {"moe_intermediate_size": None}, "the key 'moe_intermediate_size' is missing"),
}


@pytest.mark.parametrize("case", UNSUPPORTED_MIXTURES)
def test_a_mixture_that_the_decoder_does_not_cover_is_an_error(tmp_path: Path, case: str) -> None:
    kind, changes, message = UNSUPPORTED_MIXTURES[case]
    _written_by_transformers(tmp_path, kind, True, torch.float32)
    from_pretrained(tmp_path)
    _edit(tmp_path, **changes)
    with pytest.raises(FledgeError, match=message):
        from_pretrained(tmp_path)


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    _save(make_decoder(qk_norm=True, moe=MIXTURE), tmp_path, [2])
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    _weights(lambda tensors: tensors.pop(name))(tmp_path)
    with pytest.raises(FledgeError, match=rf"missing \['{name}'\]"):
        from_pretrained(tmp_path)


def test_router_biases_are_saved_and_transformers_reports_them_as_unexpected(tmp_path: Path) -> None:
    model = make_decoder(qk_norm=True, moe={**MIXTURE, "load_balancing": "bias", "bias_update_rate": 0.25})
    biases = [buffer for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")]
    for layer, bias in enumerate(biases):
        bias.copy_(torch.linspace(-0.1, 0.1, 5) + layer)
    again = from_pretrained(_save(model, tmp_path, [2]))
    assert again.config == model.config and len(biases) == 2
    left, right = model.state_dict(), again.state_dict()
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["unexpected_keys"]) == {f"model.layers.{n}.mlp.gate.e_score_correction_bias" for n in range(2)}
    assert not report["missing_keys"]


def test_a_missing_shard_of_an_index_is_named(tmp_path: Path) -> None:
    _written_by_transformers(tmp_path, "llama", False, torch.float32, "20KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    shards[1].unlink()
    with pytest.raises(FledgeError, match=shards[1].name):
        from_pretrained(tmp_path)


def test_a_loaded_model_trains(tmp_path: Path) -> None:
    model = from_pretrained(_save(make_decoder(), tmp_path, [2]))
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in model.parameters())
    model(random_tokens(1, 5)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_path_that_is_no_model_directory_is_named_with_the_way_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    for name, expected in (
        ("Owner/Model", "hf download Owner/Model"),
        ("nowhere", "there is no such folder"),
        ("model.safetensors", "this is a file, not a model directory"),
    ):
        with pytest.raises(FledgeError, match=expected):
            from_pretrained(name)
