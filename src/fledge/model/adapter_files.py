"""Directories of adapters in PEFT's format: adapter_config.json and adapter_model.safetensors."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from fledge.errors import FledgeError, first_line
from fledge.model.adapters import adapter_weights, lora_layers
from fledge.model.hf_config import read_json_object
from fledge.model.locate import SOURCE, locate_named
from fledge.model.protocol import ADAPTER_MATRICES, Adapter, LanguageModel
from fledge.model.quantization import quantization_of
from fledge.model.weight_files import HEAD, check_file, check_finite, check_type, read_tensors, weights_hash
from fledge.model.weights import write_tensors
from fledge.recipe.schema import AdapterConfig, QuantizationConfig
from fledge.recipe.sections.adapter import ALL_LINEAR, LORA, PREFIX
from fledge.run.text_files import write_and_verify

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
TYING = "ensure_weight_tying"  # of PEFT: whether a trained embedding stays the head
FILE_PREFIX = "base_model.model."  # of the names in the file
BASE = "fledge_base.json"  # the base's weights and place; in a file of its own, since PEFT warns of unknown keys
FIELDS = tuple(AdapterConfig.model_fields)
PREFIX_TENSOR = "prompt_embeddings"
CLASSIFIER_TASK, SCORE = "SEQ_CLS", "score"  # PEFT's name of the task of reward models, and the head that is trained whole
CLASSIFIER_HEADS = ("classifier", SCORE)  # what PEFT names in `modules_to_save` of every such adapter
NEUTRAL: dict[str, tuple[Any, ...]] = {  # settings of PEFT that fledge does not compute, and the values that mean "not used"
    "bias": ("none",), "fan_in_fan_out": (False,), "layers_to_transform": (None,), "layer_replication": (None,),
    "trainable_token_indices": (None,), "target_parameters": (None, []), "exclude_modules": (None, []), "lora_bias": (False,),
    "alora_invocation_tokens": (None,), "use_qalora": (False,), "megatron_config": (None,), "loftq_config": (None, {}),
    "arrow_config": (None,), "corda_config": (None,), "use_bdlora": (None, False), "monteclora_config": (None,),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}  # fmt: skip

NEUTRAL_OF_PREFIX: dict[str, tuple[Any, ...]] = {"num_transformer_submodules": (1, None), "modules_to_save": (None, [])}
READ: dict[str, tuple[tuple[str, ...], dict[str, tuple[Any, ...]]]] = {  # of a kind: keys that are read; and neutral values
    LORA: (tuple(name for name in FIELDS if name not in ("peft_type", "num_virtual_tokens")), NEUTRAL),
    PREFIX: (("num_virtual_tokens",), NEUTRAL_OF_PREFIX),
}


DEFAULTS: dict[str, dict[str, Any]] = {LORA: {"r": 8, "lora_alpha": 8}}
"""What PEFT takes for a key that is absent from a file, where it is not what a recipe takes."""


def is_adapter(folder: Path) -> bool:
    """Whether a directory holds an adapter."""
    return (folder / CONFIG).exists()


def gives_rewards(folder: Path) -> bool:
    """Whether an adapter directory is one of a reward model, whose head it holds."""
    return read_json_object(folder / CONFIG).get("task_type") == CLASSIFIER_TASK


def read_adapter_config(folder: Path) -> Adapter:
    """The settings of an adapter directory. Raises FledgeError for a kind of adapter or a setting that fledge does not have."""
    file = folder / CONFIG
    raw = read_json_object(file)
    kind = raw.get("peft_type")
    if kind not in READ:
        what = f"an adapter of the kind {kind}, which fledge does not have: only {' and '.join(READ)}"
        raise FledgeError(what, where=str(file))
    keys, neutral = READ[kind]
    used = [f"{key} = {raw[key]}" for key, values in neutral.items() if raw.get(key, values[0]) not in values]
    if used:
        raise FledgeError(f"the adapter uses what fledge does not compute: {', '.join(used)}", where=str(file))
    if kind == LORA and raw.get("target_modules") is None:  # PEFT then takes a list of its own for each architecture
        raise FledgeError(
            "it has no target_modules", where=str(file), hint="write the names of the layers that have an adapter"
        )
    values = {"peft_type": kind, **DEFAULTS.get(kind, {}), **{key: raw[key] for key in keys if raw.get(key) is not None}}
    try:
        config = AdapterConfig.model_validate(values)
    except ValidationError as error:
        raise FledgeError(f"not readable: {first_line(error)}", where=str(file)) from None
    config = with_score(config) if raw.get("task_type") == CLASSIFIER_TASK else config
    base = raw.get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise FledgeError(f"base_model_name_or_path is no text: {base}", where=str(file))
    record = _record(folder)
    written, quantization = record.get("weights_hash"), record.get("quantization")
    try:
        quantized = None if quantization is None else QuantizationConfig.model_validate(quantization)
    except ValidationError as error:
        raise FledgeError(f"quantization is not readable: {first_line(error)}", where=str(folder / BASE)) from None
    return Adapter(config, Path(base) if base else None, None if written is None else str(written), quantized)


def with_score(config: AdapterConfig) -> AdapterConfig:
    """The settings of an adapter that trains the head of a reward model, too."""
    whole = [name for name in config.modules_to_save if name not in CLASSIFIER_HEADS]
    return config.model_copy(update={"modules_to_save": [*whole, SCORE]})


def find_base(folder: Path, adapter: Adapter) -> Path:
    """The directory of an adapter's base model: the one that is written, the one at the place that it had then relative to the
    adapter, or one of its name beside the adapter. Where several of these are models: the first one with the
    weights that the adapter was trained on. Raises FledgeError if none is there."""
    written = _record(folder).get("path")
    candidates = [] if written is None else [folder / str(written)]
    if adapter.base is not None:
        candidates = [adapter.base, *candidates, folder / adapter.base, folder.parent / adapter.base.name]
    found: dict[Path, Path] = {}
    for path in candidates:
        if _is_model(path):
            found.setdefault(path.resolve(), path)
    places = list(found.values()) or _converted_again(folder)
    if not places:
        raise FledgeError(
            f"the base model of this adapter is not there: {adapter.base or 'adapter_config.json does not name it'}",
            where=str(folder),
            hint=f"put it there, or write its directory as base_model_name_or_path into {folder / CONFIG}",
        )
    if len(places) == 1 or adapter.base_hash is None:
        return places[0]
    return next((path for path in places if _has_weights(path, adapter.base_hash)), places[0])


def _is_model(folder: Path) -> bool:
    """Whether a directory holds a model and may be read."""
    try:
        return (folder / "config.json").is_file()
    except (OSError, ValueError):  # of another user, too long, or no path
        return False


def _has_weights(folder: Path, expected: str) -> bool:
    """Whether a model directory has the weights with this hash."""
    try:
        return weights_hash(folder) == expected
    except FledgeError:
        return False


def _record(folder: Path) -> dict[str, Any]:
    """What fledge has written about the base of an adapter; empty for an adapter of PEFT."""
    return read_json_object(folder / BASE) if (folder / BASE).exists() else {}


def _converted_again(folder: Path) -> list[Path]:
    """The base model of an adapter that was trained on a GGUF file, whose converted copy is gone; empty for other adapters."""
    file = Path(str(_record(folder).get("source", "")))
    return [locate_named(file)] if file.is_file() else []


def write_adapter(folder: Path, model: LanguageModel, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write the adapter of a model, or `weights` of equal names and shapes instead of its own. Raises OSError if reading back
    gives other bytes than were written."""
    assert model.adapter is not None
    folder.mkdir(parents=True, exist_ok=True)
    config, base = model.adapter.config, model.adapter.base
    content = {
        "peft_type": config.peft_type,
        "task_type": _task_type(model),
        "base_model_name_or_path": None if base is None else str(base),
        "inference_mode": True,
        **SETTINGS[config.peft_type](model, config),
    }
    tied = _tied_table(model)
    if tied is not None:
        content[TYING] = True
    write_and_verify(folder / CONFIG, json.dumps(content, indent=1))
    quantization = quantization_of(model) or model.adapter.quantization
    if model.adapter.base_hash is not None or quantization is not None:
        path = None if base is None else os.path.relpath(base.resolve(), folder.resolve())
        source = {} if base is None or not (base / SOURCE).exists() else {"source": read_json_object(base / SOURCE).get("path")}
        rounded = {} if quantization is None else {"quantization": quantization.model_dump()}
        record = {"weights_hash": model.adapter.base_hash, "path": path, **source, **rounded}
        write_and_verify(folder / BASE, json.dumps(record))
    named = adapter_weights(model) if weights is None else weights
    tensors = {file_name(model, name): tensor.contiguous() for name, tensor in named.items()}
    if tied is not None:
        tensors[FILE_PREFIX + HEAD] = tensors[tied].clone()
    write_tensors(tensors, folder / WEIGHTS)


def _task_type(model: LanguageModel) -> str:
    if model.score_weight is not None:
        return CLASSIFIER_TASK
    return "CAUSAL_LM" if model.decoder_start is None else "SEQ_2_SEQ_LM"


def _lora_settings(model: LanguageModel, config: AdapterConfig) -> dict[str, Any]:
    """The keys of PEFT's LoraConfig."""
    settings = config.model_dump(mode="json", include=set(READ[LORA][0]))
    if config.target_modules == ALL_LINEAR:
        settings["target_modules"] = sorted({name.rpartition(".")[2] for name, _ in lora_layers(model)})
    fixed = {"bias": "none", "fan_in_fan_out": False, "init_lora_weights": True}
    return {**fixed, **settings, "modules_to_save": config.modules_to_save or None}


def _prefix_settings(model: LanguageModel, config: AdapterConfig) -> dict[str, Any]:
    """The keys of PEFT's PrefixTuningConfig."""
    sizes = model.config
    return {
        "num_virtual_tokens": config.num_virtual_tokens,
        "num_layers": sizes.num_hidden_layers,
        "num_attention_heads": sizes.num_key_value_heads,
        "token_dim": sizes.num_key_value_heads * sizes.head_size,
        "num_transformer_submodules": 1,
        "prefix_projection": False,
    }


SETTINGS: dict[str, Callable[[LanguageModel, AdapterConfig], dict[str, Any]]] = {LORA: _lora_settings, PREFIX: _prefix_settings}


def _tied_table(model: LanguageModel) -> str | None:
    """The name in the file of a trained embedding that is the head too. PEFT has it twice then, and ties the two only if the
    settings say so."""
    if model.score_weight is not None:
        return None
    for name, parameter in model.named_parameters():
        if parameter is model.lm_head_weight and parameter.requires_grad and model.parameter_role(name) == "embedding":
            return file_name(model, name)
    return None


def file_name(model: LanguageModel, name: str) -> str:
    """The name in the file of a trained parameter."""
    if name.rpartition(".")[2] == PREFIX_TENSOR:
        return PREFIX_TENSOR
    end = ".weight" if name.rpartition(".")[2] in ADAPTER_MATRICES else ""
    return f"{FILE_PREFIX}{model.file_name(name)}{end}"


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
    tied = _tied_table(model)
    if tied is not None:
        _check_tied(folder, {FILE_PREFIX + HEAD, tied})
    surplus: list[str] = []
    for name, tensor in read_tensors(file):
        if tied is not None and name == FILE_PREFIX + HEAD:
            continue
        target = missing.pop(name, None)
        if target is None:
            surplus.append(name)
            continue
        if tensor.shape != target.shape:
            raise _shape_error(name, tensor, target, file)
        check_type(name, tensor, file)
        if finite:
            check_finite(name, tensor, file)
        target.copy_(tensor)
    if missing or surplus:
        problem = f"missing {sorted(missing)[:3]}" if missing else f"unknown {sorted(surplus)[:3]}"
        raise FledgeError(f"the adapter does not fit the model: {problem}", where=str(file))


def _check_tied(folder: Path, names: set[str]) -> None:
    """FledgeError for an adapter whose embedding and head are two tables, while they are one in the model."""
    tables = [tensor for name, tensor in read_tensors(folder / WEIGHTS) if name in names]
    same = len(tables) == 2 and torch.equal(*tables)
    if not same and (tables[1:] or not (read_json_object(folder / CONFIG).get(TYING) or (folder / BASE).exists())):
        raise FledgeError(
            "the adapter trained the embedding alone, and in the base model it is the head too, which stayed as it was",
            where=str(folder),
            hint=f"train it with {TYING}: true, a setting of PEFT's LoraConfig",
        )


def _shape_error(name: str, tensor: Tensor, expected: Tensor, file: Path) -> FledgeError:
    """The error for a tensor of another shape, which says whether its rank or the size of its layer is another."""
    matrix = next((matrix for matrix in ADAPTER_MATRICES if name.endswith(f".{matrix}.weight")), None)
    axis = None if matrix is None or tensor.dim() != 2 else ADAPTER_MATRICES.index(matrix)  # A is [r, in], B [out, r]
    hint = "the adapter belongs to another base model"
    if axis is not None and tensor.shape[1 - axis] == expected.shape[1 - axis]:
        hint = f"it has rank {tensor.shape[axis]}; {CONFIG} gives this layer rank {expected.shape[axis]} (r, rank_pattern)"
    what = f"{name} is {list(tensor.shape)}, expected {list(expected.shape)}"
    return FledgeError(what, where=str(file), hint=hint)
