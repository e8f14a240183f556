"""Reading the weights of a model directory: which files hold them, and errors that name what is wrong with one."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fledge.errors import FledgeError
from fledge.model.hf_config import read_json_object
from fledge.run.file_hash import hash_files
from fledge.run.file_kinds import pickle_hint
from fledge.run.input_files import LFS_POINTER, check_regular_file

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("pytorch_model*.bin", "consolidated*.pth", "*.pt", "*.pth", "*.ckpt", "*.bin")  # the likeliest first
COPY_AGAIN, FILE_AGAIN = "copy or download the model again, whole", "copy or download the file again"
ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8,
    "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
INTEGERS = {
    "BOOL": "bool", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64", "U8": "uint8", "U16": "uint16",
    "U32": "uint32", "U64": "uint64",
}  # fmt: skip
MAX_HEADER = 100_000_000  # bytes; the limit of safetensors
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file by the file's header: its shape, its type in safetensors' words, and the file."""

    shape: tuple[int, ...]
    dtype: str
    file: Path


@dataclass(frozen=True)
class WeightHeaders:
    """The files that hold the weights of a model directory, and their tensors by name. No weight has been read."""

    files: list[Path]
    tensors: dict[str, StoredTensor]

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def numbers(self) -> int:
        """How many numbers the tensors have."""
        return sum(prod(tensor.shape) for tensor in self.tensors.values())


def shard_files(folder: Path) -> list[Path]:
    """The safetensors files of a model directory. FledgeError as `read_headers`."""
    return read_headers(folder).files


def weights_hash(folder: Path) -> str:
    """A hash of the files that hold the weights of a model directory, whoever loads them. FledgeError as `shard_files`."""
    return hash_files(*shard_files(folder))


def read_headers(folder: Path) -> WeightHeaders:
    """The files that hold the weights of a model directory, and what their headers say.

    Raises FledgeError for a missing, unreadable or truncated file; for an index that is damaged, names a file outside the
    directory, or places tensors elsewhere than they are; and for tensors of impossible sizes.
    """
    index = folder / INDEX
    if not index.exists():
        file = folder / SINGLE
        return WeightHeaders([file], check_file(file))
    raw = read_json_object(index)
    places = _weight_map(raw, index)
    files = [folder / name for name in sorted(set(places.values()))]
    missing = [file for file in files if not file.exists() and not file.is_symlink()]
    if missing:
        raise _missing(missing[0], _how_many(files, missing, raw))
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        found = check_file(file)
        if twice := sorted(found.keys() & tensors.keys()):
            raise FledgeError(f"{twice[0]} is in {tensors[twice[0]].file.name} too", where=str(file), hint=COPY_AGAIN)
        tensors |= found
    _check_places(places, tensors, index)
    if (folder / SINGLE).exists() and folder / SINGLE not in files:
        what = f"there are {SINGLE} and {len(files)} other files of weights that the index names: which of both is the model?"
        raise FledgeError(what, where=str(index), hint="remove the one that it is not, with its index")
    return WeightHeaders(files, tensors)


def _weight_map(raw: dict[str, Any], index: Path) -> dict[str, str]:
    """The file name of each tensor."""
    places = raw.get("weight_map")
    if not isinstance(places, dict):
        raise FledgeError("the index has no weight_map", where=str(index))
    for name in sorted({str(name) for name in places.values()}):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise FledgeError(f"the index names a file outside the directory: '{name}'", where=str(index))
    return places


def _how_many(files: list[Path], missing: list[Path], raw: dict[str, Any]) -> str:
    """How much of a model in several files is missing."""
    metadata = raw.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    found = sum(file.stat().st_size for file in files if file not in missing)
    of_total = f" of {total:,}" if isinstance(total, int) else ""
    return f" ({len(missing)} of the {len(files)} files that the index names; found are {found:,}{of_total} bytes)"


def _check_places(places: dict[str, str], tensors: dict[str, StoredTensor], index: Path) -> None:
    """FledgeError if tensors are not in the files in which the index has them."""
    absent = [name for name in places if name not in tensors]
    moved = [name for name, file in places.items() if name in tensors and tensors[name].file.name != file]
    unlisted = [name for name in tensors if name not in places]
    if absent:
        what = f"the index has {absent[0]} in {places[absent[0]]}, which does not have it"
    elif moved:
        what = f"the index has {moved[0]} in {places[moved[0]]}, and it is in {tensors[moved[0]].file.name}"
    elif unlisted:
        what = f"{tensors[unlisted[0]].file.name} has {unlisted[0]}, which is not in the index"
    else:
        return
    others = len(absent) + len(moved) + len(unlisted) - 1
    more = f" (and {others:,} more such tensors)" if others else ""
    hint = "files of different models are mixed: copy or download all of them again"
    raise FledgeError(what + more, where=str(index), hint=hint)


def check_file(file: Path) -> dict[str, StoredTensor]:
    """The tensors that the header of a file describes. FledgeError for a file that is missing, not readable, a Git LFS pointer,
    no safetensors file, or of another size than its header says, and for tensors of impossible sizes."""
    try:
        check_regular_file(file, COPY_AGAIN)
        size = file.stat().st_size
        with file.open("rb") as content:
            pointer = content.read(len(LFS_POINTER)) == LFS_POINTER
            content.seek(0)
            length = int.from_bytes(content.read(8), "little")
            text = content.read(length) if 0 < length <= min(MAX_HEADER, size) else b""
    except FileNotFoundError:
        raise _missing(file) from None
    except OSError as error:
        hint = "check the permissions of the file and of its folder, and the disk"
        raise FledgeError(f"the weights cannot be read: {error.strerror}", where=str(file), hint=hint) from None
    if pointer:
        hint = f"fetch them: run `git lfs pull` in {file.parent}"
        raise FledgeError("this is a Git LFS pointer and not the weights themselves", where=str(file), hint=hint)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        what = f"this is no safetensors file, or it is cut off ({size:,} bytes)"
        raise FledgeError(what, where=str(file), hint=FILE_AGAIN)
    tensors = {name: _described(name, entry, file) for name, entry in header.items() if name != "__metadata__"}
    _check_offsets(header, file, size, 8 + length)
    return tensors


def _described(name: str, entry: Any, file: Path) -> StoredTensor:
    """The tensor that an entry of a header describes. FledgeError for sizes that contradict each other."""
    try:
        (start, end), shape, dtype = entry["data_offsets"], tuple(entry["shape"]), entry["dtype"]
        wanted = prod(shape) * ITEM_BYTES.get(dtype, 0)
        is_sound = all(type(number) is int and number >= 0 for number in (start, end, *shape)) and end >= start
    except (TypeError, KeyError, ValueError, OverflowError):
        raise FledgeError(
            f"the weights are damaged: the header does not describe {name}", where=str(file), hint=FILE_AGAIN
        ) from None
    if not is_sound or (dtype in ITEM_BYTES and wanted != end - start):
        what = f"{name} is {list(shape)} of {dtype}, which is not the {end - start:,} bytes that it has" if is_sound else name
        raise FledgeError(f"the weights are damaged: impossible sizes in the header: {what}", where=str(file), hint=FILE_AGAIN)
    return StoredTensor(shape, dtype, file)


def _check_offsets(header: dict[str, Any], file: Path, size: int, begin: int) -> None:
    """FledgeError for a file of another size than its header says, and for tensors with gaps or overlaps."""
    places = sorted(tuple(entry["data_offsets"]) for name, entry in header.items() if name != "__metadata__")
    expected = begin + max((end for _, end in places), default=0)
    if size != expected:
        state = "truncated" if size < expected else "damaged"
        what = f"the weights are {state}: the file has {size:,} bytes, its header says {expected:,}"
        raise FledgeError(what, where=str(file), hint=FILE_AGAIN)
    if any(start != end for (_, end), (start, _) in pairwise([(0, 0), *places])):
        what = "the weights are damaged: the tensors in the header do not follow each other without gaps"
        raise FledgeError(what, where=str(file), hint=FILE_AGAIN)


def _missing(file: Path, how_many: str = "") -> FledgeError:
    """The error for weights that are not there; other files of the folder may say why."""
    pickled = next((path.name for pattern in PICKLED for path in sorted(file.parent.glob(pattern))), None)
    if pickled is not None:
        return FledgeError(
            f"the weights are missing: there is only {pickled}, a pickle, which fledge does not load because it can run code",
            where=str(file),
            hint=pickle_hint(file.parent / pickled),
        )
    others = sorted(path.name for path in (*file.parent.glob("*.safetensors"), *file.parent.glob("*.gguf")))
    found = f"; the folder has {', '.join(others[:3])}" if others and not how_many else ""
    hint = f"name the file: {file.parent / others[0]}" if others and others[0].endswith(".gguf") else COPY_AGAIN
    return FledgeError(f"the weights are missing{how_many}{found}", where=str(file), hint=hint)


def read_tensors(shard: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file by name. Raises FledgeError for a damaged file."""
    try:
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise FledgeError(f"the weights are damaged: {error}", where=str(shard)) from None


def check_sizes(headers: WeightHeaders, parameters: int, folder: Path) -> None:
    """FledgeError for a configuration that describes more parameters than the files can hold: before memory is allocated."""
    if parameters > headers.bytes:
        raise too_many_parameters(parameters, headers.bytes, folder)


def too_many_parameters(parameters: int, stored: int, folder: Path) -> FledgeError:
    """The error for a configuration that describes more parameters than the `stored` bytes can hold."""
    return FledgeError(
        f"config.json describes {parameters:,} parameters, more than the {stored:,} bytes of weights can hold: in 16 bits they "
        f"are {2 * parameters:,} bytes",
        where=str(folder),
        hint=f"config.json is of another model, or weights are missing; {COPY_AGAIN}",
    )


def check_type(name: str, tensor: Tensor, where: Path) -> None:
    """FledgeError for a weight of integers."""
    if not tensor.is_floating_point():
        raise _integers(name, str(tensor.dtype).removeprefix("torch."), where)


def check_stored_type(name: str, stored: StoredTensor) -> None:
    """FledgeError for a weight that is stored as integers."""
    if not stored.dtype.startswith(("F", "BF")):
        raise _integers(name, INTEGERS.get(stored.dtype, stored.dtype), stored.file)


def _integers(name: str, kind: str, where: Path) -> FledgeError:
    return FledgeError(
        f"{name} has the type {kind}: fledge loads floating-point weights only",
        where=str(where),
        hint="quantized weights must be turned back into float16, bfloat16 or float32 first",
    )


def check_finite(name: str, tensor: Tensor, where: Path) -> None:
    """FledgeError for a weight with values that are not finite."""
    values = tensor if tensor.itemsize > 1 else tensor.float()  # 8-bit floats have no isfinite
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        bad = int(finite.numel() - finite.sum())
        raise FledgeError(
            f"{name} has {bad:,} values of {finite.numel():,} that are not finite (NaN or infinity)",
            where=str(where),
            hint="the training or the conversion that wrote these weights went wrong: take an earlier or another copy",
        )


def own_head_error(folder: Path) -> FledgeError:
    """The error for a tied model whose files have a head of its own."""
    return FledgeError(
        f"config.json says tie_word_embeddings: true, but {HEAD} is not the embedding: one of the two would be lost",
        where=str(folder),
        hint=f"to keep this head, set tie_word_embeddings to false in its config.json; else remove {HEAD} from the weights",
    )
