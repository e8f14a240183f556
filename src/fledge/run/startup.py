"""Where the time before the first step goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil


class StartupTimer:
    """Seconds from the start of the process to the first step, by part; whatever is not in a part is the rest."""

    def __init__(self) -> None:
        self._born = psutil.Process().create_time()
        self.parts: dict[str, float] = {"imports": max(0.0, time.time() - self._born)}
        self._inner = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time spent inside belongs to this part; a part inside another is taken out of the outer one."""
        started, before = time.perf_counter(), self._inner
        self._inner = 0.0
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.parts[name] = self.parts.get(name, 0.0) + spent - self._inner
            self._inner = before + spent

    def as_dict(self) -> dict[str, float]:
        """`ready_seconds` since the process began, and `<part>_seconds` of each part."""
        total = time.time() - self._born
        return {"ready_seconds": round(total, 3), **{f"{name}_seconds": round(spent, 3) for name, spent in self.parts.items()}}

    def line(self) -> str:
        """`first step done after 12.3 s (imports 2.1 s, data 6.0 s, probe 0.1 s, compile 4.1 s)`."""
        parts = ", ".join(f"{name.replace('_', ' ')} {spent:.1f} s" for name, spent in self.parts.items())
        return f"first step done after {time.time() - self._born:.1f} s ({parts})"

    def reassign(self, name: str, seconds: float, out_of: str) -> None:
        """These seconds of the part `out_of` belong to a part of their own."""
        self.parts[out_of] = self.parts.get(out_of, 0.0) - seconds
        self.parts[name] = self.parts.get(name, 0.0) + seconds
