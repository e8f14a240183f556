"""The header of a GGUF file: its settings, and the places of its tensors.

Every number of the header is compared with the size of the file before anything of that size is read or allocated, so that a
truncated or damaged file is an error that says what is wrong.
"""

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from fledge.errors import FledgeError
from fledge.model.gguf.library import import_gguf
from fledge.run.input_files import check_input_file

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DEPTH = 2  # of lists in lists
MAX_DIMENSIONS = 4
MAX_NAME_BYTES = 2**16
ALIGNMENT = 32  # of tensors, where the header does not say
AGAIN = "copy or download the file again"
NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
TEXT, LIST = 8, 9
SMALLEST_SETTING = 8 + 4 + 1  # bytes: an empty name, a type, a value of one byte
SMALLEST_TENSOR = 8 + 4 + 8 + 4 + 8


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a file: its shape [rows, row], the name of its type, and where its bytes are."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    start: int
    size: int


@dataclass(frozen=True)
class GgufHeader:
    """The header of a file: settings by name, tensors by name."""

    file: Path
    settings: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """The name of the architecture in llama.cpp; "?" without one."""
        return str(self.settings.get("general.architecture", "?"))


class _Reader:
    """A position in the bytes of a file. Every read is checked against the end."""

    def __init__(self, content: mmap.mmap, file: Path) -> None:
        self.content, self.file, self.position = content, file, 0

    def error(self, what: str) -> FledgeError:
        return FledgeError(f"the GGUF file is damaged or cut off: {what}", where=str(self.file), hint=AGAIN)

    def take(self, size: int, what: str) -> int:
        """Move on by `size` bytes; returns where they begin."""
        start, left = self.position, len(self.content) - self.position
        if size > left:
            raise self.error(f"{what} needs {size:,} bytes at byte {start:,}, and the file has {left:,} more")
        self.position = start + size
        return start

    def number(self, form: str, what: str) -> Any:
        return struct.unpack_from(form, self.content, self.take(struct.calcsize(form), what))[0]

    def count(self, smallest: int, what: str) -> int:
        """A number of things that have at least `smallest` bytes each."""
        count = self.number("<Q", what)
        if count * smallest > len(self.content) - self.position:
            raise self.error(f"{count:,} {what} do not fit into {len(self.content):,} bytes")
        return count

    def text(self, what: str, limit: int | None = None) -> str:
        size = self.number("<Q", f"the length of {what}")
        if limit is not None and size > limit:
            raise self.error(f"{what} has {size:,} bytes")
        start = self.take(size, what)
        try:
            return self.content[start : start + size].decode()
        except UnicodeDecodeError:
            raise self.error(f"{what} is not UTF-8") from None

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind in NUMBERS:
            return self.number(NUMBERS[kind], what)
        if kind == TEXT:
            return self.text(what)
        if kind != LIST or depth == MAX_DEPTH:
            raise self.error(f"{what} has the type {kind}")
        inner = self.number("<I", what)
        if inner in NUMBERS:
            form = np.dtype(NUMBERS[inner])
            count = self.count(form.itemsize, f"values of {what}")
            start = self.take(count * form.itemsize, what)
            return np.frombuffer(self.content[start : self.position], form).tolist()
        return [self.value(inner, what, depth + 1) for _ in range(self.count(8, f"values of {what}"))]


def read_header(file: Path) -> GgufHeader:
    """The header of a GGUF file. Raises FledgeError for a file that is missing, not readable, no GGUF file, truncated, or
    damaged: for a setting or tensor that occurs twice, for tensors of impossible sizes, beyond the end, or over each other."""
    check_input_file(file)
    size = file.stat().st_size
    with file.open("rb") as content:
        magic = content.read(len(MAGIC))
        if magic != MAGIC or size < len(MAGIC) + 20:
            what = f"this is no GGUF file: it begins with {magic!r}" if magic != MAGIC else f"it has {size} bytes only"
            raise FledgeError(what, where=str(file), hint=AGAIN)
        with mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return _header(_Reader(mapped, file), size)


def _header(reader: _Reader, size: int) -> GgufHeader:
    reader.take(len(MAGIC), "the beginning")
    version = reader.number("<I", "the version")
    if version not in VERSIONS:
        big_endian = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        what = "of a machine with another byte order" if big_endian else f"of version {version:,}"
        hint = "convert the model again with a present version of llama.cpp" if big_endian or version == 1 else AGAIN
        raise FledgeError(f"a GGUF file {what}; versions {VERSIONS} are read", where=str(reader.file), hint=hint)
    tensor_count = reader.count(SMALLEST_TENSOR, "tensors")
    settings: dict[str, Any] = {}
    for _ in range(reader.count(SMALLEST_SETTING, "settings")):
        name = reader.text("the name of a setting", MAX_NAME_BYTES)
        if name in settings:
            raise reader.error(f"the setting {name} occurs twice")
        settings[name] = reader.value(reader.number("<I", name), name)
    infos = list(_tensor_infos(reader, tensor_count))
    alignment = settings.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment > 2**20:
        raise reader.error(f"general.alignment is {alignment}")
    data_start = -(-reader.position // alignment) * alignment
    tensors = [_placed(reader, info, data_start, alignment) for info in infos]
    _check_places(reader, tensors, size)
    return GgufHeader(reader.file, settings, {tensor.name: tensor for tensor in tensors})


def _tensor_infos(reader: _Reader, count: int) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
    """Name, shape, number of the type, and offset of each tensor."""
    names: set[str] = set()
    for _ in range(count):
        name = reader.text("the name of a tensor", MAX_NAME_BYTES)
        if name in names:
            raise reader.error(f"the tensor {name} occurs twice")
        names.add(name)
        dimensions = reader.number("<I", name)
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise reader.error(f"{name} has {dimensions} dimensions")
        sizes = tuple(reader.number("<Q", name) for _ in range(dimensions))
        if not all(sizes):
            raise reader.error(f"{name} has the sizes {sizes}")
        yield name, sizes[::-1], reader.number("<I", name), reader.number("<Q", name)


def _placed(reader: _Reader, info: tuple[str, tuple[int, ...], int, int], data_start: int, alignment: int) -> GgufTensor:
    gguf = import_gguf()
    name, shape, kind, offset = info
    types = {int(each): each for each in gguf.GGMLQuantizationType}
    if kind not in types:
        raise reader.error(f"{name} has a type of weights with the number {kind}, which the package gguf does not know")
    block, block_bytes = gguf.GGML_QUANT_SIZES[types[kind]]
    if shape[-1] % block:
        raise reader.error(f"{name} is {types[kind].name} with rows of {shape[-1]:,} weights, and {block} belong together")
    if offset % alignment:
        raise reader.error(f"{name} is at the offset {offset:,}, which is no multiple of {alignment}")
    return GgufTensor(name, shape, types[kind].name, data_start + offset, prod(shape) // block * block_bytes)


def _check_places(reader: _Reader, tensors: list[GgufTensor], size: int) -> None:
    """FledgeError for a file that is shorter than its tensors need, and for tensors that lie over each other."""
    if not tensors:
        return
    end = max(tensor.start + tensor.size for tensor in tensors)
    if end > size:
        missing = sum(tensor.start + tensor.size > size for tensor in tensors)
        raise FledgeError(
            f"the GGUF file is truncated: it has {size:,} bytes, its header says {end:,}; {missing} of {len(tensors)} tensors "
            "are not whole",
            where=str(reader.file),
            hint=AGAIN,
        )
    ordered = sorted(tensors, key=lambda tensor: tensor.start)
    for first, second in pairwise(ordered):
        if first.start + first.size > second.start:
            raise reader.error(f"{first.name} and {second.name} lie over each other")
