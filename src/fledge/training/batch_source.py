"""Sources of the batches: a protocol, and its implementation for the rows of a packed dataset."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from fledge.data import Batch, PackedDataset, Skipped, skip_offset
from fledge.distributed.context import DistributedContext
from fledge.errors import FledgeError
from fledge.plan.device_batch import DeviceBatch
from fledge.plan.horizon import TrainingHorizon


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """The batch of one optimizer step: the micro-batches of this rank that have targets.

    `rows` and `local_rows` are ranges [first, stop) of the endless stream of epochs, without skipped rows. The counts and
    `normalizer` are of this rank in a batch from a `BatchSource`, and of all ranks together in a batch from the `BatchLoader`.
    """

    step: int
    rows: tuple[int, int]
    local_rows: tuple[int, int]  # the rows of this rank
    batches: tuple[Batch, ...]
    num_micro_steps: int  # largest number of micro-batches of a rank
    padding_batch: Batch | None  # computed with zero gradients by a rank with fewer micro-batches than others
    normalizer: float  # the divisor of the sum of the losses
    num_tokens: int
    num_target_tokens: int
    by_source: tuple[int, ...]  # tokens of each source
    epoch: float  # passed after this update
    metrics: Mapping[str, float] = field(default_factory=dict)  # of what the batch was made from, over all ranks
    seconds: Mapping[str, float] = field(default_factory=dict)  # of the phases in which it was made, by name


class BatchSource(Protocol):
    """Makes the batch of each update.

    `micro_batch_size`: packed rows that are computed together; may be changed. `skipped_rows`: (first, count) of the stream of
    packed rows, left out from the next batch on.
    """

    micro_batch_size: int
    skipped_rows: Skipped

    @property
    def prefetchable(self) -> bool:
        """Whether a batch depends on its step alone, so that it may be built while the update before it is still running, and
        built again after later updates."""
        ...

    def stream_rows(self, step: int) -> list[int]:
        """The packed rows of a step, as indices in the stream that includes the skipped rows."""
        ...

    def tensors(self, step: int) -> dict[str, Tensor]:
        """What the batches after `step` updates depend on besides their step and the weights, for a checkpoint. Called on the
        main process."""
        ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with the `tensors` of a checkpoint, and forget what was made with other weights."""
        ...

    def batch(self, step: int) -> StepBatch:
        """This rank's share of the batch of a step (from 0), with the counts of this rank."""
        ...


class DatasetSource:
    """The rows of a packed dataset in order. The rows of a batch are a function of its step: they depend neither on
    `micro_batch_size` (rows computed together) nor on the number of ranks."""

    prefetchable = True

    def __init__(
        self,
        data: PackedDataset,
        horizon: TrainingHorizon,
        micro_batch_size: int,
        normalizer: Callable[[Batch], float],
        ranks: DistributedContext | None = None,
    ) -> None:
        """Raises FledgeError if there are more ranks than rows in an update."""
        self.data, self.horizon, self.normalizer = data, horizon, normalizer
        self.ranks = ranks or DistributedContext()
        check_enough_rows(horizon, self.ranks)
        self.micro_batch_size = DeviceBatch.of(horizon.global_batch_rows, micro_batch_size, self.ranks.world_size).micro
        self.skipped_rows: Skipped = ()  # (first, count) of the stream

    def stream_rows(self, step: int) -> list[int]:
        """The rows of a step, as indices in the stream that includes the skipped rows."""
        return [skip_offset(row, self.skipped_rows) for row in range(*self.row_range(step))]

    def tensors(self, step: int) -> dict[str, Tensor]:
        """Nothing: a batch depends on its step alone."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Nothing is to be restored."""

    def row_range(self, step: int) -> tuple[int, int]:
        """The range [first, stop) of the stream without the skipped rows that a step reads."""
        return self.horizon.first_row(step), min(self.horizon.first_row(step + 1), self.horizon.rows)

    def batch(self, step: int) -> StepBatch:
        """This rank's share of the batch of a step (from 0), with the counts of this rank."""
        data, size, skipped = self.data, self.micro_batch_size, self.skipped_rows
        first, stop = self.row_range(step)
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
    """Raise FledgeError if an update has fewer rows than there are ranks."""
    if horizon.global_batch_rows < ranks.world_size:
        raise FledgeError(
            f"{ranks.world_size} processes cannot share the {horizon.global_batch_rows} rows of an update",
            where="batch",
            hint="set a larger batch, or start fewer processes",
        )
