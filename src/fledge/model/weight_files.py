"""Reading the weights of a model directory: which files hold them, and errors that name what is wrong with one."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fledge.errors import FledgeError
from fledge.model.hf_config import read_json_object
from fledge.run.file_hash import hash_files
from fledge.run.input_files import LFS_POINTER, check_regular_file

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth", "model.pt")
COPY_AGAIN = "copy or download the model again, whole"
MAX_HEADER = 100_000_000  # bytes; the limit of safetensors
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def shard_files(folder: Path) -> list[Path]:
    """The safetensors files of a model directory, each with its whole content.

    Raises FledgeError for a missing, unreadable or truncated file, and for an index that is damaged or names a file outside the
    directory.
    """
    shards = _listed_files(folder)
    for shard in shards:
        check_file(shard)
    return shards


def weights_hash(folder: Path) -> str:
    """A hash of the files that hold the weights of a model directory, whoever loads them. FledgeError as `shard_files`."""
    return hash_files(*shard_files(folder))


def _listed_files(folder: Path) -> list[Path]:
    """The files that hold the weights: those that an index names, else one file."""
    index = folder / INDEX
    if not index.exists():
        return [folder / SINGLE]
    files = read_json_object(index).get("weight_map")
    if not isinstance(files, dict):
        raise FledgeError("the index has no weight_map", where=str(index))
    names = sorted({str(name) for name in files.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise FledgeError(f"the index names a file outside the directory: '{name}'", where=str(index))
    return [folder / name for name in names]


def check_file(file: Path) -> None:
    """FledgeError for a file that is missing, not readable, a Git LFS pointer, no safetensors file, or of another size than its
    header says."""
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
    again = "copy or download the file again"
    if not isinstance(header, dict):
        raise FledgeError(f"this is no safetensors file, or it is cut off ({size:,} bytes)", where=str(file), hint=again)
    ends = [entry.get("data_offsets", [0, 0])[-1] for entry in header.values() if isinstance(entry, dict)]
    expected = 8 + length + max((end for end in ends if isinstance(end, int)), default=0)
    if size != expected:
        state = "truncated" if size < expected else "damaged"
        raise FledgeError(
            f"the weights are {state}: the file has {size:,} bytes, its header says {expected:,}", where=str(file), hint=again
        )


def _missing(file: Path) -> FledgeError:
    """The error for weights that are not there; other files of the folder may say why."""
    pickled = next((name for name in PICKLED if (file.parent / name).exists()), None)
    if pickled is not None:
        return FledgeError(
            f"the weights are missing: there is only {pickled}, a pickle, which fledge does not load because it can run code",
            where=str(file),
            hint='convert them: python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{file.parent}').save_pretrained('{file.parent}')\"",
        )
    others = sorted(path.name for path in file.parent.glob("*.safetensors"))
    found = f"; the folder has {', '.join(others[:3])}" if others else ""
    return FledgeError(f"the weights are missing{found}", where=str(file), hint=COPY_AGAIN)


def read_tensors(shard: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file by name. Raises FledgeError for a damaged file."""
    try:
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise FledgeError(f"the weights are damaged: {error}", where=str(shard)) from None


def check_type(name: str, tensor: Tensor, where: Path) -> None:
    """FledgeError for a weight of integers."""
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise FledgeError(
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
