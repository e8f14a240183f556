"""Where the batch of each update comes from: a protocol, and the rows of a packed dataset."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fledge.data import Batch, PackedDataset, Skipped, skip_offset
from fledge.distributed.context import DistributedContext
from fledge.errors import FledgeError
from fledge.plan.horizon import TrainingHorizon


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """What one update learns from: the micro-batches of this rank that have targets.

    Rows are counted in the endless stream of epochs, without those that are skipped; ranges are [first, stop). The counts and
    `normalizer` are of this rank when a source makes the batch, and of all ranks together when the loader hands it out.
    """

    step: int
    rows: tuple[int, int]
    local_rows: tuple[int, int]  # those of this rank
    batches: tuple[Batch, ...]
    num_micro_steps: int  # micro-batches of the rank with the most
    padding_batch: Batch | None  # computed without learning from it, by a rank with fewer micro-batches than others
    normalizer: float  # what the sum of the losses is divided by
    num_tokens: int
    num_target_tokens: int
    by_source: tuple[int, ...]  # tokens of each source
    epoch: float  # passed after this update


class BatchSource(Protocol):
    """Makes the batch of each update."""

    @property
    def prefetchable(self) -> bool:
        """Whether a batch depends on its step alone, so that it may be made before the update before it has ended."""
        ...

    def batch(self, step: int) -> StepBatch:
        """This rank's part of the batch of a step (from 0), with the counts of this rank."""
        ...


class DatasetSource:
    """The rows of a packed dataset in order. A batch is a function of its step: its rows depend neither on
    `micro_batch_size`, the rows that are computed together, nor on how many ranks share them."""

    prefetchable = True

    def __init__(
        self,
        data: PackedDataset,
        horizon: TrainingHorizon,
        micro_batch_size: int,
        normalizer: Callable[[Batch], float],
        ranks: DistributedContext | None = None,
    ) -> None:
        """FledgeError where there are more ranks than rows in an update."""
        self.data, self.horizon, self.normalizer = data, horizon, normalizer
        self.ranks = ranks or DistributedContext()
        check_enough_rows(horizon, self.ranks)
        self.micro_batch_size = _even_micro_batch_size(micro_batch_size, horizon, self.ranks.world_size)
        self.skipped_rows: Skipped = ()  # (first, count) of the stream

    def stream_rows(self, step: int) -> list[int]:
        """The rows of a step, by their index in the stream with the skipped rows."""
        return [skip_offset(row, self.skipped_rows) for row in range(*self._row_range(step))]

    def _row_range(self, step: int) -> tuple[int, int]:
        return self.horizon.first_row(step), min(self.horizon.first_row(step + 1), self.horizon.rows)

    def batch(self, step: int) -> StepBatch:
        """This rank's part of the batch of a step (from 0), with the counts of this rank."""
        data, size, skipped = self.data, self.micro_batch_size, self.skipped_rows
        first, stop = self._row_range(step)
        local_first, local_stop = self.ranks.shard_range(first, stop)
        batches = [data.batch(row, size, local_stop, skipped) for row in range(local_first, local_stop, size)]
        with_targets = tuple(batch for batch in batches if batch.num_target_tokens)
        num_micro_steps = math.ceil(math.ceil((stop - first) / self.ranks.world_size) / size)
        needs_padding = self.ranks.is_distributed and len(with_targets) < num_micro_steps
        return StepBatch(
            step=step,
            rows=(first, stop),
            local_rows=(local_first, local_stop),
            batches=with_targets,
            num_micro_steps=num_micro_steps,
            padding_batch=data.batch(first, size, stop, skipped) if needs_padding else None,
            normalizer=sum(self.normalizer(batch) for batch in with_targets),
            num_tokens=sum(batch.num_tokens for batch in batches),
            num_target_tokens=sum(batch.num_target_tokens for batch in batches),
            by_source=tuple(sum(batch.tokens_by_source[source] for batch in batches) for source in range(len(data.sources))),
            epoch=data.epochs_after(skip_offset(stop - 1, skipped) + 1),
        )


def check_enough_rows(horizon: TrainingHorizon, ranks: DistributedContext) -> None:
    """FledgeError where an update has fewer rows than there are ranks."""
    if horizon.global_batch_rows < ranks.world_size:
        raise FledgeError(
            f"{ranks.world_size} processes cannot share the {horizon.global_batch_rows} rows of an update",
            where="batch",
            hint="set a larger batch, or start fewer processes",
        )


def _even_micro_batch_size(micro_batch_size: int, horizon: TrainingHorizon, world_size: int) -> int:
    """The largest micro-batch of at most `micro_batch_size` rows with which ranks compute no more micro-batches than needed
    and as few empty rows as possible."""
    if world_size == 1:
        return micro_batch_size
    local_rows = math.ceil(horizon.global_batch_rows / world_size)
    return math.ceil(local_rows / math.ceil(local_rows / micro_batch_size))
