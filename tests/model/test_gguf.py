"""GGUF files as models: equal logits, weights, tokens and stops; settings that no model here computes are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fledge
from fledge.errors import FledgeError
from fledge.export.comparison import CONVERSATIONS, TOKENISED
from fledge.model.adapter_files import write_adapter
from fledge.model.adapters import attach_adapter
from fledge.model.decoder import Decoder
from fledge.model.gguf.directory import gguf_directory
from fledge.model.hf_config import read_config
from fledge.model.loading import load_model
from fledge.model.locate import locate_model
from fledge.model.protocol import Adapter
from fledge.model.weight_files import weights_hash
from fledge.recipe.schema import AdapterConfig
from fledge.run.cache import cache_folder
from fledge.tokenizer import load_tokenizer
from tests.export.exporting import tokenizer, write_model
from tests.support.decoders import random_tokens

gguf = pytest.importorskip("gguf")
from tests.support.gguf_files import LEFT_OUT, export_gguf, rewrite  # noqa: E402 - it needs the package gguf

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 40}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama with an own head": {"tie_word_embeddings": False},
    "llama with biases": {"attention_bias": "qkvo"},
    "llama with wide heads": {"head_dim": 16, "num_key_value_heads": 1},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.5}},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    "yarn with a factor": {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
                         "attention_factor": 1.5, "beta_fast": 8.0, "beta_slow": 0.5},
    },
    "llama 3": {"rope_scaling": LLAMA3, "head_dim": 32, "rope_theta": 5e5},
    "llama 3 with other bounds": {
        "rope_scaling": {**LLAMA3, "low_freq_factor": 0.7, "high_freq_factor": 5.5}, "head_dim": 64, "rope_theta": 5e5,
    },
    "qwen2": {"attention_bias": "qkv", "rope_theta": 1e6, "rms_norm_eps": 1e-5},
    "qwen3": {"qk_norm": True, "head_dim": 16},
    "qwen3-moe": {"qk_norm": True, "moe": EXPERTS, "head_dim": 16},
    "qwen2-moe": {"moe": {**EXPERTS, "norm_topk_prob": False, "num_shared_experts": 2}, "attention_bias": "qkv"},
}  # fmt: skip
TOKENS = random_tokens(2, 60, vocab=300)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of this test."""
    monkeypatch.setenv("FLEDGE_CACHE", str(tmp_path / "cache"))


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().logits(model(TOKENS))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_comes_back_from_gguf_with_equal_logits_and_sizes(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "model", **FAMILIES[family])
    folder = gguf_directory(export_gguf(model, tmp_path / "out", monkeypatch))
    ours, again = load_model(model), load_model(folder)
    assert isinstance(again, Decoder)
    torch.testing.assert_close(_logits(again), _logits(ours), atol=2e-5, rtol=1e-5)
    if family not in ("llama 3 with other bounds", "qwen2-moe"):  # these have another description of the same model
        assert again.config == ours.config.model_copy(update={"initializer_range": 0.02, "moe": again.config.moe})
    assert read_config(folder)[1] == read_config(model)[1]


def test_half_precision_is_kept_in_the_files_and_quantised_weights_are_those_of_the_package_gguf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "model", qk_norm=True, hidden_size=64, intermediate_size=96)
    for weight_type in ("f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"):
        file = export_gguf(model, tmp_path / weight_type, monkeypatch, weight_type)
        stored = load_model(gguf_directory(file)).file_tensors()
        theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}["blk.1.ffn_down.weight"]
        expected = gguf.quants.dequantize(theirs.data, theirs.tensor_type)
        assert np.array_equal(stored["model.layers.1.mlp.down_proj.weight"].numpy(), expected), weight_type
    size = sum(path.stat().st_size for path in gguf_directory(tmp_path / "f16" / "model-F16.gguf").glob("*.safetensors"))
    assert size < 1.2 * (tmp_path / "f16" / "model-F16.gguf").stat().st_size


@pytest.mark.parametrize("template", ["chatml", "inst"])
def test_texts_and_conversations_have_the_tokens_of_the_tokenizer_that_wrote_them(
    tmp_path: Path, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = export_gguf(write_model(tmp_path / "model", template, qk_norm=True), tmp_path / "out", monkeypatch)
    ours, theirs = tokenizer(template), load_tokenizer(gguf_directory(file))
    for text in TOKENISED:
        assert theirs.encode(text) == ours.encode(text), text
        assert theirs.decode(theirs.encode(text)) == text
    for messages in CONVERSATIONS[::2]:
        assert theirs.encode_prompt(messages) == ours.encode_prompt(messages)
    assert (theirs.eot_id, theirs.eos_id, theirs.pad, theirs.stop_ids) == (ours.eot_id, ours.eos_id, ours.pad, ours.stop_ids)
    assert theirs.vocab_size == ours.vocab_size


def test_a_file_is_converted_once_and_again_where_its_content_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    file = export_gguf(write_model(tmp_path / "model", qk_norm=True), tmp_path / "out", monkeypatch)
    first = gguf_directory(file, lines.append)
    assert len(lines) == 1 and "converted once" in lines[0]
    copy = tmp_path / "blob"  # a name without an ending: the content says what it is
    copy.write_bytes(file.read_bytes())
    assert locate_model(str(copy), lines.append) == first and len(lines) == 1
    other = rewrite(file, tmp_path / "other.gguf", {"qwen3.rope.freq_base": 500.0})
    assert gguf_directory(other, lines.append) != first and len(lines) == 2
    assert sorted(path.parent.name for path in (cache_folder() / "models").glob("*/*/config.json")) == ["model-F32", "other"]


def test_a_model_is_loaded_chatted_with_and_exported_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_model(tmp_path / "model", qk_norm=True)
    file = export_gguf(model, tmp_path / "out", monkeypatch)
    assert fledge.load(file).chat("Hi", max_new_tokens=5) == fledge.load(model).chat("Hi", max_new_tokens=5)
    rewritten = rewrite(file, tmp_path / "licensed.gguf", {"general.license": "apache-2.0"})
    folder, _ = fledge.export.export_model(
        str(rewritten), to="hf", weight_type=None, out=str(tmp_path / "again"), log=lambda text: None
    )
    assert torch.equal(_logits(load_model(folder)), _logits(load_model(file.parent.parent / "model")))
    assert "apache-2.0" in (folder / "README.md").read_text()


@pytest.mark.parametrize(("architecture", "settings", "message"), [
    ("qwen3", {"general.architecture": "gemma3"}, "architecture gemma3 are not read"),
    ("llama", {"llama.expert_count": 8}, "llama with experts are not read"),
    ("llama", {"split.count": 3}, "one of 3 files that together are a model"),
    ("llama", {"general.type": "adapter"}, "holds no model but: adapter"),
    ("llama", {"llama.attention.sliding_window": 16}, r"does not compute llama\.attention\.sliding_window = 16"),
    ("llama", {"llama.rope.dimension_count": 4}, "of which 4 are rotated"),
    ("llama", {"llama.attention.value_length": 4}, "values of 4"),
    ("llama", {"llama.rope.scaling.type": "longrope"}, "scaled by longrope"),
    ("llama", {"llama.rope.scaling.type": "yarn"}, r"llama\.rope\.scaling\.factor is missing"),
    ("llama", {"llama.attention.layer_norm_rms_epsilon": LEFT_OUT}, "layer_norm_rms_epsilon is missing"),
    ("llama", {"llama.block_count": "2"}, r"block_count must be one whole number above zero \(it is 2\)"),
    ("llama", {"llama.block_count": 2**30}, "num_hidden_layers is larger than any model has"),
    ("llama", {"llama.block_count": 9000}, "describes .* parameters, and the tensors have"),
    ("llama", {"llama.block_count": 3}, r"missing \['blk\.2\."),
    ("llama", {"llama.block_count": 1}, r"unknown \['blk\.1\."),
    ("llama", {"llama.feed_forward_length": [48, 32]}, r"must be one whole number above zero \(it is \[48, 32\]\)"),
    ("llama", {"llama.attention.head_count": 3}, "key_length|multiple|settings say"),
    ("llama", {"llama.vocab_size": 299}, "the embedding has 300 rows"),
    ("llama", {"tokenizer.ggml.model": "llama"}, "SentencePiece"),
    ("llama", {"tokenizer.ggml.pre": "tekken"}, "pre-tokenizer 'tekken' of this file is not known"),
    ("llama", {"tokenizer.ggml.pre": LEFT_OUT}, "pre-tokenizer 'default'"),
    ("llama", {"tokenizer.ggml.tokens": LEFT_OUT}, "no tokenizer"),
    ("llama", {"tokenizer.ggml.eos_token_id": 300}, "eos_token_id is 300, and there are 300 tokens"),
    ("llama", {"tokenizer.ggml.merges": ["a b c"]}, "a merge joins two tokens"),
    ("llama", {"tokenizer.ggml.merges": ["zz qq"]}, "the merges do not fit the tokens"),
    ("llama", {"tokenizer.ggml.add_eos_token": "yes"}, "add_eos_token must be true or false"),
    ("llama", {"tokenizer.ggml.bos_token_id": LEFT_OUT, "tokenizer.ggml.add_bos_token": True}, "names no bos token"),
])  # fmt: skip
def test_settings_that_are_wrong_or_that_no_model_here_has_are_named(
    tmp_path: Path, architecture: str, settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "model", qk_norm=architecture == "qwen3")
    file = rewrite(export_gguf(model, tmp_path / "out", monkeypatch), tmp_path / "x.gguf", settings)
    with pytest.raises(FledgeError, match=message) as caught:
        gguf_directory(file)
    assert caught.value.where == str(file)
    assert not list((tmp_path / "cache").glob("models/*/*/"))


@pytest.mark.parametrize(("tensors", "message"), [
    ({"output_norm.weight": LEFT_OUT}, r"missing \['output_norm\.weight'\]"),
    ({"blk.0.attn_q.scale": np.ones(4, np.float32)}, r"unknown \['blk\.0\.attn_q\.scale'\]"),
    ({"output_norm.weight": np.ones(33, np.float32)}, r"output_norm\.weight is \[33\], and the settings say \[32\]"),
    ({"output_norm.weight": np.ones(32, np.int32)}, "has the type I32: fledge loads floating-point weights"),
    ({"rope_freqs.weight": np.array([1, 9, 1, 1], np.float32)}, "not the scaling of Llama 3"),
    ({"rope_freqs.weight": np.full(9, 2, np.float32)}, "not the scaling of Llama 3"),
    ({"rope_factors_long.weight": np.ones(4, np.float32)}, "rope_factors_long"),
])  # fmt: skip
def test_tensors_that_are_missing_surplus_or_of_another_shape_are_named(
    tmp_path: Path, tensors: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = export_gguf(write_model(tmp_path / "model"), tmp_path / "out", monkeypatch)
    with pytest.raises(FledgeError, match=message):
        gguf_directory(rewrite(file, tmp_path / "x.gguf", tensors=tensors))


def test_settings_that_are_not_known_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    file = export_gguf(write_model(tmp_path / "model"), tmp_path / "out", monkeypatch)
    gguf_directory(rewrite(file, tmp_path / "x.gguf", {"llama.new_thing": 3}), lines.append)
    assert "llama.new_thing" in lines[0]


def test_a_file_without_kinds_of_tokens_and_with_bos_has_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = export_gguf(write_model(tmp_path / "model"), tmp_path / "out", monkeypatch)
    settings = {"tokenizer.ggml.token_type": LEFT_OUT, "tokenizer.ggml.add_bos_token": True}
    own = load_tokenizer(gguf_directory(rewrite(file, tmp_path / "x.gguf", settings)))
    assert own.document_start == [own.bos_id] and own.encode("<|im_end|>") != [own.eot_id]


def test_a_recipe_trains_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = export_gguf(write_model(tmp_path / "model", qk_norm=True), tmp_path / "out", monkeypatch)
    rows = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "The fox."}] for n in range(12)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    recipe = {
        "name": "mine", "model": {"path": str(file)}, "generation_samples": {"prompts": []},
        "stages": {"sft": {"data": {"train": "chat.jsonl", "validation": 0, "max_seq_len": 64}, "duration": "3 steps",
                           "batch": {"micro_batch_size": 2}}},
    }  # fmt: skip
    run = fledge.train(recipe)
    assert fledge.load(run.path).max_positions == 128
    assert f"path: {file}" in (Path(run.path) / "recipe.yaml").read_text()
    file.unlink()
    assert fledge.train(recipe).path == run.path  # finished: the file is not needed any more


def test_an_adapter_on_a_file_finds_it_again_when_the_cache_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = export_gguf(write_model(tmp_path / "model"), tmp_path / "out", monkeypatch)
    base = gguf_directory(file)
    model = load_model(base)
    attach_adapter(model, Adapter(AdapterConfig(r=2), base, weights_hash(base)), 0)
    write_adapter(tmp_path / "adapter", model)
    shutil.rmtree(cache_folder())
    assert torch.equal(_logits(load_model(tmp_path / "adapter")), _logits(model))
    file.unlink()
    shutil.rmtree(cache_folder())
    with pytest.raises(FledgeError, match="the base model of this adapter is not there"):
        load_model(tmp_path / "adapter")
