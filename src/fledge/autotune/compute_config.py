"""The compute configuration of a stage and its application to a model."""

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt

from fledge.autotune import precision as precision_rules
from fledge.autotune.compile import compile_blocks, compiled_kernel
from fledge.autotune.determinism import DETERMINISTIC_ATTENTION, use_deterministic
from fledge.autotune.gpu_paths import check_build
from fledge.autotune.precision import DTYPES
from fledge.errors import FledgeError
from fledge.model.attention import avoid_cudnn_attention
from fledge.model.cuda_attention import unavailable
from fledge.model.protocol import LanguageModel
from fledge.recipe.schema import RuntimeConfig
from fledge.run.code_cache import private_code_cache
from fledge.run.environment import cores, local_world_size
from fledge.run.text_files import read_json


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a stage computes, with the measurements that led to the choice. Stored as compute.json.

    `eager_attention`: the backend of passes in which compiled code is not used, where the stage compiles; None: `attention`."""

    device: Annotated[str, Field(pattern="^(cpu|cuda)$")]
    precision: Annotated[str, Field(pattern=f"^({'|'.join(DTYPES)})$")]
    attention: str
    compile: bool
    threads: PositiveInt
    deterministic: bool = False
    eager_attention: str | None = None
    measurements: dict[str, float | str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The values for compute.json."""
        return asdict(self)

    @classmethod
    def read(cls, file: Path) -> "ComputeConfig":
        """The configuration in a compute.json. Raises FledgeError if the file is damaged."""
        values = read_json(file, cls, "remove this file: the machine is then measured again, and the last bits may differ")
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    @property
    def matmul_peak(self) -> float | None:
        """Measured FLOP/s of matrix products in this precision, the reference of MFU; None if not measured."""
        peak = self.measurements.get("matmul_peak_flops")
        return None if peak is None else float(peak)

    def describe(self) -> str:
        """The configuration in one line, for the console."""
        reason = self.measurements.get("compile_reason", "")
        return (
            f"machine: {self.device}, {self.precision}, {self.threads} threads, attention {self.attention}, "
            f"compile {'on' if self.compile else 'off'}" + (f" ({reason})" if reason else "")
        )

    def apply(self, model: LanguageModel) -> LanguageModel:
        """Configure the model and torch accordingly; returns the model.

        If several processes train on this machine, threads are limited to this process's share of the cores.
        """
        torch.set_num_threads(
            self.threads if local_world_size() == 1 else min(self.threads, max(1, cores() // local_world_size()))
        )
        use_float32(self.precision)
        avoid_cudnn_attention(torch.device(self.device))
        use_deterministic(self.deterministic, self.device)
        return self.place(model)

    def on(self, device: str, precision: str) -> "ComputeConfig":
        """The configuration in another precision, or on another device, where nothing is compiled. Attention that does not
        exist there is PyTorch's."""
        compiled = self.compile and device == self.device

        def usable(attention: str, in_compiled_code: bool) -> str:
            reason = unavailable(attention, device, DTYPES[precision], in_compiled_code, capability(device))
            return attention if device == self.device and reason is None else "sdpa"

        eager = None if self.eager_attention is None else usable(self.eager_attention, False)
        attention = usable(self.attention, compiled)
        return replace(self, device=device, precision=precision, attention=attention, compile=compiled, eager_attention=eager)

    def place(self, model: LanguageModel) -> LanguageModel:
        """Configure the model, and nothing of the process; returns the model."""
        model.compute_dtype = DTYPES[self.precision]
        self.set_attention(model)
        model.to(self.device)
        if self.compile:
            compile_blocks(model)
        return model

    def set_attention(self, model: LanguageModel) -> None:
        """Choose the model's attention backends."""
        model.set_attention_backend(self.attention)
        model.eager_attention = self.eager_attention


def use_float32(precision: str) -> None:
    """Set the precision of float32 products: TF32 if `precision` is tf32, else full float32."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def head_kernel(decision: ComputeConfig) -> Any:
    """The compiled kernel of the head if the configuration compiles, else None."""
    return compiled_kernel() if decision.compile else None


def capability(device: str) -> tuple[int, int] | None:
    """CUDA compute capability, e.g. (8, 0); None on a CPU."""
    return torch.cuda.get_device_capability() if device == "cuda" else None


def check_device(config: RuntimeConfig) -> None:
    """Raise FledgeError if the device is missing or does not support the settings of the recipe, or if other users could put
    compiled code into its cache."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise FledgeError("no CUDA device is available", where="runtime.device", hint="set runtime.device to auto or cpu")
    device = chosen_device(config)
    if (units := capability(device)) is not None:
        check_build(units, torch.cuda.get_arch_list(), torch.__version__)
    precision_rules.check_supported(config, device, units)
    if config.deterministic and device == "cuda" and config.attention not in ("auto", *DETERMINISTIC_ATTENTION):
        raise FledgeError(
            f"attention {config.attention} is not known to give the same bits each time",
            where="runtime.deterministic",
            hint=f"set runtime.attention to auto, {', '.join(DETERMINISTIC_ATTENTION)}",
        )
    if config.compile is not False:  # here, because later a compiler that fails is no error
        private_code_cache()


def chosen_device(config: RuntimeConfig) -> str:
    """`cpu` or `cuda`; `auto` is resolved."""
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.device


def known_precision(config: RuntimeConfig) -> str | None:
    """The precision, if it is known before anything is measured."""
    units = capability(chosen_device(config))
    if config.precision != "auto":
        return config.precision
    return None if units is None else precision_rules.gpu_precision(units)[0]


def describe_runtime(config: RuntimeConfig) -> list[str]:
    """Device, precision, attention and compilation as far as they are known before anything is measured, with the reasons."""
    device, units = chosen_device(config), capability(chosen_device(config))
    measured = "auto: measured on this machine before the first step"
    precision = f"precision {config.precision}: set in the recipe"
    if config.precision == "auto":
        precision = f"precision {measured}, fp32 or bf16"
        if units is not None:
            precision = "precision {}: {}".format(*precision_rules.gpu_precision(units))
    attention = f"attention {config.attention}: set in the recipe"
    if config.attention == "auto":
        attention = f"attention {measured}; the fastest backend is taken"
    compiles = f"compile {str(config.compile).lower()}: set in the recipe"
    if config.compile == "auto":
        compiles = f"compile {measured}, where a stage is long enough for compiling to save time"
    found = "set in the recipe" if config.device != "auto" else "a GPU was found" if device == "cuda" else "no GPU was found"
    return [f"device {device}: {found}", precision, attention, compiles]
