"""Checks of the processes when they have met: what would fail later, without its cause, is refused here by all of them."""

import os
import platform
from typing import Any

import torch

from fledge.errors import FledgeError
from fledge.version import __version__


def gpu_of(local_rank: int, local_world_size: int, visible: int) -> int:
    """The number of the GPU of a process among those that it sees.

    `local_rank` of `local_world_size` processes on this machine; `visible`: GPUs that the process sees. A process that sees
    one GPU takes it: a scheduler may have given each process one of its own (Slurm's gpus-per-task), and `check_ranks` finds
    two processes with the same one. Raises FledgeError if there are several GPUs but more processes.
    """
    if visible >= local_world_size:
        return local_rank
    if visible == 1:
        return 0
    raise FledgeError(
        f"{local_world_size} processes on this machine have {visible} GPUs among them; each needs one of its own",
        where="--processes",
        hint=f"start {visible} processes on a machine, or set runtime.device to cpu",
    )


def local_facts(uses_gpu: bool) -> dict[str, Any]:
    """What the other processes must know about this one: host, versions, its GPU, and what is missing. JSON values."""
    facts: dict[str, Any] = {
        "host": platform.node(),
        "fledge": __version__,
        "torch": torch.__version__,
        "gpu": None,
        "problem": None,
    }
    if not uses_gpu:
        return facts
    import torch.distributed as dist

    if not dist.is_nccl_available():
        return facts | {"problem": ["this build of torch has no NCCL, which carries gradients between GPUs", "runtime.device"]}
    sizes = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    try:
        gpu = gpu_of(*sizes, torch.cuda.device_count())
    except FledgeError as error:
        return facts | {"problem": [error.what, error.where, error.hint]}
    torch.cuda.set_device(gpu)
    return facts | {"gpu": str(getattr(torch.cuda.get_device_properties(gpu), "uuid", "")) or f"number {gpu}"}


def backends(uses_gpu: bool) -> str:
    """torch's backend names: gloo for tensors in main memory, NCCL for tensors on GPUs."""
    return "cpu:gloo,cuda:nccl" if uses_gpu else "gloo"


def group_problem(backend_config: str, uses_gpu: bool) -> list[str] | None:
    """What is wrong with a process group that somebody else has made; None if it will do. `backend_config`: what
    `torch.distributed.get_backend_config` answers, such as `cpu:gloo,cuda:nccl`. As `problem` of `local_facts`."""
    by_device = dict(part.split(":", 1) for part in backend_config.split(",") if ":" in part)
    hint = f"call torch.distributed.init_process_group('{backends(uses_gpu)}'), or leave it to fledge"
    if "cpu" not in by_device:
        return [f"the process group ({backend_config}) carries no tensors of main memory", "torch.distributed", hint]
    if uses_gpu and by_device.get("cuda") != "nccl":
        return [f"the process group ({backend_config}) has no NCCL for tensors of GPUs", "torch.distributed", hint]
    return None


def check_ranks(facts: list[dict[str, Any]]) -> None:
    """Raise FledgeError if the processes, whose facts are in the order of ranks, cannot train together."""
    for rank, one in enumerate(facts):
        if one["problem"] is not None:
            what, where, *hint = one["problem"]
            advice = hint[0] if hint else "install torch with CUDA from pytorch.org (Linux only), or set runtime.device to cpu"
            raise FledgeError(f"process {rank} on {one['host']}: {what}", where=where, hint=advice)
        for package in ("fledge", "torch"):
            if one[package] != facts[0][package]:
                raise FledgeError(
                    f"process {rank} on {one['host']} runs {package} {one[package]}, process 0 on {facts[0]['host']} "
                    f"{facts[0][package]}",
                    where=f"process {rank}",
                    hint="install the same versions on all machines",
                )
        if (one["gpu"] is None) != (facts[0]["gpu"] is None):
            with_gpu, without = (0, rank) if one["gpu"] is None else (rank, 0)
            raise FledgeError(
                f"process {with_gpu} on {facts[with_gpu]['host']} has a GPU, "
                f"process {without} on {facts[without]['host']} has none",
                where=f"process {without}",
                hint="start processes where there are GPUs, or set runtime.device to cpu",
            )
    _check_own_gpus(facts)


def _check_own_gpus(facts: list[dict[str, Any]]) -> None:
    owners: dict[tuple[str, str], int] = {}
    for rank, one in enumerate(facts):
        first = owners.setdefault((one["host"], str(one["gpu"])), rank)
        if one["gpu"] is not None and first != rank:
            raise FledgeError(
                f"processes {first} and {rank} on {one['host']} have the same GPU ({one['gpu']})",
                where="--processes",
                hint="start one process for each GPU, or set runtime.device to cpu",
            )
