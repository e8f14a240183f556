"""In what dtype to compute: rules, given what the device can do and what was measured. Nothing is measured here."""

from collections.abc import Mapping

import torch

from fledge.errors import FledgeError
from fledge.model.cuda_attention import unavailable
from fledge.recipe.schema import RuntimeConfig

Capability = tuple[int, int]  # CUDA compute capability, e.g. (7, 5)

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAX_BF16_TIME_RATIO = 0.9  # bf16 must take at most this share of fp32's time
MIN_BF16_PEAK_RATIO = 1.5  # bf16 products so much faster than fp32's are tried compiled, whatever uncompiled code says
HALF_UNITS, BRAIN_UNITS = (7, 0), (8, 0)  # compute capabilities from which products of fp16, and of bf16, are fast


def on_gpu(capability: Capability) -> tuple[str, str]:
    """The precision for a GPU of this compute capability, and why."""
    name = f"compute capability {capability[0]}.{capability[1]}"
    if capability >= BRAIN_UNITS:
        return "bf16", f"the GPU has bf16 units ({name})"
    if capability >= HALF_UNITS:
        return "fp16", f"the GPU has fp16 units and no bf16 units ({name})"
    return "fp32", f"the GPU has neither bf16 nor fp16 units ({name})"


def without_compiling(seconds: Mapping[str, float]) -> str:
    """fp32 or bf16 for plain code, by the seconds that each of them takes."""
    return "bf16" if seconds["bf16"] <= MAX_BF16_TIME_RATIO * seconds["fp32"] else "fp32"


def with_compiling(seconds: Mapping[str, float], peaks: Mapping[str, float]) -> str:
    """fp32 or bf16 for code that will be compiled.

    Plain bf16 code spends its time converting, which compiled code does on the way; so where the products themselves
    (FLOP/s of each dtype) are much faster, bf16 is worth compiling though it lost uncompiled.
    """
    return "bf16" if peaks["bf16"] >= MIN_BF16_PEAK_RATIO * peaks["fp32"] else without_compiling(seconds)


def refuse(config: RuntimeConfig, device: str, capability: Capability | None) -> None:
    """FledgeError for what this device cannot do as the recipe wants it; nothing is quietly done otherwise.

    `capability` is that of the CUDA device, None on a CPU.
    """
    precision = config.precision
    if precision == "bf16" and capability is not None and capability < BRAIN_UNITS:
        raise FledgeError(
            f"this GPU has no bf16 units (compute capability {capability[0]}.{capability[1]}; bf16 needs 8.0)",
            where="runtime.precision",
            hint=f"set runtime.precision to auto ({on_gpu(capability)[0]} here), fp16 or fp32",
        )
    if precision == "tf32" and (capability is None or capability < BRAIN_UNITS):
        raise FledgeError(
            "tf32 exists on GPUs from compute capability 8.0 on",
            where="runtime.precision",
            hint="set runtime.precision to auto or fp32",
        )
    by_rule = "fp32" if capability is None else on_gpu(capability)[0]
    dtype = DTYPES[by_rule if precision == "auto" else precision]
    problem = unavailable(config.attention, device, dtype, config.compile is not False)
    if problem:
        raise FledgeError(problem, where="runtime.attention", hint="set runtime.attention to auto or sdpa")
