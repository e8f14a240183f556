"""The machine and the software versions that a run was made with."""

import os
import platform
import sys
from importlib import metadata
from typing import Any


def memory_bytes(device: str = "cpu") -> int:
    """The memory that this process holds now, in bytes: resident main memory, or memory allocated on the GPU."""
    if device == "cuda":
        import torch

        return torch.cuda.memory_allocated()
    import psutil

    return psutil.Process().memory_info().rss


def peak_memory_bytes(device: str = "cpu") -> int:
    """The most memory that this process has held so far, in bytes."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    import psutil

    try:
        import resource
    except ImportError:  # Windows keeps the peak elsewhere
        return psutil.Process().memory_info().peak_wset  # type: ignore[attr-defined]
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_world_size() -> int:
    """The number of processes that train together on this machine, as torchrun sets it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def world_size() -> int:
    """The number of processes that train together on all machines, as torchrun sets it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The name of the processor, as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """The content of environment.json: what may explain a difference between two runs."""
    import psutil
    import torch

    from fledge.version import __version__

    return {
        "fledge": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        **{package: _version(package) for package in ("torch", "tokenizers", "safetensors", "numpy", "pydantic")},
    }
