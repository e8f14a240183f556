"""Windows of batches, made one step ahead in a thread of their own, so that the step never waits for its data.

What a window holds is a pure function of the step: the thread changes when it is made, not what is in it.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from fledge.data import Batch, PackedData, Skipped, passed_over
from fledge.errors import FledgeError
from fledge.train.length import Extent


@dataclass(frozen=True)
class Window:
    """What one update reads: micro-batches that have something to learn from, and what the whole window holds."""

    step: int
    batches: tuple[Batch, ...]
    weight: float
    tokens: int
    supervised: int
    by_source: tuple[int, ...]
    epoch: float  # passed, after this window


class Feed:
    """The windows of a stage in order. `micro` rows make one batch; the window's rows do not depend on it."""

    def __init__(
        self, data: PackedData, extent: Extent, micro: int, weigh: Callable[[Batch], float], device: torch.device
    ) -> None:
        self.data, self.extent, self.micro, self.weigh, self.device = data, extent, micro, weigh, device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fledge-data")
        self._ahead: tuple[int, int, Future[Window]] | None = None
        self.skipped: Skipped = ()

    def window(self, step: int) -> tuple[Window, float]:
        """The window of a step, and the seconds that were spent waiting for it."""
        started = time.perf_counter()
        if self._ahead is not None and self._ahead[:2] == (step, self.micro):
            window = self._ahead[2].result()
        else:
            window = self._thread.submit(self._make, step, self.micro).result()
        if step + 1 < self.extent.steps:
            self._ahead = (step + 1, self.micro, self._thread.submit(self._make, step + 1, self.micro))
        return window, time.perf_counter() - started

    def skip(self, skipped: Skipped) -> None:
        """From now on pass over these rows, (first, count) each, of the stream; what is made already is dropped."""
        self.skipped, self._ahead = [list(part) for part in skipped], None

    def rows(self, step: int) -> list[int]:
        """Places in the stream of the rows of a window."""
        first, stop = self._bounds(step)
        return [passed_over(place, self.skipped) for place in range(first, stop)]

    def window_again(self, step: int) -> Window:
        """The window of a step that was made before, or is still to come; what is made ahead stays."""
        return self._thread.submit(self._make, step, self.micro).result()

    def _bounds(self, step: int) -> tuple[int, int]:
        """First row of a window, and the one after its last, of the rows that are not passed over."""
        return self.extent.first_row(step), min(self.extent.first_row(step + 1), self.extent.rows)

    def _make(self, step: int, micro: int) -> Window:
        first, stop = self._bounds(step)
        made = [self.data.batch(place, micro, stop, self.skipped) for place in range(first, stop, micro)]
        batches = tuple(batch for batch in made if batch.supervised)
        if not batches:
            raise FledgeError(f"the {len(made)} micro-batches of step {step:,} hold nothing to learn from", where="batch")
        by_source = [sum(counts) for counts in zip(*(batch.by_source for batch in made), strict=True)]
        if self.device.type == "cuda":
            batches = tuple(batch.pinned() for batch in batches)
        return Window(
            step,
            batches,
            sum(self.weigh(batch) for batch in batches),
            sum(batch.filled for batch in made),
            sum(batch.supervised for batch in made),
            tuple(by_source),
            self.data.epochs_at(passed_over(stop - 1, self.skipped) + 1),
        )

    def close(self) -> None:
        """End the thread; a window that is being made is dropped."""
        self._thread.shutdown(wait=True, cancel_futures=True)
