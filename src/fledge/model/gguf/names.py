"""The tensors of a model in a GGUF file: names and shapes, from those of Hugging Face's files."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fledge.model.gguf.architectures import HEAD, GgufArchitecture
from fledge.model.gguf.library import import_gguf

EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.((?:gate|up|down)_proj)\.weight")
SHARED_GATE = "shared_expert_gate.weight"  # a matrix of one row in Hugging Face's files, a vector in GGUF


@dataclass(frozen=True)
class NamedTensor:
    """A tensor of a GGUF file: its name and shape there, and its name and shape in Hugging Face's files; of a tensor that has
    the matrices of all experts, [experts, rows, row], the names of all of them and the shape of one."""

    name: str
    file_names: tuple[str, ...]
    shape: tuple[int, ...]
    file_shape: tuple[int, ...]


def named_tensors(
    shapes: Mapping[str, tuple[int, ...]], architecture: GgufArchitecture, layers: int, tied: bool
) -> tuple[list[NamedTensor], list[str]]:
    """The tensors of a GGUF file for those of a model, a tied head left out; and names that the architecture does not have."""
    gguf = import_gguf()
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    known = gguf.get_tensor_name_map(number, layers)
    groups: dict[str, list[str]] = {}
    for file_name in shapes:
        expert = EXPERT.fullmatch(file_name)
        groups.setdefault(f"{expert[1]}.{expert[3]}.weight" if expert else file_name, []).append(file_name)
    found, unknown = [], []
    for group, file_names in groups.items():
        if group == HEAD and tied:
            continue
        name, shape = known.get_name(group, try_suffixes=(".weight", ".bias")), shapes[file_names[0]]
        file_shape = shape
        if name is None:
            unknown.append(group)
            continue
        if EXPERT.fullmatch(file_names[0]):
            shape = (len(file_names), *shape)
        elif group.endswith(SHARED_GATE):
            shape = shape[-1:]
        found.append(NamedTensor(name, tuple(file_names), shape, file_shape))
    return found, unknown
