"""The speed of earlier stages on this machine, which later plans go by.

A stage that ends adds a line to a file in the machine's cache, which may be deleted at any time. Nothing that is trained
depends on it.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from fledge.run.cache import cache_folder
from fledge.run.environment import cores, cpu_name

MAX_LINES = 400  # of the file that are read: the newest
NEAREST = 5  # earlier stages that decide, of those alike
MAX_SIZE_FACTOR = 4.0  # between parameters, from which the speed of one says little about the other
MIN_SPREAD = 0.1  # share by which equal stages differ from day to day: chosen by fledge
MIN_UPDATES = 20  # of a stage whose speed is worth remembering


@dataclass(frozen=True, kw_only=True)
class PastStage:
    """The speed of a stage. `machine`: `machine_name`; `flops_per_second`: its work divided by the seconds of its updates."""

    machine: str
    kind: str
    precision: str
    parameters: int
    trained: int
    flops_per_second: float


@dataclass(frozen=True)
class UsualSpeed:
    """FLOP/s of stages alike on this machine, the share by which they differ, and how many there were."""

    flops_per_second: float
    spread: float
    count: int


def machine_name(device: str) -> str:
    """The name of what computes: a GPU's, or a processor's with its cores."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    return f"{cpu_name()} × {cores()}"


def history_file() -> Path:
    """The file of all earlier stages."""
    return cache_folder() / "speeds.jsonl"


def remember(stage: PastStage, log: Callable[[str], None]) -> None:
    """Add a stage to the file. A failure is logged, not raised."""
    file = history_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(stage), ensure_ascii=False) + "\n")
    except OSError as error:
        log(f"note: the speed of this stage is not kept for later plans: {error.strerror} ({file})")


def past_stages() -> list[PastStage]:
    """The newest stages of the file; a line that cannot be read is left out, because nothing depends on it."""
    try:
        lines = history_file().read_text(encoding="utf-8").splitlines()[-MAX_LINES:]
    except (OSError, UnicodeDecodeError):
        return []
    return [stage for line in lines if (stage := _read(line)) is not None]


def _read(line: str) -> PastStage | None:
    try:
        values: dict[str, Any] = json.loads(line)
        stage = PastStage(**values)
        return stage if stage.flops_per_second > 0 and stage.parameters > 0 else None
    except (ValueError, TypeError):
        return None


def usual_speed(
    past: list[PastStage], *, machine: str, kind: str, precision: str | None, parameters: int, trained: int
) -> UsualSpeed | None:
    """The speed of the newest stages of this machine and kind whose models are of about this size; None if there is none.
    `precision`: of these stages; None: any."""

    def is_alike(stage: PastStage) -> bool:
        pairs = ((stage.parameters, parameters), (stage.trained, trained))
        sizes = all(one and 1 / MAX_SIZE_FACTOR <= one / other <= MAX_SIZE_FACTOR for one, other in pairs)
        return stage.machine == machine and stage.kind == kind and precision in (None, stage.precision) and sizes

    alike = [stage.flops_per_second for stage in past if is_alike(stage)][-NEAREST:]
    if not alike:
        return None
    middle = median(alike)
    spread = max(abs(speed / middle - 1) for speed in alike)
    return UsualSpeed(middle, max(MIN_SPREAD, spread), len(alike))
