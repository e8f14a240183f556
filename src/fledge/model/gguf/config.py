"""The settings of a GGUF file as config.json of a Hugging Face directory."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fledge.errors import FledgeError
from fledge.model.gguf.architectures import ARCHITECTURES
from fledge.model.gguf.header import GgufHeader
from fledge.model.gguf.rope import rope_settings

UNUSED: dict[str, tuple[Any, ...]] = {  # settings that no model here has, and the values that mean "not used"
    "attention.sliding_window": (0,), "attention.scale": (0.0,), "attention.clamp_kqv": (0.0,), "attention.causal": (True,),
    "attention.max_alibi_bias": (0.0,), "attention.layer_norm_epsilon": (), "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,), "logit_scale": (0.0, 1.0), "residual_scale": (0.0, 1.0), "embedding_scale": (0.0, 1.0),
    "leading_dense_block_count": (0,), "expert_gating_func": (0, 1), "expert_weights_scale": (0.0, 1.0),
    "expert_group_count": (0, 1), "use_parallel_residual": (False,), "nextn_predict_layers": (0,),
    "interleave_moe_layer_step": (0, 1), "rope.dimension_sections": (), "pooling_type": (0,),
}  # fmt: skip
READ = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count", "vocab_size",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    "rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear",
    "rope.scaling.original_context_length", "rope.scaling.attn_factor", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow", "rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.finetuned",
    "expert_count", "expert_used_count", "expert_feed_forward_length", "expert_shared_feed_forward_length",
    "expert_weights_norm",
}  # fmt: skip


class Sizes:
    """The settings of a file's own architecture, by their names without its prefix. The methods raise FledgeError for a setting
    that is missing without a default, or of another type."""

    def __init__(self, header: GgufHeader) -> None:
        self.header = header
        self.prefix = f"{header.architecture}."

    def error(self, what: str, hint: str | None = None) -> FledgeError:
        """An error about the file."""
        return FledgeError(what, where=str(self.header.file), hint=hint)

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a setting; of a list with one value for each layer that value, if all are equal."""
        value = self.header.settings.get(self.prefix + name)
        if isinstance(value, list) and value and all(each == value[0] for each in value):
            value = value[0]
        if value is None and default is None:
            raise self.error(f"the setting {self.prefix}{name} is missing")
        return default if value is None else value

    def has(self, name: str) -> bool:
        """Whether the file has a setting."""
        return self.prefix + name in self.header.settings

    def whole(self, name: str, default: int | None = None) -> int:
        """A whole number above zero."""
        value = self.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(f"{self.prefix}{name} must be one whole number above zero (it is {str(value)[:60]})")
        return value

    def real(self, name: str, default: float | None = None) -> float:
        """A finite number. Those of 32 bits are read as the shortest decimal that they stand for: 1e-05."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise self.error(f"{self.prefix}{name} must be a number (it is {str(value)[:60]})")
        short = float(str(np.float32(value)))
        return short if float(np.float32(value)) == value else float(value)


def gguf_config(header: GgufHeader) -> dict[str, Any]:
    """config.json of the model in a file. Raises FledgeError for an architecture or a setting that fledge does not compute, and
    for settings that are missing or contradict each other or the tensors."""
    sizes = Sizes(header)
    name = _class_name(header, sizes)
    _check_unused(sizes)
    heads, hidden = sizes.whole("attention.head_count"), sizes.whole("embedding_length")
    if not sizes.has("attention.key_length") and hidden % heads:
        raise sizes.error(f"an embedding_length of {hidden} is no multiple of {heads} heads, and there is no key_length")
    head = sizes.whole("attention.key_length", hidden // heads)
    value = sizes.whole("attention.value_length", head)
    rotated = sizes.whole("rope.dimension_count", head)
    if value != head or rotated != head:
        raise sizes.error(
            f"heads of {head} dimensions, of which {rotated} are rotated, with values of {value}: fledge computes equal ones"
        )
    positions = sizes.whole("context_length")
    rope = rope_settings(sizes, head, positions)
    return {
        "architectures": [name],
        "vocab_size": _vocabulary(sizes),
        "hidden_size": hidden,
        "intermediate_size": sizes.whole("feed_forward_length", sizes.get("expert_feed_forward_length", 0) or None),
        "num_hidden_layers": sizes.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": sizes.whole("attention.head_count_kv", heads),
        "head_dim": head,
        "hidden_act": "silu",
        "max_position_embeddings": positions,
        "rms_norm_eps": sizes.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": rope["rope_theta"],
        "rope_parameters": rope,
        **({} if rope["rope_type"] == "default" else {"rope_scaling": {k: v for k, v in rope.items() if k != "rope_theta"}}),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        **_biases(header, name),
        **_experts(sizes, name),
        "torch_dtype": "float32",
        "dtype": "float32",
    }


def _class_name(header: GgufHeader, sizes: Sizes) -> str:
    """The class of transformers that computes what llama.cpp does for this file."""
    kind = header.settings.get("general.type", "model")
    if kind != "model":
        raise sizes.error(f"this GGUF file holds no model but: {kind}")
    if header.settings.get("split.count", 1) not in (0, 1):
        hint = "join the files with llama.cpp's llama-gguf-split --merge, and name the result"
        raise sizes.error(f"this is one of {header.settings['split.count']} files that together are a model", hint)
    found = [name for name, each in ARCHITECTURES.items() if each.name == header.architecture]
    mixture = bool(header.settings.get(f"{header.architecture}.expert_count"))
    if not found or mixture != (ARCHITECTURES[found[0]].norm_topk_prob is not None):
        what = f"{header.architecture} with experts" if found and mixture else header.architecture
        names = ", ".join(dict.fromkeys(each.name for each in ARCHITECTURES.values()))
        raise sizes.error(
            f"GGUF files of the architecture {what} are not read (covered: {names})",
            "convert it once with transformers: from_pretrained(folder, gguf_file=name, quantization_config="
            "GgufConfig(dequantize=True)), then save_pretrained, the tokenizer too; and name that folder",
        )
    biases = {part for part in "qkv" if f"blk.0.attn_{part}.bias" in header.tensors}
    if header.architecture == "llama" and biases and "blk.0.attn_output.bias" not in header.tensors:
        return "Qwen2ForCausalLM"  # a Llama with these biases; rows are brought into transformers' order by the file's own name
    return found[0]


def _check_unused(sizes: Sizes) -> None:
    for name, neutral in UNUSED.items():
        value = sizes.header.settings.get(sizes.prefix + name)
        if value is not None and value not in neutral:
            raise sizes.error(f"fledge does not compute {sizes.prefix}{name} = {str(value)[:60]}")


def unknown_settings(header: GgufHeader) -> list[str]:
    """The settings of the file's architecture that are not read here."""
    prefix = f"{header.architecture}."
    names = (name.removeprefix(prefix) for name in header.settings if name.startswith(prefix))
    return [prefix + name for name in names if name not in READ and name not in UNUSED]


def _vocabulary(sizes: Sizes) -> int:
    """The rows of the embedding. The list of tokens has one name for each of them."""
    table = sizes.header.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise sizes.error("the file has no embedding: the tensor token_embd.weight is missing or no matrix")
    rows, said = table.shape[0], sizes.whole("vocab_size", table.shape[0])
    tokens = sizes.header.settings.get("tokenizer.ggml.tokens", [])
    if said != rows or (tokens and len(tokens) != rows):
        raise sizes.error(
            f"the embedding has {rows:,} rows, {sizes.prefix}vocab_size says {said:,}, and there are {len(tokens):,} tokens"
        )
    return rows


def _biases(header: GgufHeader, name: str) -> dict[str, Any]:
    has_bias = "blk.0.attn_q.bias" in header.tensors
    keys = {"Qwen2ForCausalLM": {}, "Qwen2MoeForCausalLM": {"qkv_bias": has_bias}}
    return keys.get(name, {"attention_bias": has_bias})


def _experts(sizes: Sizes, name: str) -> Mapping[str, Any]:
    norm = ARCHITECTURES[name].norm_topk_prob
    if norm is None:
        return {}
    if bool(sizes.get("expert_weights_norm", norm)) != norm:
        raise sizes.error(f"llama.cpp does not follow {sizes.prefix}expert_weights_norm = {not norm} in this architecture")
    keys: dict[str, Any] = {
        "num_experts": sizes.whole("expert_count"),
        "num_experts_per_tok": sizes.whole("expert_used_count"),
        "moe_intermediate_size": sizes.whole("expert_feed_forward_length"),
        "norm_topk_prob": norm,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    shared = sizes.header.tensors.get("blk.0.ffn_gate_shexp.weight")
    if shared is not None:
        keys["shared_expert_intermediate_size"] = sizes.whole("expert_shared_feed_forward_length", shared.shape[0])
    return keys
