"""config.json of a Hugging Face model directory: written from the recipe's sizes, and read back to them.

A mixture of experts without shared ones is a Qwen3-MoE, with shared ones a Qwen2-MoE: of the architectures that
transformers has, these compute what `moe.py` does.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fledge.errors import FledgeError, first_line
from fledge.model.architectures import ARCHITECTURES, Architecture, not_covered
from fledge.model.config_types import check_config_types
from fledge.recipe.schema import ModelConfig, MoeConfig, RopeScaling
from fledge.recipe.sections.model import SCALING_KEYS
from fledge.run.directory import resolve_model_path
from fledge.run.file_kinds import model_file_hint
from fledge.run.input_files import check_regular_file, hub_name_error

MAX_JSON_BYTES = 2**26  # of config.json and of an index of weights
LANGUAGE_MODEL, CLASSIFIER = "ForCausalLM", "ForSequenceClassification"  # ends of the names of architectures
TRANSFORMERS_HINT = "set model.implementation to auto or transformers: the library transformers may compute it"


class NotCoveredError(FledgeError):
    """A model directory is sound, but the native decoder does not compute its architecture or one of its settings."""


# -- writing ------------------------------------------------------------------------------------------------------------


def hf_config(
    config: ModelConfig, vocab_size: int, *, bos: int | None, eos: list[int], pad: int, is_reward_model: bool = False
) -> dict[str, Any]:
    """config.json of the architecture that has the parts of a decoder of these sizes. RoPE is written in the old and the
    new place, because older readers take a default where they find only the new one. A reward model is a classifier with one
    label."""
    name, architecture = _architecture(config)
    scaling = _scaling_keys(config.rope_scaling)
    if is_reward_model:
        name = name.removesuffix(LANGUAGE_MODEL) + CLASSIFIER
    return {
        "architectures": [name],
        **({"id2label": {"0": "reward"}, "label2id": {"reward": 0}} if is_reward_model else {}),
        "model_type": architecture.model_type,
        "vocab_size": vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", **scaling, "rope_theta": config.rope_theta},
        **({"rope_scaling": scaling} if scaling else {}),
        "tie_word_embeddings": config.tie_word_embeddings,
        **({architecture.bias_key: config.attention_bias != "none"} if architecture.bias_key else {}),
        "mlp_bias": False,
        "initializer_range": config.initializer_range,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "torch_dtype": "float32",
        "dtype": "float32",
        **({} if config.moe is None else _mixture_keys(config, config.moe)),
        "fledge": _own_keys(config),
    }


def _architecture(config: ModelConfig) -> tuple[str, Architecture]:
    shared = config.moe is not None and config.moe.num_shared_experts > 0
    features = (config.qk_norm, config.moe is not None, shared)
    for name, architecture in ARCHITECTURES.items():
        same = (architecture.qk_norm, architecture.experts, architecture.shared) == features
        if same and config.attention_bias in architecture.biases:
            return name, architecture
    raise AssertionError(f"the schema lets no such model pass: {config}")


def _mixture_keys(config: ModelConfig, moe: MoeConfig) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.num_experts_per_tok,
        "moe_intermediate_size": config.intermediate_size,
        "norm_topk_prob": moe.norm_topk_prob,
        "router_aux_loss_coef": moe.router_aux_loss_coef,
        "output_router_logits": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
    }
    if moe.num_shared_experts:
        keys["shared_expert_intermediate_size"] = moe.num_shared_experts * config.intermediate_size
    return keys


def _scaling_keys(scaling: RopeScaling | None) -> dict[str, Any]:
    if scaling is None:
        return {}
    names = ("factor", *SCALING_KEYS[scaling.rope_type])
    return {"rope_type": scaling.rope_type, **{name: value for name in names if (value := getattr(scaling, name)) is not None}}


def _own_keys(config: ModelConfig) -> dict[str, Any]:
    """The settings for training that the architectures of transformers have no name for."""
    own: dict[str, Any] = {"dropout": config.dropout}
    if config.moe is not None:
        own["moe"] = config.moe.model_dump(include={"load_balancing", "router_z_loss_coef", "bias_update_rate"})
    return own


# -- reading ------------------------------------------------------------------------------------------------------------


def read_config(folder: Path) -> tuple[ModelConfig, int]:
    """Sizes and vocabulary of a model directory for the native decoder. Raises NotCoveredError, with the unsupported settings,
    if the decoder does not cover the model, and FledgeError if config.json is missing or not readable."""
    path = folder / "config.json"
    raw = read_config_json(folder)
    check_config_types(raw, str(path))
    architecture = (raw.get("architectures") or ["?"])[0]
    if architecture.endswith(CLASSIFIER):
        architecture = architecture.removesuffix(CLASSIFIER) + LANGUAGE_MODEL
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        what = f"the native decoder does not cover {architecture} (it covers {known})"
        raise NotCoveredError(what, where=str(path), hint=TRANSFORMERS_HINT)
    kind = ARCHITECTURES[architecture]
    raw = {key: value for key, value in {**kind.defaults, **raw}.items() if value is not None}  # null: no default either
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}  # old place, new place: as transformers chooses
    try:
        differences = not_covered(raw, rope, kind)
        if differences:
            what = f"the native decoder does not cover {', '.join(differences)}"
            raise NotCoveredError(what, where=str(path), hint=TRANSFORMERS_HINT)
        return _sizes(raw, rope, kind), raw["vocab_size"]
    except (TypeError, AttributeError, OverflowError, ZeroDivisionError) as error:
        raise FledgeError(f"a value has an unexpected type: {first_line(error)}", where=str(path)) from None
    except KeyError as error:
        raise FledgeError(f"the key {error} is missing", where=str(path)) from None
    except ValidationError as error:
        problem = error.errors()[0]
        key = "".join(f"{name}: " for name in problem["loc"])
        raise FledgeError(key + problem["msg"].removeprefix("Value error, "), where=str(path)) from None


def is_classifier(folder: Path) -> bool:
    """Whether the model in a directory is a classifier of texts, as reward models are. Raises FledgeError for one with several
    labels, and as `read_config_json`."""
    raw = read_config_json(folder)
    check_config_types(raw, str(folder / "config.json"))
    architecture = str((raw.get("architectures") or ["?"])[0])
    if not architecture.endswith(CLASSIFIER):
        return False
    given = raw.get("id2label")
    labels = len(given) if isinstance(given, dict) else raw.get("num_labels", 2)  # 2: transformers' default
    if labels != 1:
        raise FledgeError(
            f"this {architecture} tells {labels} classes apart, and a reward model gives one number",
            where=str(folder / "config.json"),
            hint="name a model with one label (num_labels 1)",
        )
    return True


def read_config_json(folder: Path) -> dict[str, Any]:
    """The content of a model directory's config.json. Raises FledgeError if it is missing or not readable."""
    path = folder / "config.json"
    if not folder.exists():
        missing = FledgeError("there is no such folder", where=str(folder), hint="check model.path and init_from of the stages")
        raise hub_name_error(folder) or missing
    if folder.is_file():
        raise FledgeError("this is a file, not a model directory", where=str(folder), hint=model_file_hint(folder))
    if not path.exists():
        model = resolve_model_path(str(folder))  # raises FledgeError for what is neither a run nor a model
        raise FledgeError("this is not a model directory but holds one", where=str(folder), hint=f"write {model}")
    return read_json_object(path)


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file; FledgeError for anything else."""
    try:
        check_regular_file(path)
        if not path.exists():
            raise FledgeError("this file is missing", where=str(path))
        if path.stat().st_size > MAX_JSON_BYTES:
            raise FledgeError(f"not readable: it is larger than {MAX_JSON_BYTES >> 20} MiB", where=str(path))
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FledgeError(f"cannot read: {error.strerror or error}", where=str(path)) from None
    except (ValueError, RecursionError) as error:
        raise FledgeError(f"not readable: {first_line(error)}", where=str(path)) from None
    if not isinstance(raw, dict):
        raise FledgeError("not readable: it is not a JSON object", where=str(path))
    return raw


def _mixture(raw: dict[str, Any], kind: Architecture) -> MoeConfig:
    size, own = raw["moe_intermediate_size"], raw.get("fledge", {}).get("moe", {})
    weights = {} if own.get("load_balancing") == "bias" else {"router_aux_loss_coef": raw.get("router_aux_loss_coef", 0.001)}
    return MoeConfig(
        num_experts=raw["num_experts"] if "num_experts" in raw else raw["num_local_experts"],
        num_experts_per_tok=raw["num_experts_per_tok"],
        num_shared_experts=raw["shared_expert_intermediate_size"] // size if kind.shared else 0,
        norm_topk_prob=raw.get("norm_topk_prob", False),
        **{**weights, **own},
    )


def _rope_scaling(raw: dict[str, Any], rope: dict[str, Any]) -> RopeScaling | None:
    """The scaling that a configuration describes. Its original length may stand in three places (`standardize_rope_params` of
    transformers)."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    length = raw.get("original_max_position_embeddings", rope.get("original_max_position_embeddings"))
    lengths = {"original_max_position_embeddings": length or raw["max_position_embeddings"]}
    keys = SCALING_KEYS[kind]
    factor = rope["factor"]
    if factor is None and kind == "yarn":
        factor = raw["max_position_embeddings"] / lengths["original_max_position_embeddings"]
    given = {**rope, **lengths, "factor": factor}
    return RopeScaling(rope_type=kind, **{name: given[name] for name in ("factor", *keys) if given.get(name) is not None})


def _sizes(raw: dict[str, Any], rope: dict[str, Any], kind: Architecture) -> ModelConfig:
    heads, head = raw["num_attention_heads"], raw.get("head_dim")
    return ModelConfig(
        hidden_size=raw["hidden_size"],
        num_hidden_layers=raw["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=raw.get("num_key_value_heads", heads),
        head_dim=None if head is not None and head * heads == raw["hidden_size"] else head,
        attention_bias=kind.attention_bias(raw),
        intermediate_size=raw["moe_intermediate_size" if kind.experts else "intermediate_size"],
        max_position_embeddings=raw["max_position_embeddings"],
        rope_theta=rope.get("rope_theta", raw.get("rope_theta", 10_000.0)),
        rope_scaling=_rope_scaling(raw, rope),
        rms_norm_eps=raw["rms_norm_eps"],
        qk_norm=kind.qk_norm,
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
        dropout=raw.get("fledge", {}).get("dropout", 0.0),
        initializer_range=raw.get("initializer_range", 0.02),
        moe=_mixture(raw, kind) if kind.experts else None,
    )
