"""GGUF's names of architectures, sizes and tensors for a model in Hugging Face's names."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fledge.errors import FledgeError
from fledge.export.source import ExportSource
from fledge.model.rope import SCALINGS
from fledge.recipe.schema import RopeScaling
from fledge.recipe.sections.model import SCALING_KEYS

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
FREQUENCY_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class GgufArchitecture:
    """An architecture of llama.cpp. `interleaved`: it rotates neighbouring dimensions of a head, where transformers rotates
    dimension i with i + half, so that the rows of query and key matrices change places."""

    name: str
    interleaved: bool = False


ARCHITECTURES = {
    "LlamaForCausalLM": GgufArchitecture("llama", interleaved=True),
    "MistralForCausalLM": GgufArchitecture("llama", interleaved=True),
    "Qwen2ForCausalLM": GgufArchitecture("qwen2"),
    "Qwen3ForCausalLM": GgufArchitecture("qwen3"),
}


# -- what can be exported -----------------------------------------------------------------------------------------------


def gguf_architecture(source: ExportSource) -> GgufArchitecture:
    """The architecture of a model. Raises FledgeError for one that is not in `ARCHITECTURES`, and for settings that llama.cpp
    does not compute in it."""
    where, found = str(source.folder / "config.json"), source.architecture
    if found not in ARCHITECTURES:
        kind = "a mixture of experts" if "Moe" in found or "num_experts" in source.config else "this architecture"
        raise FledgeError(
            f"{found}: {kind} is not exported to GGUF (covered: {', '.join(ARCHITECTURES)})",
            where=where,
            hint="export it with --to hf, and convert that directory with llama.cpp's own converter",
        )
    if problems := list(_differences(source.config)):
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
    rope = rope_settings(config)
    writer.add_rope_dimension_count(head_size(config))
    writer.add_rope_freq_base(rope["rope_theta"])
    ROPE_SCALING[rope["rope_type"]](writer, rope, config)


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
    size, theta = head_size(config), rope["rope_theta"]
    plain = theta ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    scaling = RopeScaling(**{name: rope[name] for name in ("rope_type", "factor", *SCALING_KEYS["llama3"])})
    return (plain / SCALINGS["llama3"](plain, theta, scaling)).float().numpy()


# -- tensors ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NamedTensor:
    """A tensor of the model: its name in GGUF, its name in Hugging Face's files, and the tensor [rows, row]."""

    name: str
    file_name: str
    tensor: Tensor


def named_tensors(source: ExportSource, architecture: GgufArchitecture) -> list[NamedTensor]:
    """The tensors of a model with their names in GGUF, a tied head left out. Raises FledgeError for a tensor that the
    architecture of llama.cpp does not have."""
    import gguf

    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    names = gguf.get_tensor_name_map(number, source.config["num_hidden_layers"])
    found = []
    for file_name, tensor in source.model.file_tensors().items():
        if file_name == HEAD and source.model.config.tie_word_embeddings:
            continue
        name = names.get_name(file_name, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise FledgeError(f"{architecture.name} of llama.cpp has no tensor for {file_name}", where=str(source.folder))
        found.append(NamedTensor(name, file_name, tensor))
    return found


def to_gguf(named: NamedTensor, architecture: GgufArchitecture, config: Mapping[str, Any]) -> Tensor:
    """The tensor as the file has it: of `interleaved` architectures, the rows of queries and keys in llama.cpp's order."""
    heads = _rotated_heads(named, architecture, config)
    if not heads:
        return named.tensor
    rows = named.tensor.reshape(heads, 2, -1, *named.tensor.shape[1:])
    return rows.transpose(1, 2).reshape(named.tensor.shape)


def from_gguf(values: Tensor, named: NamedTensor, architecture: GgufArchitecture, config: Mapping[str, Any]) -> Tensor:
    """The inverse of `to_gguf`."""
    heads = _rotated_heads(named, architecture, config)
    if not heads:
        return values
    rows = values.reshape(heads, -1, 2, *values.shape[1:])
    return rows.transpose(1, 2).reshape(values.shape)


def _rotated_heads(named: NamedTensor, architecture: GgufArchitecture, config: Mapping[str, Any]) -> int:
    """The heads of a matrix or bias of queries or keys whose rows change places; 0 for other tensors."""
    if not architecture.interleaved:
        return 0
    owner = named.file_name.split(".")[-2]
    return {"q_proj": config["num_attention_heads"], "k_proj": _key_value_heads(config)}.get(owner, 0)


def as_numpy(tensor: Tensor) -> np.ndarray:
    """The values in float32, rows contiguous."""
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()
