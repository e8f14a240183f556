"""Checks while several ranks train: that they hold the same weights, and read different rows.

Ranks that drift apart, or learn from the same rows, train on without any sign of it: the loss falls all the same.
"""

from collections.abc import Sequence

import torch
import xxhash
from torch import Tensor, nn

from fledge.distributed.context import DistributedContext
from fledge.distributed.fsdp import is_sharded
from fledge.errors import FledgeError
from fledge.training.batch_source import StepBatch

CHECK_INTERVAL = 2  # steps between two comparisons of the weights
MAX_IDENTICAL_STEPS = 3  # steps in which ranks read equal tokens before it is an error: rows may be in the data twice


class RankConsistencyCheck:
    """Compares what the ranks hold and read. Does nothing where there is one rank."""

    def __init__(self, ranks: DistributedContext, model: nn.Module) -> None:
        self.ranks, self.model = ranks, model
        self._identical_steps = 0

    def check_start(self, step: int) -> None:
        """Compare the weights before the first step. Collective; FledgeError on every rank where they differ."""
        if self.ranks.is_distributed:
            self._check_weights(self.ranks.all_gather_object(checksum(self.model)), step)

    def check_step(self, batch: StepBatch, step: int) -> None:
        """Compare the rows of the update number `step` (from 1), and every CHECK_INTERVAL steps the weights. Collective;
        FledgeError on every rank where the ranks' rows are not the rows of the step, tokens are read twice, or weights
        differ."""
        if not self.ranks.is_distributed:
            return
        compares_weights = step % CHECK_INTERVAL == 0
        local = [list(batch.local_rows), digest(batch), checksum(self.model) if compares_weights else None]
        gathered = self.ranks.all_gather_object(local)
        self._check_rows([rows for rows, _, _ in gathered], [tokens for _, tokens, _ in gathered], batch, step)
        if compares_weights:
            self._check_weights([sums for _, _, sums in gathered], step)

    def _check_weights(self, checksums: Sequence[list[int]], step: int) -> None:
        for rank, sums in enumerate(checksums):
            if sums != checksums[0]:
                names = [name for name, _ in _replicated(self.model)]
                different = next(name for name, a, b in zip(names, sums, checksums[0], strict=True) if a != b)
                raise FledgeError(
                    f"process {rank} does not hold the weights of process 0 after step {step:,} "
                    f"(first difference: {different})",
                    where=f"process {rank}",
                    hint="processes must run the same code on machines of one kind; go on from the last checkpoint",
                )

    def _check_rows(self, ranges: list[list[int]], digests: list[str | None], batch: StepBatch, step: int) -> None:
        ends = [batch.rows[0], *(stop for _, stop in ranges)]
        if [first for first, _ in ranges] != ends[:-1] or ends[-1] != batch.rows[1]:
            raise FledgeError(f"processes did not share the rows of step {step:,} among them: {ranges} of {list(batch.rows)}")
        with_tokens = [tokens for tokens in digests if tokens is not None]
        self._identical_steps = self._identical_steps + 1 if len(set(with_tokens)) < len(with_tokens) else 0
        if self._identical_steps == MAX_IDENTICAL_STEPS:
            raise FledgeError(
                f"processes read the same rows in {MAX_IDENTICAL_STEPS} steps in a row, up to step {step:,}",
                hint="every process must see the same files; is the data one row, many times over?",
            )


def digest(batch: StepBatch) -> str | None:
    """A hash of the tokens that this rank learns from; None where there are none."""
    hashed = xxhash.xxh3_64()
    num_tokens = 0
    for micro_batch in batch.batches:
        num_tokens += micro_batch.num_tokens
        hashed.update(micro_batch.input_ids[micro_batch.documents > 0].cpu().numpy().tobytes())
    return hashed.hexdigest() if num_tokens else None


def _replicated(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The tensors that every rank holds whole."""
    return [(name, tensor) for name, tensor in model.state_dict().items() if not is_sharded(tensor)]


@torch.no_grad()
def checksum(model: nn.Module) -> list[int]:
    """One number for each tensor that every rank holds whole: the sum of its bits as integers, in whatever order they are
    added."""
    integers = {4: torch.int32, 2: torch.int16, 8: torch.int64}  # by bytes of an element
    tensors = [tensor.detach().contiguous() for _, tensor in _replicated(model)]
    sums = [tensor.view(integers[tensor.element_size()]).sum(dtype=torch.int64) for tensor in tensors]
    return torch.stack(sums).tolist() if sums else []
