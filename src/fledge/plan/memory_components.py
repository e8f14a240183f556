"""What is held in memory at one moment, by what it is for, and how far a peak may lie above the estimate."""

from dataclasses import asdict, dataclass

MOST_RESERVED = 1.41  # a CUDA allocator's reserved ÷ allocated bytes, of which 1.08 to 1.41 are published
# Peaks of equal runs on a CPU differ by up to 7 %, because its allocator gives memory back at some moments and not at others;
# all but a few of benchmarks/plan_memory.py lie less than this above the estimate.
SPREAD = 0.1


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that one process holds on its device at one moment, by what they are for.

    `head`: logits of a chunk of rows, the gradient of the head's matrix and its copy in low precision. `copies`: averaged
    weights, weights before an update, a checkpoint. `reserve`: the program, its libraries, and what the allocator holds beyond
    the tensors.
    """

    weights: float
    gradients: float = 0.0
    optimizer_state: float = 0.0
    activations: float = 0.0
    head: float = 0.0
    copies: float = 0.0
    reference: float = 0.0
    reward_models: float = 0.0
    reserve: float = 0.0

    @property
    def total(self) -> float:
        """All bytes."""
        return sum(asdict(self).values())

    @property
    def fleeting(self) -> float:
        """Bytes of the tensors that come and go in a step."""
        return self.activations + self.head

    @property
    def allocated(self) -> float:
        """Bytes of tensors: `total` without `reserve`."""
        return self.total - self.reserve


def highest_peak(needs: float, memory: Memory, device: str, *, is_measured: bool) -> float:
    """Bytes that a peak may reach: `needs`, the estimate or what was measured, and how far it may be off. `memory`: by
    component; `is_measured`: a probe corrected the estimate."""
    if device == "cpu" or is_measured:
        return (1 + SPREAD) * needs
    return memory.reserve + MOST_RESERVED * memory.allocated
