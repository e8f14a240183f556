"""The safetensors files of a model directory: names of the tensors, writing with verification.

The files have three matrices for each expert of a mixture; in memory the matrices of all experts are stacked.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fledge.model.hf_config import read_json_object
from fledge.run.text_files import give_usual_mode, write_and_verify

HEADS = ("lm_head.", "score.")  # beginnings of names outside `model.`
STACKED = re.compile(r"(.*\.mlp\.experts)\.(gate_proj|up_proj|down_proj)")


def read_generation_settings(folder: Path) -> dict[str, Any]:
    """The settings of generation_config.json in a model directory, such as temperature; empty if there is no such file."""
    file = folder / "generation_config.json"
    return read_json_object(file) if file.exists() else {}


def write_model_directory(
    folder: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    generation_settings: Mapping[str, Any] | None = None,
) -> None:
    """Write config.json, generation_config.json (special tokens and `generation_settings`) and model.safetensors with the
    weights of a decoder's `state_dict`. Raises OSError if reading back gives other bytes than were written."""
    folder.mkdir(parents=True, exist_ok=True)
    write_and_verify(folder / "config.json", json.dumps(config, indent=1))
    special = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    generation = {**(generation_settings or {}), **special}
    write_and_verify(folder / "generation_config.json", json.dumps(generation, indent=1))
    tensors = {name: tensor.contiguous() for name, tensor in file_tensors(weights).items()}
    write_tensors(tensors, folder / "model.safetensors")


def file_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a decoder's `state_dict` under their names in the files. The matrices of experts are views of the stacked
    tensors."""
    named: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        full = name if name.startswith(HEADS) else f"model.{name}"
        if stack := STACKED.fullmatch(full):
            for expert, matrix in enumerate(tensor):
                named[f"{stack[1]}.{expert}.{stack[2]}.weight"] = matrix
        else:
            named[full] = tensor
    return named


def write_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """Write a safetensors file and read it back. Raises OSError if the disk refuses it, or if reading back gives other bytes
    than were written."""
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:  # of the disk
        raise OSError(str(error)) from error
    give_usual_mode(file)
    if verify_tensors(file, tensors) != set(tensors):
        raise OSError(f"{file.name} does not hold the tensors that were written")


def verify_tensors(file: Path, tensors: Mapping[str, Tensor]) -> set[str]:
    """Read all tensors of a safetensors file, compare them byte by byte with the tensors of equal name in `tensors`, and return
    the names in the file. Raises OSError if the file is not readable or differs."""
    try:
        with safe_open(file, framework="pt") as written:
            names = set(written.keys())
            same = all(_equal(written.get_tensor(name), tensors.get(name)) for name in sorted(names))
    except SafetensorError as error:
        raise OSError(f"{file.name} cannot be read back: {error}") from error
    if not same:
        raise OSError(f"{file.name} reads back otherwise than it was written")
    return names


def _equal(written: Tensor, tensor: Tensor | None) -> bool:
    """Whether the bytes are equal (as numbers, NaN would not equal itself)."""
    return tensor is None or torch.equal(_bytes(written), _bytes(tensor))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.cpu().reshape(-1).view(torch.uint8)
