"""Model directories in the Hugging Face layout: what fledge writes loads in transformers, and the reverse.

A mixture of experts without shared ones is a Qwen3-MoE, with shared ones a Qwen2-MoE: of the architectures that
transformers has, these compute what `experts.py` does. In the files each expert has its own three matrices.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fledge.errors import FledgeError
from fledge.model.decoder import Decoder
from fledge.recipe.schema import ModelConfig, MoeConfig
from fledge.run.text_files import write_and_verify


@dataclass(frozen=True)
class Architecture:
    """What an architecture of transformers has beyond a plain decoder."""

    model_type: str
    qk_norm: bool = False
    experts: bool = False
    shared: bool = False


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture("llama"),
    "Qwen3ForCausalLM": Architecture("qwen3", qk_norm=True),
    "Qwen3MoeForCausalLM": Architecture("qwen3_moe", qk_norm=True, experts=True),
    "Qwen2MoeForCausalLM": Architecture("qwen2_moe", experts=True, shared=True),
}
STACKED = re.compile(r"(.*\.mlp\.experts)\.(gate_proj|up_proj|down_proj)")


def hf_config(model: Decoder, bos: int | None, eos: list[int], pad: int) -> dict[str, Any]:
    """config.json of the architecture that has the model's parts. RoPE is written in the old and the new place, because
    older readers take a default where they find only the new one."""
    config = model.config
    name, architecture = _architecture(config)
    return {
        "architectures": [name],
        "model_type": architecture.model_type,
        "vocab_size": model.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.hidden_size // config.num_attention_heads,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": False,
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
    wanted = (config.qk_norm, config.moe is not None, shared)
    for name, architecture in ARCHITECTURES.items():
        if (architecture.qk_norm, architecture.experts, architecture.shared) == wanted:
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
        keys |= {"shared_expert_intermediate_size": moe.num_shared_experts * config.intermediate_size, "qkv_bias": False}
    return keys


def _own_keys(config: ModelConfig) -> dict[str, Any]:
    """What training needs and the architectures have no name for."""
    own: dict[str, Any] = {"dropout": config.dropout}
    if config.moe is not None:
        own["moe"] = config.moe.model_dump(include={"load_balancing", "router_z_loss_coef", "bias_update_rate"})
    return own


def save_pretrained(
    model: Decoder, folder: Path, *, bos: int | None, eos: list[int], pad: int, weights: Mapping[str, Tensor] | None = None
) -> None:
    """Write config.json, generation_config.json and model.safetensors (float32): the model's own weights, or those of
    another state_dict of it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = hf_config(model, bos, eos, pad)
    write_and_verify(folder / "config.json", json.dumps(config, indent=1))
    generation = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
    write_and_verify(folder / "generation_config.json", json.dumps(generation, indent=1))
    tensors = _as_files(model.state_dict() if weights is None else weights)
    write_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def write_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """Write a safetensors file, and read it back: OSError where the disk has not kept what was written."""
    save_file(tensors, file, metadata={"format": "pt"})
    try:
        with safe_open(file, framework="pt") as written:
            same = all(torch.equal(_bytes(written.get_tensor(name)), _bytes(tensor)) for name, tensor in tensors.items())
    except SafetensorError as error:
        raise OSError(f"{file.name} cannot be read back: {error}") from error
    if not same:
        raise OSError(f"{file.name} reads back otherwise than it was written")


def _bytes(tensor: Tensor) -> Tensor:
    """As they are stored: NaN is not equal to itself, its bytes are."""
    return tensor.cpu().reshape(-1).view(torch.uint8)


def _as_files(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state_dict under the names of the files; matrices of experts are slices of their stack."""
    named: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        full = name if name.startswith("lm_head.") else f"model.{name}"
        if stack := STACKED.fullmatch(full):
            for expert, matrix in enumerate(tensor):
                named[f"{stack[1]}.{expert}.{stack[2]}.weight"] = matrix
        else:
            named[full] = tensor
    return named


def read_config(folder: Path) -> tuple[ModelConfig, int]:
    """The sizes and vocabulary of a model directory; FledgeError names what the native decoder does not cover."""
    path = folder / "config.json"
    if not path.exists():
        raise FledgeError("there is no config.json here: not a model directory", where=str(folder))
    raw = _read_json(path)
    architecture = (raw.get("architectures") or ["?"])[0]
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise FledgeError(f"the native decoder does not cover {architecture} (it covers {known})", where=str(path))
    rope = {**(raw.get("rope_parameters") or {}), **(raw.get("rope_scaling") or {})}  # new place, old place
    try:
        kind = ARCHITECTURES[architecture]
        odd = _not_covered(raw, rope, kind)
        if odd:
            raise FledgeError(f"the native decoder does not cover {', '.join(odd)}", where=str(path))
        return _sizes(raw, rope, kind), raw["vocab_size"]
    except KeyError as error:
        raise FledgeError(f"the key {error} is missing", where=str(path)) from None
    except ValidationError as error:
        problem = error.errors()[0]
        place = "".join(f"{key}: " for key in problem["loc"])
        raise FledgeError(place + problem["msg"].removeprefix("Value error, "), where=str(path)) from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FledgeError(f"not readable: {error}", where=str(path)) from None
    if not isinstance(raw, dict):
        raise FledgeError("not readable: it is not a JSON object", where=str(path))
    return raw


def _not_covered(raw: dict[str, Any], rope: dict[str, Any], kind: Architecture) -> list[str]:
    """What this configuration asks for and the native decoder does not compute. What it leaves out has the default of
    transformers."""
    plain: dict[str, Any] = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}
    if kind.experts:
        plain |= {"decoder_sparse_step": 1}
    odd = [f"{key} = {raw[key]}" for key, value in plain.items() if raw.get(key, value) != value]
    if kind.experts and raw.get("mlp_only_layers"):
        odd.append(f"mlp_only_layers = {raw['mlp_only_layers']}")
    if kind.shared and raw.get("qkv_bias", True):
        odd.append("qkv_bias = true")
    if kind.shared and raw["shared_expert_intermediate_size"] % raw["moe_intermediate_size"]:
        odd.append(
            f"shared_expert_intermediate_size = {raw['shared_expert_intermediate_size']}, which is not a multiple of "
            f"moe_intermediate_size = {raw['moe_intermediate_size']}"
        )
    layers = set(raw.get("layer_types") or []) - {"full_attention"}
    odd += [f"layer_types: {name}" for name in sorted(layers)]
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        odd.append(f"rope_type = {rope.get('rope_type', rope.get('type'))}")
    if raw.get("head_dim") not in (None, raw["hidden_size"] // raw["num_attention_heads"]):
        odd.append(f"head_dim = {raw['head_dim']}")
    if raw.get("use_sliding_window"):
        odd.append("use_sliding_window = true")
    return odd


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


def _sizes(raw: dict[str, Any], rope: dict[str, Any], kind: Architecture) -> ModelConfig:
    return ModelConfig(
        hidden_size=raw["hidden_size"],
        num_hidden_layers=raw["num_hidden_layers"],
        num_attention_heads=raw["num_attention_heads"],
        num_key_value_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
        intermediate_size=raw["moe_intermediate_size" if kind.experts else "intermediate_size"],
        max_position_embeddings=raw["max_position_embeddings"],
        rope_theta=rope.get("rope_theta", raw.get("rope_theta", 10_000.0)),
        rms_norm_eps=raw["rms_norm_eps"],
        qk_norm=kind.qk_norm,
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
        dropout=raw.get("fledge", {}).get("dropout", 0.0),
        initializer_range=raw.get("initializer_range", 0.02),
        moe=_mixture(raw, kind) if kind.experts else None,
    )


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return [folder / "model.safetensors"]
    files = _read_json(index).get("weight_map")
    if not isinstance(files, dict):
        raise FledgeError("the index has no weight_map", where=str(index))
    names = sorted({str(name) for name in files.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise FledgeError(f"the index names a file outside the directory: '{name}'", where=str(index))
    return [folder / name for name in names]


def from_pretrained(folder: str | Path, device: torch.device | str = "cpu") -> Decoder:
    """A model directory as a native decoder with float32 parameters.

    Raises FledgeError for missing or truncated files, and for tensors that are missing, surplus or of another shape.
    """
    folder = Path(folder)
    config, vocab_size = read_config(folder)
    model = Decoder(config, vocab_size)
    wanted = _as_files(model.state_dict())
    surplus = []
    for shard in _shards(folder):
        if not shard.exists():
            raise FledgeError("the weights are missing", where=str(shard))
        try:
            with safe_open(shard, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    if name not in wanted:
                        surplus.append(name)
                        continue
                    tensor = file.get_tensor(name)
                    target = wanted.pop(name)
                    if tensor.shape != target.shape:
                        raise FledgeError(f"{name} is {list(tensor.shape)}, expected {list(target.shape)}", where=str(shard))
                    with torch.no_grad():
                        target.copy_(tensor)
        except SafetensorError as error:
            raise FledgeError(f"the weights are damaged or truncated: {error}", where=str(shard)) from None
    surplus = [name for name in surplus if not (name == "lm_head.weight" and config.tie_word_embeddings)]
    if wanted or surplus:
        problem = f"missing {sorted(wanted)[:3]}" if wanted else f"unknown {sorted(surplus)[:3]}"
        raise FledgeError(f"the weights do not fit the configuration: {problem}", where=str(folder))
    return model.to(device)
