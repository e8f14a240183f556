"""The devices that a recipe is planned for: this machine, and cards of the table."""

from dataclasses import dataclass

import torch

from fledge.autotune.benchmark import fastest_product
from fledge.autotune.compute_config import chosen_device, known_precision
from fledge.autotune.gpu_paths import gpu_path
from fledge.autotune.precision import check_supported
from fledge.errors import FledgeError
from fledge.plan.devices import Device, find_device
from fledge.plan.memory import budget
from fledge.plan.time import Hardware
from fledge.recipe.schema import RuntimeConfig
from fledge.run.environment import local_world_size

HERE = "here"
USABLE = 0.94  # of a card's memory, that is left for training beside CUDA's context and the display


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a recipe is to run.

    `device`: the card of the table, None for one that is not in it and for a CPU. `kind`: cpu or cuda. `memory`: bytes for one
    process. `precision`: of training. `hardware`: its speed, None where that cannot be measured, for the reason `problem`.
    `is_here`: whether it is this machine.
    """

    name: str
    kind: str
    device: Device | None
    count: int
    memory: float
    precision: str
    hardware: Hardware | None
    is_here: bool
    problem: str = ""

    @property
    def label(self) -> str:
        """`2 × T4`, `this machine (cpu)`."""
        return self.name if self.count == 1 else f"{self.count} × {self.name}"


def this_machine(runtime: RuntimeConfig) -> Target:
    """The device that a run of this recipe would use here, its speed measured in about a second."""
    kind, count = chosen_device(runtime), local_world_size()
    device = _known_card() if kind == "cuda" else None
    precision = known_precision(runtime) or "fp32"
    hardware, problem = None, ""
    try:
        hardware = Hardware(
            flops=fastest_product(kind, known_precision(runtime)),
            bandwidth=None if device is None else device.bandwidth,
            link=None if device is None else device.link,
            count=count,
            is_sharded=runtime.parallelism == "fsdp",
        )
    except FledgeError as error:  # a GPU may be full; the rest of a plan is right nevertheless
        problem = error.what
    return Target(
        name=f"this machine ({kind})" if device is None else f"this machine ({device.name})",
        kind=kind,
        device=device,
        count=count,
        memory=budget(runtime, kind),
        precision=precision,
        hardware=hardware,
        is_here=True,
        problem=problem,
    )


def _known_card() -> Device | None:
    """This machine's GPU as an entry of the table; None if it is not there."""
    try:
        return find_device(torch.cuda.get_device_name())[0]
    except FledgeError:
        return None


def target_of(text: str, runtime: RuntimeConfig) -> Target:
    """The cards that a text such as `2xT4` names. Raises FledgeError for an unknown card, and for settings of the runtime
    section that the card does not support."""
    device, count = find_device(text)
    try:
        check_supported(runtime, "cuda", device.capability)
    except FledgeError as error:
        raise FledgeError(f"{device.name}: {error.what}", where=error.where, hint=error.hint) from None
    precision = gpu_path(device.capability).precision if runtime.precision == "auto" else runtime.precision
    return Target(
        name=device.name,
        kind="cuda",
        device=device,
        count=count,
        memory=runtime.memory_budget or USABLE * device.memory,
        precision=precision,
        hardware=Hardware(
            flops=device.peak(precision),
            bandwidth=device.bandwidth,
            link=device.link,
            count=count,
            is_sharded=runtime.parallelism == "fsdp",
        ),
        is_here=False,
    )
