"""A model divided among the ranks: FSDP2 (Zhao et al. 2023), each block and the rest gathered when it is needed.

Every rank holds a part of each tensor, rows of its first dimension, of weights, gradients and optimizer state. What is not
divided passes through these functions as it is, so that other code need not ask.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fledge.distributed.context import DistributedContext
from fledge.errors import FledgeError
from fledge.model.protocol import LanguageModel

WRITTEN = "model-"  # how the names of the writer's files go on after the number of the rank


def shard(model: LanguageModel, ranks: DistributedContext) -> None:
    """Divide a model that all ranks hold alike. The gradients that come out of a backward pass are means over the ranks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(model.device.type, (ranks.world_size,))
    for block in model.blocks():
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)  # the head is needed after the forward pass
    register_fsdp_forward_method(model, "forward_with_router_stats")


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank has only a part of it."""
    return hasattr(tensor, "to_local")


def get_local_tensor(tensor: Tensor) -> Tensor:
    """This rank's part, sharing memory with the tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def get_full_tensor(tensor: Tensor) -> Tensor:
    """All of it, on every rank. All ranks must ask together."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def all_gather_like(part: Tensor, like: Tensor) -> Tensor:
    """All of a tensor of which this rank has a part, divided as `like` is."""
    return get_full_tensor(distribute_like(part, like)) if is_sharded(like) else part


def distribute_like(part: Tensor, like: Tensor) -> Tensor:
    """A part as the divided tensor that it is of; `like` says how."""
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def local_shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a tensor that every rank has all of, divided as `like` is."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return get_local_tensor(distribute_tensor(tensor, mesh, placements, src_data_rank=None))


@contextmanager
def reshard_after(model: nn.Module) -> Iterator[None]:
    """Inside, forward passes without gradients; afterwards every rank has its parts again, and no more."""
    try:
        yield
    finally:
        if hasattr(model, "reshard"):
            model.reshard()  # type: ignore[operator]


@torch.no_grad()
def load_full_state_dict(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put whole weights, which every rank has, into a model that may be divided. FledgeError for those of another model."""
    mine = model.state_dict()
    if set(mine) != set(weights) or any(mine[name].shape != weights[name].shape for name in mine):
        raise FledgeError("these weights are of another model")
    for name, tensor in mine.items():
        get_local_tensor(tensor).copy_(local_shard_like(weights[name].to(tensor.device), tensor))


@torch.no_grad()
def full_state_dict(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """A copy of a model's weights in main memory, whole; on ranks that do not `keep` them, which must ask too, nothing."""
    copies = {}
    for name, tensor in model.state_dict().items():
        full = get_full_tensor(tensor)
        if keep:
            copies[name] = full.detach().to("cpu", copy=True)
    return copies


def stage_to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy in main memory, in which what is divided stays divided."""
    from torch.distributed.checkpoint.staging import BlockingAsyncStager

    return BlockingAsyncStager().stage(dict(tensors))


def save_sharded(tensors: Mapping[str, Tensor], folder: Path, ranks: DistributedContext) -> None:
    """Every rank writes its parts of tensors, as safetensors, into a folder that all see, and reads them back. OSError where
    the disk has not kept them."""
    from safetensors import safe_open
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer, process_group=ranks.group)
    except CheckpointException as error:
        raise OSError("; ".join(sorted({str(one[0]) for one in error.failures.values()}))) from error
    for file in folder.glob(f"shard-{ranks.rank + 1:05d}-{WRITTEN}*.safetensors"):
        with safe_open(file, framework="pt") as written:
            for name in sorted(written.keys()):
                if not torch.equal(_bytes(written.get_tensor(name)), _bytes(get_local_tensor(tensors[name]))):
                    raise OSError(f"{file.name} reads back otherwise than it was written")


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def load_unsharded(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder of safetensors files, of whole tensors or of parts."""
    return _read(folder, {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in _entries(folder)})


def load_sharded(folder: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same for this rank: divided as the parameter is in whose name, `<parameter>/<state>` or `<prefix>/<parameter>`,
    the tensor is kept, where they have one shape; else whole."""
    targets = {}
    for name, entry in _entries(folder):
        parameter = next((like[part] for part in (name.rpartition("/")[0], name.partition("/")[2]) if part in like), None)
        if parameter is not None and parameter.shape == entry.size:
            targets[name] = torch.zeros_like(parameter, dtype=entry.properties.dtype)
        else:
            targets[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
    return _read(folder, targets)


def _entries(folder: Path) -> Iterable[tuple[str, Any]]:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    return HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata.items()


def _read(folder: Path, targets: dict[str, Tensor]) -> dict[str, Tensor]:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*in a single process")  # as is meant: every rank reads for itself
        load(targets, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return targets
