"""Writing a GGUF file with the package gguf, tensor by tensor, and reading it back."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from fledge.errors import FledgeError
from fledge.export.gguf_architecture import (
    ModelTensor,
    as_numpy,
    frequency_factors,
    from_gguf,
    has_tied_head,
    model_tensors,
    to_gguf,
    write_sizes,
)
from fledge.export.gguf_vocabulary import Vocabulary, write_vocabulary
from fledge.export.source import ExportSource
from fledge.export.weight_types import BLOCK, WEIGHT_TYPES, WeightType
from fledge.model.gguf.architectures import EMBEDDING, FREQUENCY_FACTORS, HEAD, GgufArchitecture
from fledge.model.gguf.library import import_gguf

F16_LARGEST = 65504.0
ROUTER = ".ffn_gate_inp.weight"  # end of the names of routers


@dataclass(frozen=True)
class StoredTensor:
    """A tensor and the name of the type that it has in the file."""

    source: ModelTensor
    type_name: str


@dataclass(frozen=True, kw_only=True)
class GgufFile:
    """A written file: its path, architecture, tensors, and a hash of the bytes of each tensor by its name in the file."""

    path: Path
    architecture: GgufArchitecture
    tensors: list[StoredTensor]
    hashes: dict[str, int]

    def summary(self) -> str:
        """How many tensors have which type."""
        counts = Counter(stored.type_name.upper() for stored in self.tensors)
        return ", ".join(f"{count} tensors {name}" for name, count in counts.most_common())


# -- types of tensors ---------------------------------------------------------------------------------------------------


def plan_types(tensors: list[ModelTensor], weight_type: WeightType, tied: bool) -> list[StoredTensor]:
    """The type of each tensor: vectors and routers in F32; matrices in the type asked for, the head (if tied, the embedding) in
    its `table`; matrices whose rows 32 does not divide in F16 instead of a quantised type, as llama.cpp does.

    Raises FledgeError if no matrix is left to quantise.
    """

    def type_name(named: ModelTensor) -> str:
        if len(named.shape) < 2 or named.name.endswith(ROUTER):
            return "f32"
        is_head = named.file_name == (EMBEDDING if tied else HEAD)
        chosen = WEIGHT_TYPES[weight_type.table] if is_head else weight_type
        return "f16" if chosen.is_quantised and named.shape[-1] % BLOCK else chosen.name

    planned = [StoredTensor(named, type_name(named)) for named in tensors]
    if weight_type.is_quantised and not any(WEIGHT_TYPES[stored.type_name].is_quantised for stored in planned):
        rows = sorted({named.shape[-1] for named in tensors if len(named.shape) > 1})
        raise FledgeError(
            f"no matrix can be quantised: {weight_type.label} takes {BLOCK} weights of a row together, and the rows have "
            + ", ".join(map(str, rows)),
            where="--type",
            hint="export it as f16, or train with model.hidden_size and model.intermediate_size that 32 divides",
        )
    return planned


def left_in_f16(planned: list[StoredTensor], weight_type: WeightType) -> str | None:
    """A sentence about matrices that stay in F16 because 32 does not divide their rows; None if there are none."""
    kept = [stored.source for stored in planned if weight_type.is_quantised and stored.type_name == "f16"]
    if not kept:
        return None
    rows = ", ".join(map(str, sorted({tensor.shape[-1] for tensor in kept})))
    return f"{len(kept)} matrices stay in F16: {BLOCK} does not divide their rows ({rows} weights)"


def _encode(values: np.ndarray, type_name: str, name: str) -> np.ndarray:
    """The values as the file stores them. Raises FledgeError for values that F16 cannot hold."""
    gguf = import_gguf()
    if type_name == "f16" and float(np.abs(values).max(initial=0.0)) > F16_LARGEST:
        raise FledgeError(f"{name} has values above {F16_LARGEST:,.0f}, which F16 cannot hold", where="--type", hint="use bf16")
    return gguf.quants.quantize(values, gguf.GGMLQuantizationType[type_name.upper()])


# -- writing ------------------------------------------------------------------------------------------------------------


def write_gguf(
    path: Path, source: ExportSource, architecture: GgufArchitecture, weight_type: WeightType, vocabulary: Vocabulary
) -> GgufFile:
    """Write a model to a GGUF file and read its tensors back. Raises FledgeError for what the type cannot hold, and OSError if
    reading back gives other bytes than were written."""
    gguf = import_gguf()
    planned = plan_types(model_tensors(source, architecture), weight_type, has_tied_head(source, architecture))
    writer = gguf.GGUFWriter(path, architecture.name)
    writer.add_type("model")
    writer.add_name(source.name)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if weight_type.name == "f32" else f"MOSTLY_{weight_type.label}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_sizes(writer, source.config, source.model.vocab_size)
    write_vocabulary(writer, vocabulary)
    factors = frequency_factors(source.config)
    if factors is not None:
        writer.add_tensor_info(FREQUENCY_FACTORS, factors.shape, factors.dtype, factors.nbytes)
    for stored in planned:
        kind, shape = gguf.GGMLQuantizationType[stored.type_name.upper()], stored.source.shape
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        size = prod(shape) // block * block_bytes
        writer.add_tensor_info(stored.source.name, shape, np.dtype(np.float32), size, raw_dtype=kind)
    try:
        hashes = _write(writer, planned, source, architecture, factors)
    finally:
        writer.close()
    file = GgufFile(path=path, architecture=architecture, tensors=planned, hashes=hashes)
    _read_back(file)
    return file


def _write(
    writer: Any, planned: list[StoredTensor], source: ExportSource, architecture: GgufArchitecture, factors: np.ndarray | None
) -> dict[str, int]:
    """Write header and tensors, one in memory at a time; returns the hash of each tensor's bytes."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    hashes = {}
    if factors is not None:
        writer.write_tensor_data(factors)
        hashes[FREQUENCY_FACTORS] = _hash(factors)
    for stored in planned:
        values = as_numpy(to_gguf(stored.source, architecture, source.config))
        data = _encode(values, stored.type_name, stored.source.file_name)
        writer.write_tensor_data(data)
        hashes[stored.source.name] = _hash(data)
    return hashes


def _hash(data: np.ndarray) -> int:
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(data).view(np.uint8).data)


# -- reading back -------------------------------------------------------------------------------------------------------


def _read_back(file: GgufFile) -> None:
    reader = import_gguf().GGUFReader(file.path)
    found = {tensor.name: _hash(np.asarray(tensor.data)) for tensor in reader.tensors}
    if found != file.hashes:
        raise OSError(f"{file.path.name} reads back otherwise than it was written")


def stored_values(file: GgufFile, config: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file as numbers, by their names in Hugging Face's files: what its type made of the weights."""
    gguf = import_gguf()
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file.path).tensors}
    for each in file.tensors:
        tensor = stored[each.source.name]
        values = gguf.quants.dequantize(np.asarray(tensor.data), tensor.tensor_type).reshape(each.source.shape)
        parts = each.source.parts
        if len(parts) > 1:
            yield from zip(parts, torch.tensor(values), strict=True)
        else:
            ordered = from_gguf(torch.tensor(values), each.source, file.architecture, config)
            yield each.source.file_name, ordered.reshape(parts[each.source.file_name].shape)
