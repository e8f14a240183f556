"""GGUF's names of architectures, sizes and tensors for a model in Hugging Face's names."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fledge.errors import FledgeError
from fledge.export.source import ExportSource
from fledge.model.gguf.architectures import (
    ARCHITECTURES,
    HEAD,
    GgufArchitecture,
    interleave,
    rotated_heads,
    undo_interleave,
)
from fledge.model.gguf.names import named_tensors
from fledge.model.gguf.rope import llama3_factors
from fledge.model.rope import yarn_attention_factor

# -- what can be exported -----------------------------------------------------------------------------------------------


def gguf_architecture(source: ExportSource) -> GgufArchitecture:
    """The architecture of a model. Raises FledgeError for one that is not in `ARCHITECTURES`, and for settings that llama.cpp
    does not compute in it."""
    where, found = str(source.folder / "config.json"), source.architecture
    if found not in ARCHITECTURES:
        raise FledgeError(
            f"{found}: this architecture is not exported to GGUF (covered: {', '.join(ARCHITECTURES)})",
            where=where,
            hint="export it with --to hf, and convert that directory with llama.cpp's own converter",
        )
    if problems := [*_differences(source.config), *_other_experts(source.config, ARCHITECTURES[found])]:
        raise FledgeError(
            f"llama.cpp does not compute {', '.join(problems)} in the architecture {ARCHITECTURES[found].name}", where=where
        )
    return ARCHITECTURES[found]


def _differences(config: Mapping[str, Any]) -> Iterator[str]:
    """Settings that the architectures of llama.cpp do not have."""
    if config.get("hidden_act", "silu") != "silu":
        yield f"hidden_act = {config['hidden_act']}"
    layers = set(config.get("layer_types") or []) - {"full_attention"}
    yield from (f"layer_types: {name}" for name in sorted(layers))
    window = config.get("sliding_window")
    uses_window = config.get("use_sliding_window", config.get("model_type") == "mistral")
    if window is not None and uses_window and window < config["max_position_embeddings"]:
        yield f"sliding_window = {window}"
    rope = rope_settings(config)
    if rope["rope_type"] not in ROPE_SCALING:
        yield f"rope_type = {rope['rope_type']}"
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0) != 1.0:
        yield "partial_rotary_factor"
    if rope["rope_type"] == "yarn":
        yield from (f"{key} = {rope[key]}" for key in ("mscale", "mscale_all_dim") if rope.get(key))
        yield from ("truncate = false",) if rope.get("truncate") is False else ()


def _other_experts(config: Mapping[str, Any], architecture: GgufArchitecture) -> Iterator[str]:
    """Settings of a mixture of experts that its architecture fixes otherwise."""
    if architecture.norm_topk_prob is None:
        return
    if config.get("norm_topk_prob", False) != architecture.norm_topk_prob:
        yield f"norm_topk_prob = {str(not architecture.norm_topk_prob).lower()}"
    if config.get("decoder_sparse_step", 1) != 1 or config.get("mlp_only_layers"):
        yield "layers without experts"


# -- sizes --------------------------------------------------------------------------------------------------------------


def rope_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the rotary embedding, from the new and the old place, with `rope_type` and `rope_theta`."""
    rope = {**(config.get("rope_parameters") or {}), **(config.get("rope_scaling") or {})}
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10_000.0
    return {**rope, "rope_type": rope.get("rope_type", rope.get("type", "default")), "rope_theta": float(theta)}


def head_size(config: Mapping[str, Any]) -> int:
    """The dimensions of an attention head."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _key_value_heads(config: Mapping[str, Any]) -> int:
    return config.get("num_key_value_heads") or config["num_attention_heads"]


def write_sizes(writer: Any, config: Mapping[str, Any], vocab_size: int) -> None:
    """Write the sizes of the architecture into a GGUFWriter."""
    writer.add_vocab_size(vocab_size)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(_key_value_heads(config))
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if "num_experts_per_tok" in config:
        _write_experts(writer, config)
    rope = rope_settings(config)
    writer.add_rope_dimension_count(head_size(config))
    writer.add_rope_freq_base(rope["rope_theta"])
    ROPE_SCALING[rope["rope_type"]](writer, rope, config)


def _write_experts(writer: Any, config: Mapping[str, Any]) -> None:
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if "shared_expert_intermediate_size" in config:
        writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])


def _unscaled(writer: Any, rope: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Nothing: no scaling, or factors in a tensor of their own (`frequency_factors`)."""


def _linear(writer: Any, rope: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    from gguf import RopeScalingType

    writer.add_rope_scaling_type(RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(float(rope["factor"]))


def _yarn(writer: Any, rope: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    from gguf import RopeScalingType

    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(float(rope["factor"]))
    if rope.get("attention_factor"):  # llama.cpp multiplies the usual one by this
        writer.add_rope_scaling_attn_factors(float(rope["attention_factor"]) / yarn_attention_factor(float(rope["factor"])))
    original = rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
    writer.add_rope_scaling_orig_ctx_len(original)
    if rope.get("beta_fast"):
        writer.add_rope_scaling_yarn_beta_fast(float(rope["beta_fast"]))
    if rope.get("beta_slow"):
        writer.add_rope_scaling_yarn_beta_slow(float(rope["beta_slow"]))


ROPE_SCALING: dict[str, Callable[[Any, Mapping[str, Any], Mapping[str, Any]], None]] = {
    "default": _unscaled,
    "linear": _linear,
    "yarn": _yarn,
    "llama3": _unscaled,
}


def frequency_factors(config: Mapping[str, Any]) -> np.ndarray | None:
    """What llama.cpp divides the frequencies of the rotary embedding by, [head size ÷ 2], for the scaling of Llama 3; None for
    other models."""
    rope = rope_settings(config)
    if rope["rope_type"] != "llama3":
        return None
    return llama3_factors(rope, rope["rope_theta"], head_size(config))


# -- tensors ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelTensor:
    """A tensor of the file: its name in GGUF, the matrices or the vector that it consists of by their names in Hugging Face's
    files (more than one: of all experts), and its shape."""

    name: str
    parts: Mapping[str, Tensor]
    shape: tuple[int, ...]

    @property
    def file_name(self) -> str:
        """The name of the first part."""
        return next(iter(self.parts))

    @property
    def tensor(self) -> Tensor:
        """The values, [rows, row] or [experts, rows, row]."""
        parts = list(self.parts.values())
        return parts[0].reshape(self.shape) if len(parts) == 1 else torch.stack(parts)


def model_tensors(source: ExportSource, architecture: GgufArchitecture) -> list[ModelTensor]:
    """The tensors of a model with their names in GGUF, a tied head left out. Raises FledgeError for a tensor that the
    architecture of llama.cpp does not have."""
    tensors = source.model.file_tensors()
    if architecture.needs_head:
        tensors.setdefault(HEAD, source.model.lm_head_weight.detach())
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    found, unknown = named_tensors(
        shapes, architecture, source.config["num_hidden_layers"], has_tied_head(source, architecture)
    )
    if unknown:
        raise FledgeError(f"{architecture.name} of llama.cpp has no tensor for {unknown[0]}", where=str(source.folder))
    return [ModelTensor(each.name, {name: tensors[name] for name in each.file_names}, each.shape) for each in found]


def has_tied_head(source: ExportSource, architecture: GgufArchitecture) -> bool:
    """Whether the head of the file is its embedding."""
    return source.model.config.tie_word_embeddings and not architecture.needs_head


def to_gguf(named: ModelTensor, architecture: GgufArchitecture, config: Mapping[str, Any]) -> Tensor:
    """The tensor as the file has it: of `interleaved` architectures, the rows of queries and keys in llama.cpp's order."""
    heads = _rotated_heads(named, architecture, config)
    return interleave(named.tensor, heads) if heads else named.tensor


def from_gguf(values: Tensor, named: ModelTensor, architecture: GgufArchitecture, config: Mapping[str, Any]) -> Tensor:
    """The inverse of `to_gguf`."""
    heads = _rotated_heads(named, architecture, config)
    return undo_interleave(values, heads) if heads else values


def _rotated_heads(named: ModelTensor, architecture: GgufArchitecture, config: Mapping[str, Any]) -> int:
    return rotated_heads(named.file_name, architecture, config["num_attention_heads"], _key_value_heads(config))


def as_numpy(tensor: Tensor) -> np.ndarray:
    """The values in float32, rows contiguous."""
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()
