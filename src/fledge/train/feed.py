"""Windows of batches, made one step ahead in a thread of their own, so that the step never waits for its data.

What a window holds is a pure function of the step: the thread changes when it is made, not what is in it.
"""

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from fledge.data import Batch, PackedData, Skipped, passed_over
from fledge.errors import FledgeError
from fledge.train.length import Extent
from fledge.train.ranks import Ranks


@dataclass(frozen=True)
class Window:
    """What one update reads. `batches` are this rank's, with something to learn from; the figures are of the whole window."""

    step: int
    rows: tuple[int, int]  # first, and the one after the last, of those that are not passed over
    part: tuple[int, int]  # the same of this rank
    batches: tuple[Batch, ...]
    rounds: int  # batches of the rank that has the most
    idle: Batch | None  # what a rank computes without learning from it, so that it keeps up with the others
    weight: float
    tokens: int
    supervised: int
    by_source: tuple[int, ...]
    epoch: float  # passed, after this window


class Feed:
    """The windows of a stage in order. `micro` rows make one batch; the window's rows depend neither on it nor on how many
    ranks share them."""

    def __init__(
        self,
        data: PackedData,
        extent: Extent,
        micro: int,
        weigh: Callable[[Batch], float],
        device: torch.device,
        ranks: Ranks | None = None,
    ) -> None:
        """FledgeError where there are more ranks than rows in a window."""
        self.data, self.extent, self.weigh, self.device = data, extent, weigh, device
        self.ranks = ranks or Ranks()
        refuse_small_window(extent, self.ranks)
        self.micro = _even(micro, extent, self.ranks.size)
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
        return self._joined(window), time.perf_counter() - started

    def _joined(self, window: Window) -> Window:
        """With the sums over all ranks. FledgeError where no rank has anything to learn from."""
        counts = (window.weight, window.tokens, window.supervised, *window.by_source)
        weight, tokens, supervised, *by_source = self.ranks.total(counts)
        if not weight:
            raise FledgeError(f"the {_rows(window)} rows of step {window.step:,} hold nothing to learn from", where="batch")
        if self.ranks.alone:
            return window
        return replace(
            window, weight=weight, tokens=int(tokens), supervised=int(supervised), by_source=tuple(map(int, by_source))
        )

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
        begin, end = self.ranks.share(first, stop)
        made = [self.data.batch(place, micro, end, self.skipped) for place in range(begin, end, micro)]
        batches = tuple(batch for batch in made if batch.supervised)
        rounds = math.ceil(math.ceil((stop - first) / self.ranks.size) / micro)
        keeps_up = self.ranks.alone or len(batches) == rounds
        idle = None if keeps_up else self.data.batch(first, micro, stop, self.skipped)
        if self.device.type == "cuda":
            batches = tuple(batch.pinned() for batch in batches)
        return Window(
            step,
            (first, stop),
            (begin, end),
            batches,
            rounds,
            idle,
            sum(self.weigh(batch) for batch in batches),
            sum(batch.filled for batch in made),
            sum(batch.supervised for batch in made),
            tuple(sum(batch.by_source[source] for batch in made) for source in range(len(self.data.sources))),
            self.data.epochs_at(passed_over(stop - 1, self.skipped) + 1),
        )

    def close(self) -> None:
        """End the thread; a window that is being made is dropped."""
        self._thread.shutdown(wait=True, cancel_futures=True)


def _rows(window: Window) -> int:
    first, stop = window.rows
    return stop - first


def refuse_small_window(extent: Extent, ranks: Ranks) -> None:
    """FledgeError where some ranks would have nothing to do."""
    if extent.window < ranks.size:
        raise FledgeError(
            f"{ranks.size} processes cannot share the {extent.window} rows of an update",
            where="batch",
            hint="set a larger batch, or start fewer processes",
        )


def _even(micro: int, extent: Extent, size: int) -> int:
    """Rows of a micro-batch where so many ranks share a full window: no more than `micro`, and no empty ones without need."""
    if size == 1:
        return micro
    share = math.ceil(extent.window / size)
    return math.ceil(share / math.ceil(share / micro))
