"""Sharding of a model over the ranks: FSDP2 (Zhao et al. 2023); blocks are gathered when they are computed.

Each rank holds a shard, some rows of the first dimension, of every weight, gradient and optimizer state. The functions here
return tensors that are not sharded unchanged, so callers need not distinguish the cases.
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
from fledge.run.text_files import give_usual_mode

FILE_INFIX = "model-"  # follows the rank in the file names of torch's safetensors writer


def shard(model: LanguageModel, ranks: DistributedContext) -> None:
    """Shard a model that all ranks hold identically. The backward pass yields gradients that are means over the ranks."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(model.device.type, (ranks.world_size,))
    for block in model.blocks():
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)  # the head is needed after the forward pass
    register_fsdp_forward_method(model, "forward_with_router_stats")


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds only a shard of the tensor (it is a DTensor)."""
    return hasattr(tensor, "to_local")


def get_local_tensor(tensor: Tensor) -> Tensor:
    """This rank's shard, which shares memory with the tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def get_full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor, gathered on every rank. All ranks must call this together."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def all_gather_like(local_shard: Tensor, like: Tensor) -> Tensor:
    """The full tensor from the local shards of all ranks, which are placed like the shards of `like`. Collective."""
    return get_full_tensor(distribute_like(local_shard, like)) if is_sharded(like) else local_shard


def distribute_like(local_shard: Tensor, like: Tensor) -> Tensor:
    """Wrap this rank's shard as a DTensor with the mesh, placement and shape of `like`."""
    if not is_sharded(like):
        return local_shard
    from torch.distributed.tensor import DTensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return DTensor.from_local(local_shard, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def local_shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's shard of a full tensor that every rank holds, placed like the shards of `like`."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return get_local_tensor(distribute_tensor(tensor, mesh, placements, src_data_rank=None))


@contextmanager
def reshard_after(model: nn.Module) -> Iterator[None]:
    """A context for forward passes without gradients; afterwards each rank frees the gathered weights and keeps its shards."""
    try:
        yield
    finally:
        if hasattr(model, "reshard"):
            model.reshard()  # type: ignore[operator]


@torch.no_grad()
def load_full_state_dict(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy full weights, present on every rank, into a model that may be sharded.

    Raises FledgeError if names or shapes differ from the model's.
    """
    own = model.state_dict()
    if set(own) != set(weights) or any(own[name].shape != weights[name].shape for name in own):
        raise FledgeError("these weights belong to another model")
    for name, tensor in own.items():
        get_local_tensor(tensor).copy_(local_shard_like(weights[name].to(tensor.device), tensor))


@torch.no_grad()
def full_state_dict(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """The model's full weights, copied to main memory on ranks that set `keep`; {} on the others. All ranks must call this
    together."""
    copies = {}
    for name, tensor in model.state_dict().items():
        full = get_full_tensor(tensor)
        if keep:
            copies[name] = full.detach().to("cpu", copy=True)
    return copies


def stage_to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the tensors in main memory; DTensors stay sharded."""
    from torch.distributed.checkpoint.staging import BlockingAsyncStager

    return BlockingAsyncStager().stage(dict(tensors))


def save_sharded(tensors: Mapping[str, Tensor], folder: Path, ranks: DistributedContext) -> None:
    """Write each rank's shards as safetensors files into `folder`, which all ranks share, and read them back.

    Raises OSError if writing fails or a file reads back differently.
    """
    from safetensors import safe_open
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer, process_group=ranks.group)
    except CheckpointException as error:
        raise OSError("; ".join(sorted({str(failure[0]) for failure in error.failures.values()}))) from error
    for file in folder.glob(f"shard-{ranks.rank + 1:05d}-{FILE_INFIX}*.safetensors"):
        give_usual_mode(file)
        with safe_open(file, framework="pt") as saved:
            for name in sorted(saved.keys()):
                if not torch.equal(_bytes(saved.get_tensor(name)), _bytes(get_local_tensor(tensors[name]))):
                    raise OSError(f"{file.name} reads back differently than it was written")


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def load_unsharded(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder of safetensors files, whether the files hold full tensors or shards."""
    return _read(folder, {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in _entries(folder)})


def load_sharded(folder: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a folder of safetensors files, sharded for this rank.

    A tensor named `<parameter>/<state>` or `<prefix>/<parameter>` is sharded like that parameter in `like` if both have the
    same shape; all others are full.
    """
    targets = {}
    for name, entry in _entries(folder):
        parameter = next(
            (like[candidate] for candidate in (name.rpartition("/")[0], name.partition("/")[2]) if candidate in like), None
        )
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
        warnings.filterwarnings("ignore", message=".*in a single process")  # intended: every rank reads its own shards
        load(targets, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return targets
