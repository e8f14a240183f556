"""Model directories in the Hugging Face layout: what fledge writes loads in transformers, and the reverse."""

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fledge.errors import FledgeError
from fledge.model.decoder import Decoder
from fledge.recipe.schema import ModelConfig

ARCHITECTURES = {"LlamaForCausalLM": False, "Qwen3ForCausalLM": True}  # name -> has QK-norm


def hf_config(model: Decoder, bos: int | None, eos: list[int], pad: int) -> dict[str, Any]:
    """config.json: a Llama, or a Qwen3 where there is QK-norm. RoPE is written in the old and the new place, because
    older readers take a default where they find only the new one."""
    config = model.config
    qwen = config.qk_norm
    return {
        "architectures": ["Qwen3ForCausalLM" if qwen else "LlamaForCausalLM"],
        "model_type": "qwen3" if qwen else "llama",
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
        "fledge": {"dropout": config.dropout},
    }


def save_model(model: Decoder, folder: Path, *, bos: int | None, eos: list[int], pad: int) -> None:
    """Write config.json, generation_config.json and model.safetensors (float32)."""
    folder.mkdir(parents=True, exist_ok=True)
    config = hf_config(model, bos, eos, pad)
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    generation = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1), encoding="utf-8")
    tensors = {_file_name(name): tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _file_name(name: str) -> str:
    return name if name.startswith("lm_head.") else f"model.{name}"


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
        odd = _not_covered(raw, rope)
        if odd:
            raise FledgeError(f"the native decoder does not cover {', '.join(odd)}", where=str(path))
        return _sizes(raw, rope, qk_norm=ARCHITECTURES[architecture]), raw["vocab_size"]
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


def _not_covered(raw: dict[str, Any], rope: dict[str, Any]) -> list[str]:
    """What this configuration asks for and the native decoder does not compute."""
    odd = [
        f"{key} = {raw[key]}"
        for key, plain in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu"))
        if raw.get(key, plain) != plain
    ]
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        odd.append(f"rope_type = {rope.get('rope_type', rope.get('type'))}")
    if raw.get("head_dim") not in (None, raw["hidden_size"] // raw["num_attention_heads"]):
        odd.append(f"head_dim = {raw['head_dim']}")
    if raw.get("use_sliding_window"):
        odd.append("use_sliding_window = true")
    return odd


def _sizes(raw: dict[str, Any], rope: dict[str, Any], qk_norm: bool) -> ModelConfig:
    return ModelConfig(
        hidden_size=raw["hidden_size"],
        num_hidden_layers=raw["num_hidden_layers"],
        num_attention_heads=raw["num_attention_heads"],
        num_key_value_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
        intermediate_size=raw["intermediate_size"],
        max_position_embeddings=raw["max_position_embeddings"],
        rope_theta=rope.get("rope_theta", raw.get("rope_theta", 10_000.0)),
        rms_norm_eps=raw["rms_norm_eps"],
        qk_norm=qk_norm,
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
        dropout=raw.get("fledge", {}).get("dropout", 0.0),
        initializer_range=raw.get("initializer_range", 0.02),
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


def load_model(folder: str | Path, device: torch.device | str = "cpu") -> Decoder:
    """A model directory as a native decoder with float32 parameters.

    Raises FledgeError for missing or truncated files, and for tensors that are missing, surplus or of another shape.
    """
    folder = Path(folder)
    config, vocab_size = read_config(folder)
    model = Decoder(config, vocab_size)
    wanted = {_file_name(name): tensor for name, tensor in model.state_dict().items()}
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
