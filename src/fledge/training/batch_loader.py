"""Loading of batches from a source. If the source allows it, a thread prefetches the batch of the next step; the content of a
batch does not depend on the prefetching."""

import time
from concurrent import futures
from concurrent.futures import Future
from dataclasses import replace

import torch

from fledge.data import Batch
from fledge.distributed.context import DistributedContext
from fledge.errors import FledgeError
from fledge.model.segments import segment_starts
from fledge.run.threads import start_thread
from fledge.training.batch_source import BatchSource, StepBatch


def pinned_for_gpu(batch: Batch) -> Batch:
    """The batch in page-locked memory, with what the host would later have to ask the GPU for."""
    return batch.with_segment_starts(segment_starts(batch.documents)).pinned()


def on_device(batch: Batch, device: torch.device) -> Batch:
    """A batch of main memory on a device; the host does not wait for the copy."""
    return (pinned_for_gpu(batch) if device.type == "cuda" else batch).to(device)


class BatchLoader:
    """Returns the batches of a stage, step by step, and prefetches the next one."""

    def __init__(self, source: BatchSource, steps: int, device: torch.device, ranks: DistributedContext | None = None) -> None:
        """`steps`: number of updates of the stage; nothing is prefetched beyond."""
        self.source, self.steps, self.device, self.ranks = source, steps, device, ranks or DistributedContext()
        self._ahead: tuple[int, Future[StepBatch]] | None = None  # the step that is prefetched, and its batch

    def batch(self, step: int) -> tuple[StepBatch, float]:
        """(batch of a step with the counts of all ranks, seconds spent waiting). Raises FledgeError if the batch has no target
        on any rank. Collective."""
        started = time.perf_counter()
        ahead = self._ahead
        batch = ahead[1].result() if ahead is not None and ahead[0] == step else self.rebuild(step)
        if self.source.prefetchable and step + 1 < self.steps:
            self._ahead = step + 1, start_thread("fledge-data", self._make, step + 1)
        return self._with_global_counts(batch), time.perf_counter() - started

    def rebuild(self, step: int) -> StepBatch:
        """This rank's share of the batch of any step; a prefetched batch is kept."""
        self._wait_for_prefetching()  # one thread reads the data
        return self._make(step)

    def drop_prefetched(self) -> None:
        """Drop the prefetched batch, because the source would now build another one."""
        self._wait_for_prefetching()
        self._ahead = None

    def _make(self, step: int) -> StepBatch:
        batch = self.source.batch(step)
        if self.device.type != "cuda":
            return batch
        return replace(batch, batches=tuple(pinned_for_gpu(micro_batch) for micro_batch in batch.batches))

    def _with_global_counts(self, batch: StepBatch) -> StepBatch:
        local = (batch.normalizer, batch.num_tokens, batch.num_target_tokens, *batch.by_source)
        normalizer, num_tokens, num_target_tokens, *by_source = self.ranks.all_reduce_sum(local)
        if not normalizer:
            num_rows = batch.rows[1] - batch.rows[0]
            raise FledgeError(f"the {num_rows} rows of step {batch.step:,} hold nothing to learn from", where="batch")
        if not self.ranks.is_distributed:
            return batch
        return replace(
            batch,
            normalizer=normalizer,
            num_tokens=int(num_tokens),
            num_target_tokens=int(num_target_tokens),
            by_source=tuple(map(int, by_source)),
        )

    def close(self) -> None:
        """End prefetching; the batch that is being built is dropped."""
        self.drop_prefetched()

    def _wait_for_prefetching(self) -> None:
        if self._ahead is not None:
            futures.wait([self._ahead[1]])
