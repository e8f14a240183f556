"""The time between the start of the process and the first training step, divided into phases."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from fledge.localization import localized_head


class StartupTimer:
    """The seconds of each phase from the start of the process to the first step. Time outside of all phases is not listed."""

    def __init__(self) -> None:
        before = max(0.0, time.time() - psutil.Process().create_time())  # 0 if the clock was set back in between
        self._process_start = time.perf_counter() - before
        self.phases: dict[str, float] = {"imports": before}
        self._nested_seconds = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside the context as this phase. A nested phase is subtracted from the outer one."""
        started, before = time.perf_counter(), self._nested_seconds
        self._nested_seconds = 0.0
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.phases[name] = self.phases.get(name, 0.0) + spent - self._nested_seconds
            self._nested_seconds = before + spent

    def as_dict(self) -> dict[str, float]:
        """`ready_seconds` since the process began, and `<phase>_seconds` for each phase."""
        return {
            "ready_seconds": round(self._seconds(), 3),
            **{f"{name}_seconds": round(spent, 3) for name, spent in self.phases.items()},
        }

    def _seconds(self) -> float:
        """Since the process began; a clock that is set meanwhile changes nothing."""
        return time.perf_counter() - self._process_start

    def line(self) -> str:
        """One line: `first step done after 12.3 s (imports 2.1 s, data 6.0 s, autotune 0.1 s, compile 4.1 s)`."""
        listed = ", ".join(f"{localized_head(name.replace('_', ' '))} {spent:.1f} s" for name, spent in self.phases.items())
        return f"first step done after {self._seconds():.1f} s ({listed})"

    def reassign(self, name: str, seconds: float, out_of: str) -> None:
        """Move seconds from the phase `out_of` to another phase."""
        self.phases[out_of] = self.phases.get(out_of, 0.0) - seconds
        self.phases[name] = self.phases.get(name, 0.0) + seconds
