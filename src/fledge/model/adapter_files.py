"""Directories of adapters in PEFT's format: adapter_config.json and adapter_model.safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from fledge.errors import FledgeError, first_line
from fledge.model.adapters import adapter_weights, lora_layers
from fledge.model.hf_config import read_json_object
from fledge.model.locate import SOURCE, locate_named
from fledge.model.protocol import ADAPTER_MATRICES, Adapter, LanguageModel
from fledge.model.weight_files import check_file, check_finite, check_type, read_tensors
from fledge.model.weights import write_tensors
from fledge.recipe.schema import AdapterConfig
from fledge.recipe.sections.adapter import ALL_LINEAR
from fledge.run.text_files import write_and_verify

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."  # of the names in the file
BASE = "fledge_base.json"  # which weights the adapter was trained on; in a file of its own, since PEFT warns of unknown keys
FIELDS = tuple(AdapterConfig.model_fields)
NEUTRAL: dict[str, tuple[Any, ...]] = {  # settings of PEFT that fledge does not compute, and the values that mean "not used"
    "bias": ("none",), "fan_in_fan_out": (False,), "layers_to_transform": (None,), "layer_replication": (None,),
    "trainable_token_indices": (None,), "target_parameters": (None, []), "exclude_modules": (None, []), "lora_bias": (False,),
    "alora_invocation_tokens": (None,), "use_qalora": (False,), "megatron_config": (None,), "loftq_config": (None, {}),
    "arrow_config": (None,), "corda_config": (None,), "use_bdlora": (None, False), "monteclora_config": (None,),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}  # fmt: skip


def is_adapter(folder: Path) -> bool:
    """Whether a directory holds an adapter."""
    return (folder / CONFIG).exists()


def read_adapter_config(folder: Path) -> Adapter:
    """The settings of an adapter directory. Raises FledgeError for a kind of adapter or a setting that fledge does not have."""
    file = folder / CONFIG
    raw = read_json_object(file)
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise FledgeError(f"an adapter of the kind {kind}, which fledge does not have: only LORA", where=str(file))
    used = [f"{key} = {raw[key]}" for key, values in NEUTRAL.items() if raw.get(key, values[0]) not in values]
    if used:
        raise FledgeError(f"the adapter uses what fledge does not compute: {', '.join(used)}", where=str(file))
    values = {key: raw[key] for key in FIELDS if raw.get(key) is not None}
    try:
        config = AdapterConfig.model_validate(values)
    except ValidationError as error:
        raise FledgeError(f"not readable: {first_line(error)}", where=str(file)) from None
    base = raw.get("base_model_name_or_path")
    written = read_json_object(folder / BASE).get("weights_hash") if (folder / BASE).exists() else None
    return Adapter(config, Path(base) if base else None, None if written is None else str(written))


def find_base(folder: Path, base: Path | None) -> Path:
    """The directory of an adapter's base model: as written, or beside the adapter. Raises FledgeError if it is not there."""
    candidates = [] if base is None else [base, folder / base, folder.parent / base.name]
    found = next((path for path in candidates if (path / "config.json").exists()), None) or _converted_again(folder)
    if found is None:
        raise FledgeError(
            f"the base model of this adapter is not there: {base or 'adapter_config.json does not name it'}",
            where=str(folder),
            hint=f"put it there, or write its directory as base_model_name_or_path into {folder / CONFIG}",
        )
    return found


def _converted_again(folder: Path) -> Path | None:
    """The base model of an adapter that was trained on a GGUF file, whose converted copy is gone; None for other adapters."""
    written = read_json_object(folder / BASE) if (folder / BASE).exists() else {}
    file = Path(str(written.get("source", "")))
    return locate_named(file) if file.is_file() else None


def write_adapter(folder: Path, model: LanguageModel, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write the adapter of a model, or `weights` of equal names and shapes instead of its own. Raises OSError if reading back
    gives other bytes than were written."""
    assert model.adapter is not None
    folder.mkdir(parents=True, exist_ok=True)
    config, base = model.adapter.config, model.adapter.base
    settings = config.model_dump(mode="json")
    if config.target_modules == ALL_LINEAR:
        settings["target_modules"] = sorted({name.rpartition(".")[2] for name, _ in lora_layers(model)})
    content = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None if base is None else str(base),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        **settings,
        "modules_to_save": config.modules_to_save or None,
    }
    write_and_verify(folder / CONFIG, json.dumps(content, indent=1))
    if model.adapter.base_hash is not None:
        source = {} if base is None or not (base / SOURCE).exists() else {"source": read_json_object(base / SOURCE).get("path")}
        write_and_verify(folder / BASE, json.dumps({"weights_hash": model.adapter.base_hash, **source}))
    named = adapter_weights(model) if weights is None else weights
    write_tensors({file_name(model, name): tensor.contiguous() for name, tensor in named.items()}, folder / WEIGHTS)


def file_name(model: LanguageModel, name: str) -> str:
    """The name in the file of a trained parameter."""
    end = ".weight" if name.rpartition(".")[2] in ADAPTER_MATRICES else ""
    return f"{PREFIX}{model.file_name(name)}{end}"


def load_adapter_weights(model: LanguageModel, folder: Path, finite: bool = True) -> None:
    """Copy the weights of an adapter directory into the adapter of a model. Raises FledgeError for tensors that are missing,
    surplus, of another shape or of integers, and, if `finite`, for values that are not finite."""
    file = folder / WEIGHTS
    if not file.exists() and (folder / PICKLED).exists():
        what = f"there is only {PICKLED}, a pickle, which fledge does not load because it can run code"
        hint = "load the adapter with PEFT and save it again, which writes safetensors"
        raise FledgeError(what, where=str(folder), hint=hint)
    check_file(file)
    missing = {file_name(model, name): tensor for name, tensor in adapter_weights(model).items()}
    surplus: list[str] = []
    for name, tensor in read_tensors(file):
        target = missing.pop(name, None)
        if target is None:
            surplus.append(name)
            continue
        if tensor.shape != target.shape:
            what = f"{name} is {list(tensor.shape)}, expected {list(target.shape)}"
            raise FledgeError(what, where=str(file), hint="the adapter has another rank, or belongs to another base model")
        check_type(name, tensor, file)
        if finite:
            check_finite(name, tensor, file)
        target.copy_(tensor)
    if missing or surplus:
        problem = f"missing {sorted(missing)[:3]}" if missing else f"unknown {sorted(surplus)[:3]}"
        raise FledgeError(f"the adapter does not fit the model: {problem}", where=str(file))
