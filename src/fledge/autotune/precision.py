"""The choice of the dtype by rules, from the device's capability and from measurements taken elsewhere."""

from collections.abc import Mapping

import torch

from fledge.autotune.gpu_paths import Capability, gpu_path
from fledge.errors import FledgeError
from fledge.model.cuda_attention import unavailable
from fledge.recipe.schema import RuntimeConfig

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAX_BF16_TIME_RATIO = 0.9  # bf16 is chosen if it takes at most this fraction of fp32's time
MIN_BF16_PEAK_RATIO = 1.5  # from this ratio of FLOP/s on, bf16 is compiled even if it is slower uncompiled
MIN_BF16_CAPABILITY = (8, 0)  # with fast products of that dtype


def gpu_precision(capability: Capability) -> tuple[str, str]:
    """The precision for a GPU of this compute capability, and the reason."""
    path = gpu_path(capability)
    return path.precision, f"{path.reason} (compute capability {capability[0]}.{capability[1]})"


def uncompiled_precision(seconds: Mapping[str, float]) -> str:
    """fp32 or bf16 for uncompiled code, from the seconds of each."""
    return "bf16" if seconds["bf16"] <= MAX_BF16_TIME_RATIO * seconds["fp32"] else "fp32"


def compiled_precision(seconds: Mapping[str, float], peaks: Mapping[str, float]) -> str:
    """fp32 or bf16 for compiled code, from uncompiled seconds and the FLOP/s (`peaks`) of each.

    Uncompiled bf16 code spends its time on conversions, which compilation fuses. So where the products alone are much faster in
    bf16, it is chosen for compiled code although it is slower uncompiled.
    """
    return "bf16" if peaks["bf16"] >= MIN_BF16_PEAK_RATIO * peaks["fp32"] else uncompiled_precision(seconds)


def check_supported(config: RuntimeConfig, device: str, capability: Capability | None) -> None:
    """Raise FledgeError if the device does not support the settings of the recipe; nothing is replaced silently.

    `capability`: compute capability of the CUDA device, None on a CPU.
    """
    precision = config.precision
    if precision == "bf16" and capability is not None and capability < MIN_BF16_CAPABILITY:
        raise FledgeError(
            f"this GPU has no bf16 units (compute capability {capability[0]}.{capability[1]}; bf16 needs 8.0)",
            where="runtime.precision",
            hint=f"set runtime.precision to auto ({gpu_precision(capability)[0]} here), fp16 or fp32",
        )
    if precision == "tf32" and (capability is None or capability < MIN_BF16_CAPABILITY):
        raise FledgeError(
            "tf32 exists on GPUs from compute capability 8.0 on",
            where="runtime.precision",
            hint="set runtime.precision to auto or fp32",
        )
    by_rule = "fp32" if capability is None else gpu_precision(capability)[0]
    dtype = DTYPES[by_rule if precision == "auto" else precision]
    problem = unavailable(config.attention, device, dtype, config.compile is not False, capability)
    if problem:
        raise FledgeError(problem, where="runtime.attention", hint="set runtime.attention to auto or sdpa")
