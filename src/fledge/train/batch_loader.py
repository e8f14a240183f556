"""Windows of batches, made one step ahead in a thread of their own, so that the step never waits for its data.

What a window holds is a pure function of the step: the thread changes when it is made, not what is in it.
"""

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from fledge.data import Batch, PackedDataset, Skipped, skip_offset
from fledge.distributed.context import DistributedContext
from fledge.errors import FledgeError
from fledge.plan.horizon import TrainingHorizon


@dataclass(frozen=True)
class StepBatch:
    """What one update reads. `batches` are this rank's, with something to learn from; the figures are of the whole window."""

    step: int
    rows: tuple[int, int]  # first, and the one after the last, of those that are not passed over
    local_rows: tuple[int, int]  # the same of this rank
    batches: tuple[Batch, ...]
    num_micro_steps: int  # batches of the rank that has the most
    padding_batch: Batch | None  # what a rank computes without learning from it, so that it keeps up with the others
    weight: float
    tokens: int
    supervised: int
    by_source: tuple[int, ...]
    epoch: float  # passed, after this window


class BatchLoader:
    """The windows of a stage in order. `micro` rows make one batch; the window's rows depend neither on it nor on how many
    ranks share them."""

    def __init__(
        self,
        data: PackedDataset,
        extent: TrainingHorizon,
        micro: int,
        normalizer: Callable[[Batch], float],
        device: torch.device,
        ranks: DistributedContext | None = None,
    ) -> None:
        """FledgeError where there are more ranks than rows in a window."""
        self.data, self.extent, self.weigh, self.device = data, extent, normalizer, device
        self.ranks = ranks or DistributedContext()
        check_enough_rows(extent, self.ranks)
        self.micro = _even(micro, extent, self.ranks.world_size)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fledge-data")
        self._ahead: tuple[int, int, Future[StepBatch]] | None = None
        self.skipped: Skipped = ()

    def window(self, step: int) -> tuple[StepBatch, float]:
        """The window of a step, and the seconds that were spent waiting for it."""
        started = time.perf_counter()
        if self._ahead is not None and self._ahead[:2] == (step, self.micro):
            window = self._ahead[2].result()
        else:
            window = self._thread.submit(self._make, step, self.micro).result()
        if step + 1 < self.extent.steps:
            self._ahead = (step + 1, self.micro, self._thread.submit(self._make, step + 1, self.micro))
        return self._joined(window), time.perf_counter() - started

    def _joined(self, window: StepBatch) -> StepBatch:
        """With the sums over all ranks. FledgeError where no rank has anything to learn from."""
        counts = (window.weight, window.tokens, window.supervised, *window.by_source)
        weight, tokens, supervised, *by_source = self.ranks.all_reduce_sum(counts)
        if not weight:
            raise FledgeError(f"the {_rows(window)} rows of step {window.step:,} hold nothing to learn from", where="batch")
        if not self.ranks.is_distributed:
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
        return [skip_offset(place, self.skipped) for place in range(first, stop)]

    def rebuild(self, step: int) -> StepBatch:
        """The window of a step that was made before, or is still to come; what is made ahead stays."""
        return self._thread.submit(self._make, step, self.micro).result()

    def _bounds(self, step: int) -> tuple[int, int]:
        """First row of a window, and the one after its last, of the rows that are not passed over."""
        return self.extent.first_row(step), min(self.extent.first_row(step + 1), self.extent.rows)

    def _make(self, step: int, micro: int) -> StepBatch:
        first, stop = self._bounds(step)
        begin, end = self.ranks.shard_range(first, stop)
        made = [self.data.batch(place, micro, end, self.skipped) for place in range(begin, end, micro)]
        batches = tuple(batch for batch in made if batch.num_target_tokens)
        rounds = math.ceil(math.ceil((stop - first) / self.ranks.world_size) / micro)
        keeps_up = not self.ranks.is_distributed or len(batches) == rounds
        idle = None if keeps_up else self.data.batch(first, micro, stop, self.skipped)
        if self.device.type == "cuda":
            batches = tuple(batch.pinned() for batch in batches)
        return StepBatch(
            step,
            (first, stop),
            (begin, end),
            batches,
            rounds,
            idle,
            sum(self.weigh(batch) for batch in batches),
            sum(batch.num_tokens for batch in made),
            sum(batch.num_target_tokens for batch in made),
            tuple(sum(batch.by_source[source] for batch in made) for source in range(len(self.data.sources))),
            self.data.epochs_at(skip_offset(stop - 1, self.skipped) + 1),
        )

    def close(self) -> None:
        """End the thread; a window that is being made is dropped."""
        self._thread.shutdown(wait=True, cancel_futures=True)


def _rows(window: StepBatch) -> int:
    first, stop = window.rows
    return stop - first


def check_enough_rows(extent: TrainingHorizon, ranks: DistributedContext) -> None:
    """FledgeError where some ranks would have nothing to do."""
    if extent.global_batch_rows < ranks.world_size:
        raise FledgeError(
            f"{ranks.world_size} processes cannot share the {extent.global_batch_rows} rows of an update",
            where="batch",
            hint="set a larger batch, or start fewer processes",
        )


def _even(micro: int, extent: TrainingHorizon, size: int) -> int:
    """Rows of a micro-batch where so many ranks share a full window: no more than `micro`, and no empty ones without need."""
    if size == 1:
        return micro
    share = math.ceil(extent.global_batch_rows / size)
    return math.ceil(share / math.ceil(share / micro))
