"""What each generation of NVIDIA GPUs computes with, by compute capability. docs/gpu.md shows the table with its reasons."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fledge.errors import FledgeError
from fledge.model.attention import BACKENDS
from fledge.model.cuda_attention import unavailable
from fledge.model.segment_attention import ON_CPU

Capability = tuple[int, int]  # CUDA compute capability, e.g. (7, 5)
_ARCH = re.compile(r"(sm|compute)_(\d+)(\d)[a-z]?$")


@dataclass(frozen=True, kw_only=True)
class GpuPath:
    """The path of the GPUs from one compute capability up to the next entry of `GPU_PATHS`.

    `cards`: examples. `precision`: of `runtime.precision: auto`, with its `reason`. `attention`: the backends that autotune
    tries, the reference first; `flex` is tried in compiled code only.
    """

    cards: str
    precision: str
    reason: str
    attention: tuple[str, ...]


MASKED = ("sdpa", "blocked")  # PyTorch's memory-efficient kernel with a mask; plain products
ALL = ("sdpa", "blocked", "varlen", "flex")
BF16, FP16 = "the GPU has bf16 units", "the GPU has fp16 units and no bf16 units"

GPU_PATHS: dict[Capability, GpuPath] = {
    (0, 0): GpuPath(cards="GTX 10", precision="fp32", reason="the GPU has neither bf16 nor fp16 units", attention=MASKED),
    (7, 0): GpuPath(cards="V100", precision="fp16", reason=FP16, attention=MASKED),
    (7, 5): GpuPath(cards="T4, RTX 20", precision="fp16", reason=FP16, attention=MASKED),
    (8, 0): GpuPath(cards="A100", precision="bf16", reason=BF16, attention=ALL),
    (8, 6): GpuPath(cards="RTX 30, A10", precision="bf16", reason=BF16, attention=ALL),
    (8, 9): GpuPath(cards="RTX 40, L4", precision="bf16", reason=BF16, attention=ALL),
    (9, 0): GpuPath(cards="H100, H200", precision="bf16", reason=BF16, attention=ALL),
    (10, 0): GpuPath(cards="B200", precision="bf16", reason=BF16, attention=ALL),
    (11, 0): GpuPath(cards="Thor", precision="bf16", reason=BF16, attention=ALL),
    (12, 0): GpuPath(cards="RTX 50", precision="bf16", reason=BF16, attention=ALL),
}


def gpu_path(capability: Capability) -> GpuPath:
    """The path of a GPU."""
    return GPU_PATHS[max(lowest for lowest in GPU_PATHS if lowest <= capability)]


def attention_candidates(device: str, dtype: torch.dtype, compiling: bool, capability: Capability | None = None) -> list[str]:
    """Backends that can train on a device; the first one is the reference for the others. `capability`: of the CUDA device."""
    if device == "cpu" or capability is None:
        of_cpu = ON_CPU if device == "cpu" else {}
        return [*(name for name in BACKENDS if name != "reference"), *of_cpu]
    names = gpu_path(capability).attention
    return [name for name in names if unavailable(name, device, dtype, compiling, capability) is None]


def check_build(capability: Capability, arch_list: Sequence[str], version: str) -> None:
    """Raise FledgeError if a build of PyTorch (its `version`) has no code for a GPU. `arch_list`: what
    `torch.cuda.get_arch_list` answers, `sm_75` for code of 7.5 and later 7.x, `compute_90` for code that 9.0 and all later GPUs
    translate themselves."""
    known = [(kind, int(major), int(minor)) for text in arch_list for kind, major, minor in _ARCH.findall(text)]
    runs = any(
        (kind == "compute" and (major, minor) <= capability) or (major == capability[0] and minor <= capability[1])
        for kind, major, minor in known
    )
    if known and not runs:
        name, oldest = "{}.{}".format(*capability), min((major, minor) for _, major, minor in known)
        older = capability < oldest
        raise FledgeError(
            f"PyTorch {version} has no code for this GPU (compute capability {name}; it was built for {', '.join(arch_list)})",
            where="runtime.device",
            hint=f"install {'an older' if older else 'a newer'} build of PyTorch, with sm_{capability[0]}{capability[1]} in "
            "torch.cuda.get_arch_list(), or set runtime.device to cpu",
        )
