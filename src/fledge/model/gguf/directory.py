"""GGUF files as model directories: converted once into the cache of this machine, and found there by their content."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from fledge.errors import FledgeError
from fledge.model.architectures import ARCHITECTURES as CLASSES
from fledge.model.cost import parameters
from fledge.model.gguf.architectures import ARCHITECTURES, FREQUENCY_FACTORS, GgufArchitecture, rotated_heads, undo_interleave
from fledge.model.gguf.config import gguf_config, unknown_settings
from fledge.model.gguf.header import AGAIN, GgufHeader, read_header
from fledge.model.gguf.library import import_gguf
from fledge.model.gguf.names import NamedTensor, named_tensors
from fledge.model.gguf.tokenizer import Vocabulary, special_ids, write_tokenizer
from fledge.model.hf_config import read_config
from fledge.model.locate import SOURCE
from fledge.model.pretrained import file_shapes
from fledge.model.weight_files import INDEX, SINGLE
from fledge.model.weights import write_tensors
from fledge.run.cache import cache_folder
from fledge.run.console import Log, silent
from fledge.run.file_hash import hash_files
from fledge.run.text_files import write_and_verify

FORMAT = 1  # of the converted directories
SHARD_BYTES = 2**30
KEPT = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # written as they are; all others as float32
FAR_MORE = 4
OLD_FREQUENCIES = ".attn_rot_embd.weight"  # end of the names of tensors that older files have and that follow from the header


def gguf_directory(file: Path, log: Log = silent) -> Path:
    """The model directory of a GGUF file, in the cache. Raises FledgeError for a file that is damaged or that holds what fledge
    does not compute, before anything is allocated, and if the disk refuses the directory."""
    header = read_header(file)
    root = cache_folder() / "models" / f"gguf-{FORMAT}-{_content_hash(file.resolve(), *_stamp(file))}"
    if found := _converted(root):
        return found
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".lock"):
            if found := _converted(root):
                return found
            for left in [path for path in root.iterdir() if path.is_dir()]:  # of a conversion that was killed, or damaged
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=".partial-", dir=root) as partial:
                folder = Path(partial) / "model"
                folder.mkdir()
                _Conversion.begin(header, folder, log).write_weights()
                return folder.rename(root / (file.stem.lstrip(".") or "model"))
    except OSError as error:
        raise FledgeError(
            f"the GGUF file cannot be converted: {error.strerror or error}",
            where=str(root),
            hint="free space there, or set FLEDGE_CACHE to a folder elsewhere",
        ) from None


def _converted(root: Path) -> Path | None:
    """The complete directory in a folder of the cache."""
    folders = (path.parent for path in root.glob("*/config.json") if not path.parent.name.startswith("."))
    return next((folder for folder in folders if any(folder.glob("*.safetensors"))), None)


def _stamp(file: Path) -> tuple[int, int]:
    state = file.stat()
    return state.st_size, state.st_mtime_ns


@lru_cache(maxsize=64)
def _content_hash(file: Path, size: int, changed: int) -> str:
    """The hash of a file's content, computed once for each state of the file in this process."""
    return f"{size}-{hash_files(file)}"


# -- conversion ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Conversion:
    """A file whose header fits the decoder, and the tensors that the decoder wants of it."""

    header: GgufHeader
    folder: Path
    config: dict[str, Any]
    wanted: list[NamedTensor]

    @classmethod
    def begin(cls, header: GgufHeader, folder: Path, log: Log) -> "_Conversion":
        """Write all files but the weights, and check everything about these that the header says."""
        config = {**gguf_config(header), **special_ids(Vocabulary(header))}
        config["model_type"] = CLASSES[config["architectures"][0]].model_type
        write_tokenizer(header, folder)
        write_and_verify(folder / SOURCE, json.dumps({"path": str(header.file.resolve())}))
        write_and_verify(folder / "config.json", json.dumps(config, indent=1))
        licence = header.settings.get("general.license")
        if isinstance(licence, str):
            write_and_verify(folder / "README.md", f"---\nlicense: {json.dumps(licence)}\n---\n\n# {header.file.name}\n")
        if unknown := unknown_settings(header):
            log(f"note: {header.file.name} has settings that fledge does not read: {', '.join(unknown)}")
        conversion = cls(header, folder, config, _wanted_tensors(header, folder, config))
        needed = conversion.bytes_of(conversion.wanted)
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise FledgeError(
                f"the weights need {needed:,} bytes when they are converted, and {free:,} are free there",
                where=str(cache_folder()),
                hint="free space there, or set FLEDGE_CACHE to a folder elsewhere",
            )
        log(f"{header.file.name}: converted once into {needed / 1e6:,.0f} MB of weights in {cache_folder()}")
        return conversion

    def bytes_of(self, tensors: list[NamedTensor]) -> int:
        """The bytes of tensors as they are written."""
        types = ((each, self.header.tensors[each.name].type_name) for each in tensors)
        return sum(prod(each.shape) * KEPT.get(kind, torch.float32).itemsize for each, kind in types)

    def write_weights(self) -> None:
        """Write the weights, at most about SHARD_BYTES in memory and in a file."""
        shards: list[list[NamedTensor]] = [[]]
        filled = 0
        for tensor in self.wanted:
            size = self.bytes_of([tensor])
            if shards[-1] and filled + size > SHARD_BYTES:
                shards.append([])
                filled = 0
            shards[-1].append(tensor)
            filled += size
        files: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            name = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
            tensors = dict(pair for tensor in shard for pair in self._values(tensor))
            write_tensors(tensors, self.folder / name)
            files |= dict.fromkeys(tensors, name)
        if len(shards) > 1:
            index = {"metadata": {"total_size": self.bytes_of(self.wanted)}, "weight_map": files}
            write_and_verify(self.folder / INDEX, json.dumps(index, indent=1))

    def _values(self, named: NamedTensor) -> Iterator[tuple[str, Tensor]]:
        """The values of a tensor under its names in Hugging Face's files, rows in transformers' order."""
        gguf, tensor = import_gguf(), self.header.tensors[named.name]
        kind = gguf.GGMLQuantizationType[tensor.type_name]
        with self.header.file.open("rb") as file:
            file.seek(tensor.start)
            data = np.frombuffer(bytearray(file.read(tensor.size)), np.uint8)
        if tensor.type_name in KEPT:
            values = torch.from_numpy(data).view(KEPT[tensor.type_name])
        else:
            rows = data.reshape(prod(tensor.shape) // tensor.shape[-1], -1)
            values = torch.from_numpy(np.ascontiguousarray(gguf.quants.dequantize(rows, kind), np.float32))
        values = values.reshape(named.shape)
        name, *others = named.file_names
        if others:
            yield from zip(named.file_names, (matrix.clone() for matrix in values), strict=True)
            return
        own = _architecture(self.header)
        heads = rotated_heads(name, own, self.config["num_attention_heads"], self.config["num_key_value_heads"])
        values = undo_interleave(values, heads) if heads else values
        yield name, values.reshape(named.file_shape).contiguous()


def _architecture(header: GgufHeader) -> GgufArchitecture:
    """The first architecture of this name: those that share one name their tensors alike."""
    return next(each for each in ARCHITECTURES.values() if each.name == header.architecture)


def _wanted_tensors(header: GgufHeader, folder: Path, config: dict[str, Any]) -> list[NamedTensor]:
    """The tensors of the decoder that config.json describes. Raises FledgeError if the file has others: missing or surplus
    ones, other shapes, weights of integers, or fewer values than the description wants."""
    where = str(header.file)
    stored = sum(prod(tensor.shape) for tensor in header.tensors.values())
    try:
        sizes, vocab_size = read_config(folder)
    except FledgeError as error:
        raise FledgeError(error.what, where=where) from None
    total = parameters(sizes, vocab_size).total
    if total > FAR_MORE * stored:  # before the tensors of a model of this size are listed
        raise FledgeError(
            f"the header describes {total:,} parameters, and the tensors have {stored:,}", where=where, hint=AGAIN
        )
    own = _architecture(header)
    wanted, unknown = named_tensors(file_shapes(sizes, vocab_size), own, sizes.num_hidden_layers, sizes.tie_word_embeddings)
    names = {FREQUENCY_FACTORS, *(tensor.name for tensor in wanted)}
    surplus = [name for name in header.tensors if name not in names and not name.endswith(OLD_FREQUENCIES)]
    missing = [tensor.name for tensor in wanted if tensor.name not in header.tensors]
    if missing or surplus or unknown:
        text = f"missing {missing[:3]}" if missing else f"unknown {(surplus or unknown)[:3]}"
        raise FledgeError(f"the tensors do not fit the architecture {own.name}: {text}", where=where)
    for tensor in wanted:
        found = header.tensors[tensor.name]
        if found.shape != tensor.shape:
            raise FledgeError(
                f"{tensor.name} is {list(found.shape)}, and the settings say {list(tensor.shape)}", where=where, hint=AGAIN
            )
        if found.type_name not in KEPT and not _has_dequantiser(found.type_name):
            raise FledgeError(f"{tensor.name} has the type {found.type_name}: fledge loads floating-point weights", where=where)
    return wanted


def _has_dequantiser(type_name: str) -> bool:
    gguf = import_gguf()
    return gguf.GGMLQuantizationType[type_name] in gguf.quants._type_traits
