"""Deterministic computation on a GPU, for byte-identical results of runs that were interrupted.

Some kernels add in the order in which threads arrive: the backward passes of attention, `index_add`, products that are split. A
run then repeats itself only up to rounding. PyTorch has other kernels for most of them, and refuses the rest.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch

from fledge.errors import FledgeError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
REPEATABLE_WORKSPACES = (":4096:8", ":16:8")  # with others cuBLAS may choose another kernel each time (its manual, §2.1.4)
DETERMINISTIC_ATTENTION = ("sdpa", "blocked", "varlen")  # whose backward pass PyTorch's switch makes repeatable


def use_deterministic(on: bool, device: str) -> None:
    """Switch deterministic algorithms on or off. On a CPU results are repeatable anyhow, and nothing is switched.

    Must be called before the first product on the GPU. Raises FledgeError if CUBLAS_WORKSPACE_CONFIG forbids it.
    """
    on = on and device == "cuda"
    if on and os.environ.setdefault(WORKSPACE, REPEATABLE_WORKSPACES[0]) not in REPEATABLE_WORKSPACES:
        raise FledgeError(
            f"the environment variable {WORKSPACE} is {os.environ[WORKSPACE]}, with which products are not repeatable",
            where="runtime.deterministic",
            hint=f"unset it, or set it to {REPEATABLE_WORKSPACES[0]}",
        )
    torch.use_deterministic_algorithms(on)
    deterministic: Any = import_module("torch.utils.deterministic")
    deterministic.fill_uninitialized_memory = not on  # fills every new tensor with NaN: costs time, and finds mistakes only
    inductor: Any = import_module("torch._inductor.config")
    if hasattr(inductor, "deterministic"):  # else kernels are chosen by timing, differently in each process
        inductor.deterministic = on


@contextmanager
def allow_nondeterministic() -> Iterator[None]:
    """A context for generation, whose sampling has kernels that PyTorch refuses when the switch is on. Its texts change no
    weights."""
    if not torch.are_deterministic_algorithms_enabled():
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deterministic.*")
            yield
    finally:
        torch.use_deterministic_algorithms(True)
