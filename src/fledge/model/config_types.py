"""The types and bounds of the keys of config.json that fledge reads, checked once, when the file is read."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from fledge.errors import FledgeError

LARGEST = {
    "vocab_size": 2**26, "num_hidden_layers": 10_000, "max_position_embeddings": 2**31,
    "original_max_position_embeddings": 2**31, "num_experts": 2**16,
}  # fmt: skip
LARGEST_SIZE = 2**24  # of every other size
SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
    "moe_intermediate_size", "shared_expert_intermediate_size", "max_position_embeddings", "head_dim", "num_experts",
    "num_local_experts", "num_experts_per_tok", "original_max_position_embeddings", "no_rope_layer_interval",
)  # fmt: skip
SWITCHES = (
    "tie_word_embeddings", "attention_bias", "mlp_bias", "norm_topk_prob", "qkv_bias", "use_sliding_window",
)  # fmt: skip
NUMBERS = ("rms_norm_eps", "rope_theta", "initializer_range", "router_aux_loss_coef", "sliding_window", "partial_rotary_factor")
ROPE_NUMBERS = (
    "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "attention_factor", "beta_fast", "beta_slow", "mscale",
    "mscale_all_dim", "original_max_position_embeddings", "partial_rotary_factor",
)  # fmt: skip
SECTIONS = ("rope_parameters", "rope_scaling", "fledge")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 and math.isfinite(value)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


KINDS: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (SIZES, lambda value: isinstance(value, int) and not isinstance(value, bool) and value > 0, "a whole number above zero"),
    (SWITCHES, lambda value: isinstance(value, bool), "true or false"),
    (NUMBERS, _is_number, "a number"),
    (SECTIONS, lambda value: isinstance(value, dict), "a mapping"),
    (("architectures", "layer_types"), _texts, "a list of texts"),
    (("hidden_act", "model_type"), lambda value: isinstance(value, str), "a text"),
    (("mlp_only_layers", "no_rope_layers"), lambda value: isinstance(value, list), "a list"),
)


def check_config_types(raw: Mapping[str, Any], where: str) -> None:
    """Raise FledgeError, with the key, for a value of another type than the architectures have, or a size beyond all bounds.

    A key that is missing or null passes; `read_config` says which ones it needs.
    """
    for names, fits, kind in KINDS:
        for name in names:
            value = raw.get(name)
            if value is not None and not fits(value):
                raise FledgeError(f"{name} must be {kind} (it is {value!r:.60})", where=where)
    for name in SIZES:
        if (raw.get(name) or 0) > LARGEST.get(name, LARGEST_SIZE):
            raise FledgeError(f"{name} is larger than any model has ({raw[name]!r:.60})", where=where)
    for section in ("rope_parameters", "rope_scaling"):
        given = raw.get(section) or {}
        for name in ROPE_NUMBERS:
            if given.get(name) is not None and not _is_number(given[name]):
                raise FledgeError(f"{section}.{name} must be a number (it is {given[name]!r:.60})", where=where)
        for name in ("rope_type", "type"):
            if not isinstance(given.get(name, ""), str):
                raise FledgeError(f"{section}.{name} must be a text (it is {given[name]!r:.60})", where=where)
    own = (raw.get("fledge") or {}).get("moe")
    if own is not None and not isinstance(own, dict):
        raise FledgeError(f"fledge.moe must be a mapping (it is {own!r:.60})", where=where)
