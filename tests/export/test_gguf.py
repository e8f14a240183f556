"""GGUF files: llama.cpp computes and tokenises as fledge does; what cannot be right is refused with the reason."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import normalizers, pre_tokenizers

from fledge.errors import FledgeError
from fledge.export import export_model, llama_cpp
from fledge.export.comparison import TOKENISED
from fledge.export.gguf_architecture import (
    ModelTensor,
    frequency_factors,
    from_gguf,
    gguf_architecture,
    to_gguf,
)
from fledge.export.gguf_file import left_in_f16, plan_types
from fledge.export.gguf_vocabulary import CONTROL, NORMAL, UNUSED, gguf_vocabulary, without_generation_tags
from fledge.export.modelfile import find_template, modelfile
from fledge.export.source import load_source
from fledge.export.weight_types import WEIGHT_TYPES
from fledge.model.gguf.architectures import ARCHITECTURES
from tests.export.exporting import tokenizer, write_model

gguf = pytest.importorskip("gguf")


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


def silent(text: str) -> None:
    """Log nothing."""


def tensor(name: str, file_name: str, values: torch.Tensor) -> ModelTensor:
    """A tensor of one part."""
    return ModelTensor(name, {file_name: values}, tuple(values.shape))


def export(model: Path, out: Path, weight_type: str | None = None) -> list[str]:
    """The lines of an export to GGUF."""
    return export_model(str(model), to="gguf", weight_type=weight_type, out=str(out), log=silent)[1]


@pytest.mark.parametrize(("changes", "weight_type"), [
    ({"qk_norm": True, "tie_word_embeddings": True}, "f16"), ({"qk_norm": False, "tie_word_embeddings": False}, "f32"),
    ({"qk_norm": False, "hidden_size": 64, "intermediate_size": 96}, "q4_0"),
    ({"qk_norm": True, "hidden_size": 64, "intermediate_size": 32, "moe": EXPERTS}, "q8_0"),
    ({"qk_norm": False, "hidden_size": 64, "intermediate_size": 32, "attention_bias": "qkv",
      "moe": {**EXPERTS, "norm_topk_prob": False, "num_shared_experts": 2}}, "f16"),
    ({"rope_scaling": {**YARN, "attention_factor": 1.3}}, "f32"),
])  # fmt: skip
@pytest.mark.slow
def test_llama_cpp_computes_and_tokenises_as_fledge_does(tmp_path: Path, changes: dict[str, object], weight_type: str) -> None:
    pytest.importorskip("xllamacpp")
    lines = export(write_model(tmp_path / "model", **changes), tmp_path / "out", weight_type)
    assert any(line.startswith("llama.cpp against fledge") for line in lines)
    assert lines[-1] == f"equal tokens in llama.cpp: {len(TOKENISED)} texts, 3 conversations"
    assert (tmp_path / "out" / "Modelfile").exists() and (tmp_path / "out" / "README.md").exists()


@pytest.mark.slow
def test_a_wrong_order_of_rows_is_noticed_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xllamacpp")
    model = write_model(tmp_path / "model", qk_norm=False, initializer_range=1.0)
    monkeypatch.setattr("fledge.export.gguf_file.to_gguf", lambda named, architecture, config: named.tensor)
    monkeypatch.setattr("fledge.export.gguf_file.from_gguf", lambda values, named, architecture, config: values)
    with pytest.raises(FledgeError, match="other log-probabilities"):
        export(model, tmp_path / "out", "f32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_without_llama_cpp_the_file_is_said_to_be_unverified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: None)
    lines = export(write_model(tmp_path / "model", qk_norm=True), tmp_path / "out")
    assert lines[-1] == llama_cpp.NOT_VERIFIED
    file = gguf.GGUFReader(next((tmp_path / "out").glob("*.gguf")))
    assert file.fields["general.architecture"].contents() == "qwen3"
    assert file.fields["tokenizer.ggml.pre"].contents() == "qwen2"
    assert "generation %}" not in file.fields["tokenizer.chat_template"].contents()


@pytest.mark.parametrize("shape", [(32, 24), (32,)])
def test_the_order_of_rows_is_undone(shape: tuple[int, ...]) -> None:
    named = tensor("x", "model.layers.0.self_attn.q_proj.weight", torch.randn(shape))
    config = {"num_attention_heads": 4}
    written = to_gguf(named, ARCHITECTURES["LlamaForCausalLM"], config)
    assert not torch.equal(written, named.tensor)
    assert torch.equal(from_gguf(written, named, ARCHITECTURES["LlamaForCausalLM"], config), named.tensor)
    assert torch.equal(to_gguf(named, ARCHITECTURES["Qwen3ForCausalLM"], config), named.tensor)


def test_the_factors_of_llama_3_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256, "rope_theta": 500_000.0}  # fmt: skip
    sizes = {"hidden_size": 256, "num_attention_heads": 2, "max_position_embeddings": 2048}
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(**sizes, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
    plain = 500_000.0 ** (-torch.arange(0, 128, 2) / 128)
    factors = frequency_factors({**sizes, "rope_parameters": rope})
    assert factors is not None
    torch.testing.assert_close(torch.tensor(factors), plain / scaled, rtol=1e-5, atol=1e-5)


# -- types --------------------------------------------------------------------------------------------------------------


def planned(rows: int, weight_type: str) -> list[str]:
    """The types of a tied embedding with 64 weights in a row, a matrix with `rows`, and a vector."""
    tensors = [
        tensor("a", "model.embed_tokens.weight", torch.zeros(8, 64)),
        tensor("b", "model.layers.0.mlp.down_proj.weight", torch.zeros(8, rows)),
        tensor("c", "model.norm.weight", torch.zeros(64)),
    ]
    return [stored.type_name for stored in plan_types(tensors, WEIGHT_TYPES[weight_type], tied=True)]


def test_head_matrices_and_vectors_have_their_types() -> None:
    assert planned(64, "q4_0") == ["q8_0", "q4_0", "f32"]
    assert planned(64, "bf16") == ["bf16", "bf16", "f32"]


def test_rows_that_32_does_not_divide_stay_in_f16_and_are_counted() -> None:
    assert planned(48, "q4_0") == ["q8_0", "f16", "f32"]
    tensors = [tensor("b", "x.weight", torch.zeros(8, 48)), tensor("c", "y.weight", torch.zeros(8, 64))]
    kept = left_in_f16(plan_types(tensors, WEIGHT_TYPES["q8_0"], tied=False), WEIGHT_TYPES["q8_0"])
    assert kept is not None and kept.startswith("1 matrices stay in F16") and "48" in kept


def test_a_model_without_a_row_that_32_divides_is_refused() -> None:
    with pytest.raises(FledgeError, match=r"no matrix can be quantised.*have 48"):
        plan_types([tensor("b", "x.weight", torch.zeros(8, 48))], WEIGHT_TYPES["q8_0"], tied=False)


@pytest.mark.parametrize(("changes", "reason"), [
    ({"architectures": ["Gemma3ForCausalLM"]}, "this architecture is not exported"),
    ({"architectures": ["MixtralForCausalLM"]}, "this architecture is not exported"),
    ({"architectures": ["Qwen3MoeForCausalLM"], "norm_topk_prob": False}, "norm_topk_prob = false"),
    ({"architectures": ["Qwen2MoeForCausalLM"], "norm_topk_prob": True}, "norm_topk_prob = true"),
    ({"architectures": ["Qwen3MoeForCausalLM"], "norm_topk_prob": True, "mlp_only_layers": [0]}, "layers without experts"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.5, "mscale_all_dim": 0.3}}, r"mscale = 0\.5"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "truncate = false"),
    ({"layer_types": ["sliding_attention"]}, "layer_types"), ({"hidden_act": "gelu"}, "hidden_act"),
    ({"rope_scaling": {"rope_type": "longrope"}}, "longrope"),
    ({"sliding_window": 4, "use_sliding_window": True}, "sliding_window"),
])  # fmt: skip
def test_what_llama_cpp_does_not_compute_is_refused(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    source = load_source(str(write_model(tmp_path / "model", qk_norm=True)), silent)
    gguf_architecture(source)
    source.config.update(changes)
    with pytest.raises(FledgeError, match=reason):
        gguf_architecture(source)


# -- vocabulary ---------------------------------------------------------------------------------------------------------


def test_the_vocabulary_has_types_for_all_rows() -> None:
    own = tokenizer()
    found = gguf_vocabulary(own, own.vocab_size + 2, Path("model"))
    assert found.types.count(UNUSED) == 2 and found.types.count(CONTROL) == 3
    assert found.types.count(NORMAL) == own.vocab_size - 3
    assert (found.pre_tokenizer, found.eos, found.eot) == ("qwen2", own.eot_id, own.eot_id)
    assert not found.add_bos and "<|endoftext|>" in found.notes[-1]
    assert len(set(found.tokens)) == own.vocab_size + 2
    assert found.merges == [" ".join(merge) for merge in json.loads(own.core.to_str())["model"]["merges"]]


def test_an_unknown_pre_tokenizer_and_a_normalizer_are_refused() -> None:
    own = tokenizer()
    own.core.normalizer = normalizers.NFC()
    assert any("NFC" in note for note in gguf_vocabulary(own, own.vocab_size, Path("model")).notes)
    own.core.normalizer = normalizers.Lowercase()
    with pytest.raises(FledgeError, match="Lowercase"):
        gguf_vocabulary(own, own.vocab_size, Path("model"))
    own = tokenizer()
    own.core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(use_regex=False)])
    with pytest.raises(FledgeError, match=r"no pre-tokenizer of llama.cpp is known"):
        gguf_vocabulary(own, own.vocab_size, Path("model"))


def test_generation_tags_become_conditions_that_keep_blanks() -> None:
    text = without_generation_tags("a {%- generation -%} b {% endgeneration %} c {%generation%}d{%- endgeneration %}")
    assert text == "a {%- if true -%} b {% endif %} c {% if true %}d{%- endif %}"


# -- Modelfile ----------------------------------------------------------------------------------------------------------


def test_a_modelfile_has_file_stops_and_the_template_of_chatml() -> None:
    text, about = modelfile("m.gguf", tokenizer(), 64)
    assert text.startswith("FROM ./m.gguf\nPARAMETER num_ctx 64\n") and "ChatML" in about
    assert 'PARAMETER stop "<|im_end|>"' in text and "{{- range .Messages }}<|im_start|>{{ .Role }}" in text


def test_a_template_that_is_not_known_is_left_out_and_said() -> None:
    own = tokenizer("inst")
    assert find_template(own) is None
    text, about = modelfile("m.gguf", own, 64)
    assert "\nTEMPLATE" not in text and "no TEMPLATE" in about
