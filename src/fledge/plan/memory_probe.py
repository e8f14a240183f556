"""The estimate of memory, corrected by one measured peak.

A peak says how far the estimate is off for one number of rows. Where it was too low, half of the gap is taken to grow with the
tensors that come and go, as holes between them do, and half to stay; where it was too high, the gap stays. The halves are a
choice from benchmarks/plan_memory.py.
"""

from dataclasses import dataclass

from fledge.plan.memory_moments import MemoryInputs, moments_of_step
from fledge.recipe.schema import RuntimeConfig

GROWING = 0.5  # share of a positive gap that grows with the rows


@dataclass(frozen=True)
class MemoryProbe:
    """A measured peak with `rows` rows per micro-batch: of the resident size on a CPU, of reserved memory and context on a GPU.
    `gap`: bytes that it lay above what was estimated for `inputs` and `runtime`; negative: below."""

    inputs: MemoryInputs
    runtime: RuntimeConfig
    rows: int
    gap: float

    def correction(self, inputs: MemoryInputs, runtime: RuntimeConfig, rows: int) -> float:
        """Bytes to add to an estimate for other rows, or other inputs of the same stage."""
        if self.gap <= 0:
            return self.gap
        growth = _fleeting(inputs, runtime, rows) / _fleeting(self.inputs, self.runtime, self.rows)
        return self.gap * (1 - GROWING + GROWING * growth)


def _fleeting(inputs: MemoryInputs, runtime: RuntimeConfig, rows: int) -> float:
    """Bytes of the tensors that come and go in a step."""
    return moments_of_step(inputs, runtime, rows)["forward"].fleeting
