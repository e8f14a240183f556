"""The targets of an export: what each writes, in which types. This module is imported by the command's parser."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fledge.errors import FledgeError
from fledge.export.weight_types import WEIGHT_TYPES, WeightType

if TYPE_CHECKING:
    from fledge.export.source import ExportSource
    from fledge.run.console import Log


def _nothing_missing() -> None:
    """The files are written without other libraries."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A target of an export.

    `types`: the names of its types, the first is the default. `library`: what loads it, for the model card. `write`: writes the
    files into a folder, compares them with the model, and returns lines about it. `check_libraries` raises FledgeError if a
    library is missing. `needs_adapter`: whether it is made only of a model with an adapter. `merges`: whether an adapter is
    added to the weights.
    """

    types: tuple[str, ...]
    library: str
    write: "Callable[[ExportSource, WeightType, Path, Log], list[str]]"
    check_libraries: Callable[[], None] = _nothing_missing
    needs_adapter: bool = False
    merges: bool = True


def _write_directory(source: "ExportSource", weight_type: WeightType, folder: Path, log: "Log") -> list[str]:
    from fledge.export.huggingface import verify_with_transformers, write_directory

    write_directory(source, weight_type, folder)
    log("written; comparing it with transformers")
    return verify_with_transformers(source, folder)


def _check_gguf() -> None:
    from fledge.model.gguf.library import import_gguf

    import_gguf()


def _write_gguf(source: "ExportSource", weight_type: WeightType, folder: Path, log: "Log") -> list[str]:
    from fledge.export.gguf_architecture import gguf_architecture
    from fledge.export.gguf_file import left_in_f16, write_gguf
    from fledge.export.gguf_vocabulary import gguf_vocabulary, vocabulary_summary
    from fledge.export.llama_cpp import verify_with_llama_cpp
    from fledge.export.modelfile import modelfile
    from fledge.run.text_files import write_and_verify

    architecture = gguf_architecture(source)
    vocabulary = gguf_vocabulary(source.tokenizer, source.model.vocab_size, source.folder)
    name = f"{source.name}-{weight_type.label}.gguf"
    file = write_gguf(folder / name, source, architecture, weight_type, vocabulary)
    text, about = modelfile(name, source.tokenizer, source.model.config.max_position_embeddings)
    write_and_verify(folder / "Modelfile", text)
    log(f"written: {file.summary()}; comparing it with llama.cpp")
    kept = left_in_f16(file.tensors, weight_type)
    about_file = [f"architecture {architecture.name}: {file.summary()}", *([kept] if kept else [])]
    return [*about_file, *vocabulary_summary(vocabulary), about, *verify_with_llama_cpp(file, source, weight_type)]


def _write_adapter(source: "ExportSource", weight_type: WeightType, folder: Path, log: "Log") -> list[str]:
    from fledge.export.adapter import verify_with_peft, write_adapter_directory

    about = write_adapter_directory(source, weight_type, folder)
    log("written; comparing it with PEFT")
    return [*about, *verify_with_peft(source, folder)]


FLOATS = ("f32", "f16", "bf16")
TARGETS = {
    "hf": Target(types=FLOATS, library="transformers", write=_write_directory),
    "merged": Target(types=FLOATS, library="transformers", write=_write_directory, needs_adapter=True),
    "adapter": Target(types=FLOATS, library="peft", write=_write_adapter, needs_adapter=True, merges=False),
    "gguf": Target(
        types=("f16", *(name for name in WEIGHT_TYPES if name != "f16")),
        library="gguf",
        write=_write_gguf,
        check_libraries=_check_gguf,
    ),
}
"""By their names after `--to`."""


def chosen_target(name: str) -> Target:
    """The target with this name. Raises FledgeError for an unknown one."""
    if name not in TARGETS:
        raise FledgeError(f"there is no target '{name}'", where="--to", hint=f"the targets: {', '.join(TARGETS)}")
    return TARGETS[name]
