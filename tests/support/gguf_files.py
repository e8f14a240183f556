"""GGUF files for tests: exported from small models, and written with other settings or tensors than an export has."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from fledge.export import export_model, llama_cpp
from fledge.model.gguf.header import read_header

LEFT_OUT = object()  # in place of a value: the setting or tensor is not written


def export_gguf(model: Path, out: Path, monkeypatch: Any, weight_type: str = "f32") -> Path:
    """The GGUF file of a model directory, not compared with llama.cpp."""
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: None)
    export_model(str(model), to="gguf", weight_type=weight_type, out=str(out), log=lambda text: None)
    return next(out.glob("*.gguf"))


def rewrite(
    source: Path,
    target: Path,
    settings: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Any] | None = None,
    add: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> Path:
    """A copy of a file with other `settings` and `tensors` (arrays) by name."""
    header, reader = read_header(source), gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, header.architecture)
    for name, value in {**header.settings, **(settings or {})}.items():
        if value is LEFT_OUT or (name == "general.architecture" and name not in (settings or {})):
            continue
        if isinstance(value, list):
            writer.add_array(name, value)
        else:
            kinds = {bool: "bool", int: "int32", float: "float32", str: "string"}
            getattr(writer, f"add_{kinds[type(value)]}")(name, value)
    stored = {tensor.name: (np.array(tensor.data), tensor.tensor_type) for tensor in reader.tensors}
    changed = {name: value if value is LEFT_OUT else (value, None) for name, value in (tensors or {}).items()}
    for name, pair in {**stored, **changed}.items():
        if pair is not LEFT_OUT:
            writer.add_tensor(name, pair[0], raw_dtype=pair[1])
    add(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
