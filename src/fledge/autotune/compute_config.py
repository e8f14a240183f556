"""How a stage computes: the decision that is stored with it, and what it does to a model."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from fledge.autotune import precision as rules
from fledge.autotune.compile import compile_blocks, compiled_kernel
from fledge.autotune.precision import DTYPES
from fledge.errors import FledgeError
from fledge.model.protocol import LanguageModel
from fledge.recipe.schema import RuntimeConfig
from fledge.run.environment import cores, local_world_size


@dataclass(frozen=True)
class ComputeConfig:
    """How a stage computes, and the measurements that decided it."""

    device: str
    precision: str
    attention: str
    compile: bool
    threads: int
    measurements: dict[str, float | str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For compute.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ComputeConfig":
        """From compute.json."""
        return cls(**values)

    @property
    def matmul_peak(self) -> float | None:
        """FLOP/s of matrix products in this precision on this machine, as measured; what MFU is a share of."""
        peak = self.measurements.get("matmul_peak_flops")
        return None if peak is None else float(peak)

    def apply(self, model: LanguageModel) -> LanguageModel:
        """Make the model compute so. Where several processes share the machine, with no more threads than its share."""
        torch.set_num_threads(
            self.threads if local_world_size() == 1 else min(self.threads, max(1, cores() // local_world_size()))
        )
        use_float32(self.precision)
        model.compute_dtype = DTYPES[self.precision]
        model.set_attention_backend(self.attention)
        model.to(self.device)
        if self.compile:
            compile_blocks(model)
        return model


def use_float32(precision: str) -> None:
    """Products of float32 are true float32, unless TF32 was asked for."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def head_kernel(decision: ComputeConfig) -> Any:
    """The head's chunk, compiled where compiling was decided; None for the plain one."""
    return compiled_kernel() if decision.compile else None


def capability(device: str) -> tuple[int, int] | None:
    """CUDA compute capability of the device, e.g. (8, 0); None on a CPU."""
    return torch.cuda.get_device_capability() if device == "cuda" else None


def check_device(config: RuntimeConfig) -> None:
    """FledgeError for a device that this machine does not have, or what the device cannot do."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise FledgeError("no CUDA device is at hand", where="runtime.device", hint="set runtime.device to auto or cpu")
    device = chosen_device(config)
    rules.refuse(config, device, capability(device))


def chosen_device(config: RuntimeConfig) -> str:
    """cpu or cuda."""
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.device
