"""Times the phases of a step: on the CPU by the wall clock, on a GPU by CUDA events, which are read when they are done."""

import time
from typing import Any

import torch


class PhaseTimer:
    """The times of the phases of one step. `mark(name)` ends a phase that began at the mark before, or at the start."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = [("", self._now())]
        self._added: dict[str, float] = {}

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def mark(self, name: str) -> None:
        """End the phase `name` here."""
        self._marks.append((name, self._now()))

    def add(self, name: str, seconds: float) -> None:
        """Add seconds of a phase that were measured elsewhere."""
        self._added[name] = self._added.get(name, 0.0) + seconds

    def seconds(self) -> dict[str, float]:
        """Seconds of each phase. On a GPU this waits for the step to be done."""
        phases = dict(self._added)
        if self.cuda and not self._marks[-1][1].query():
            self._marks[-1][1].synchronize()
        for (_, before), (name, after) in zip(self._marks, self._marks[1:], strict=False):
            seconds = before.elapsed_time(after) / 1000 if self.cuda else after - before
            phases[name] = phases.get(name, 0.0) + seconds
        return phases
