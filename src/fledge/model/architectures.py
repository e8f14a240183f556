"""The architectures of transformers that the native decoder computes, and the settings of theirs that it does not compute."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Bias = Literal["none", "qkv", "qkvo"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """An architecture of transformers.

    `qk_norm`, `experts`, `shared`: whether it has query-key norms, routed and shared experts. `biases`: the values of
    `attention_bias` (as in the recipe) that it can have; of two, `bias_key` of config.json chooses the second with `true`.
    `window`: whether `sliding_window` is in use without `use_sliding_window`. `unrotated`: every how many layers one has no
    rotary positions, where config.json does not say; None: all layers have them. `defaults`: values of transformers for keys
    that a config.json may leave out.
    """

    model_type: str
    qk_norm: bool = False
    experts: bool = False
    shared: bool = False
    biases: tuple[Bias, ...] = ("none",)
    bias_key: str | None = None
    window: bool = False
    unrotated: int | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def attention_bias(self, raw: Mapping[str, Any]) -> Bias:
        """The attention bias that a config.json of this architecture describes."""
        return self.biases[bool(self.bias_key and raw.get(self.bias_key, False))]


OPTIONAL: tuple[Bias, ...] = ("none", "qkvo")
ARCHITECTURES = {
    "LlamaForCausalLM": Architecture(model_type="llama", biases=OPTIONAL, bias_key="attention_bias"),
    "Qwen2ForCausalLM": Architecture(model_type="qwen2", biases=("qkv",), defaults={"num_key_value_heads": 32}),
    "Qwen3ForCausalLM": Architecture(
        model_type="qwen3",
        qk_norm=True,
        biases=OPTIONAL,
        bias_key="attention_bias",
        defaults={"num_key_value_heads": 32, "head_dim": 128},
    ),
    "Qwen3MoeForCausalLM": Architecture(
        model_type="qwen3_moe",
        qk_norm=True,
        experts=True,
        biases=OPTIONAL,
        bias_key="attention_bias",
        defaults={"num_key_value_heads": 4},
    ),
    "Qwen2MoeForCausalLM": Architecture(
        model_type="qwen2_moe",
        experts=True,
        shared=True,
        biases=("none", "qkv"),
        bias_key="qkv_bias",
        defaults={"num_key_value_heads": 16, "qkv_bias": True},
    ),
    "MistralForCausalLM": Architecture(
        model_type="mistral", window=True, defaults={"num_key_value_heads": 8, "sliding_window": 4096}
    ),
    "SmolLM3ForCausalLM": Architecture(
        model_type="smollm3",
        biases=OPTIONAL,
        bias_key="attention_bias",
        unrotated=4,
        defaults={"num_key_value_heads": 4, "tie_word_embeddings": True, "rope_theta": 2_000_000.0},
    ),
}
"""By their names in config.json. A model is saved as the first one that has its parts: a Mistral as a Llama."""


def not_covered(raw: Mapping[str, Any], rope: Mapping[str, Any], kind: Architecture) -> list[str]:
    """Settings of a configuration that the native decoder does not compute, in words. `rope`: its section of rotations."""
    plain: dict[str, Any] = {"mlp_bias": False, "hidden_act": "silu"}
    if kind.experts:
        plain |= {"decoder_sparse_step": 1}
    differences = [f"{key} = {raw[key]}" for key, value in plain.items() if raw.get(key, value) != value]
    if kind.experts and raw.get("mlp_only_layers"):
        differences.append(f"mlp_only_layers = {raw['mlp_only_layers']}")
    if kind.shared and raw["shared_expert_intermediate_size"] % raw["moe_intermediate_size"]:
        differences.append(
            f"shared_expert_intermediate_size = {raw['shared_expert_intermediate_size']}, which is not a multiple of "
            f"moe_intermediate_size = {raw['moe_intermediate_size']}"
        )
    return differences + _windows(raw, kind) + _rotary(raw, rope, kind)


def _windows(raw: Mapping[str, Any], kind: Architecture) -> list[str]:
    """Layers that do not see the whole text. A window of the longest text and more hides nothing."""
    differences = [f"layer_types: {name}" for name in sorted(set(raw.get("layer_types") or []) - {"full_attention"})]
    if raw.get("use_sliding_window"):
        differences.append("use_sliding_window = true")
    window = raw.get("sliding_window")
    if kind.window and window is not None and window < raw["max_position_embeddings"]:
        differences.append(f"sliding_window = {window}")
    return differences


def _rotary(raw: Mapping[str, Any], rope: Mapping[str, Any], kind: Architecture) -> list[str]:
    """Positions that are not rotated as the decoder rotates them."""
    differences = []
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ("default", "linear", "llama3", "yarn"):
        differences.append(f"rope_type = {rope_type}")
    if any(isinstance(value, dict) for value in rope.values()):
        differences.append("rope_parameters of several kinds of layers")
    for key, place in (("partial_rotary_factor", raw), ("partial_rotary_factor", rope)):
        if place.get(key, 1.0) != 1:
            differences.append(f"{key} = {place[key]}")
    if kind.unrotated is not None:
        every, layers = raw.get("no_rope_layer_interval", kind.unrotated), raw["num_hidden_layers"]
        rotated = raw.get("no_rope_layers") or [int((layer + 1) % every > 0) for layer in range(layers)]
        if not all(rotated):
            differences.append(f"{rotated.count(0)} of {layers} layers without rotary positions (no_rope_layers)")
    return differences
