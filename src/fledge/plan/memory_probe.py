"""The estimate of a training step's memory, corrected by one measured peak.

A peak says how far the estimate is off for one number of rows. Where it was too low, half of the gap is taken to grow with the
tensors that come and go, as holes between them do, and half to stay; where it was too high, the gap stays. The halves are a
choice from benchmarks/plan_memory.py.
"""

from dataclasses import dataclass

from fledge.plan.memory_moments import MemoryInputs, estimate, memory_of_step, moments_of_step
from fledge.recipe.schema import RuntimeConfig

GROWING = 0.5  # share of a positive gap that grows with the rows


@dataclass(frozen=True)
class MemoryProbe:
    """A measured peak, in bytes, of training steps with `rows` rows per micro-batch: of the resident size on a CPU, of reserved
    memory and context on a GPU. The other settings are those of `inputs` and `runtime`."""

    inputs: MemoryInputs
    runtime: RuntimeConfig
    rows: int
    measured: float

    def training_step(self, rows: int) -> float:
        """Bytes of a training step with `rows` rows per micro-batch."""
        gap = self.measured - memory_of_step(self.inputs, self.runtime, self.rows).total
        if gap > 0:
            growth = self._fleeting(rows) / self._fleeting(self.rows)
            gap *= 1 - GROWING + GROWING * growth
        return memory_of_step(self.inputs, self.runtime, rows).total + gap

    def estimate(self, rows: int) -> float:
        """Bytes of the stage, at the moment that needs the most."""
        step = memory_of_step(self.inputs, self.runtime, rows).total
        return estimate(self.inputs, self.runtime, rows) + self.training_step(rows) - step

    def _fleeting(self, rows: int) -> float:
        """Bytes of the tensors that come and go in a step."""
        forward = moments_of_step(self.inputs, self.runtime, rows)["forward"]
        return forward.activations + forward.head
