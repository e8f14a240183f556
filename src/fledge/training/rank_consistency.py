"""Consistency checks of several ranks during training: equal weights, and different rows.

Ranks with different weights, or with equal rows, would train on unnoticed, because the loss falls nevertheless.
"""

from collections.abc import Sequence

import torch
import xxhash
from torch import Tensor, nn

from fledge.distributed.context import DistributedContext
from fledge.distributed.fsdp import is_sharded
from fledge.errors import FledgeError
from fledge.training.batch_source import StepBatch
from fledge.training.host_copy import HostCopy

CHECK_INTERVAL = 2  # steps between two comparisons of the weights
MAX_IDENTICAL_STEPS = 3  # steps in which ranks read equal tokens before it is an error: rows may be in the data twice


class RankConsistencyCheck:
    """Compares the weights and the rows of the ranks. Does nothing for a single rank."""

    def __init__(self, ranks: DistributedContext, model: nn.Module) -> None:
        self.ranks, self.model = ranks, model
        self._identical_steps = 0
        self._pending: tuple[int, HostCopy] | None = None  # step, and the checksums of a GPU after it

    def check_start(self, step: int) -> None:
        """Compare the weights before the first step. Collective. Raises FledgeError on every rank if they differ."""
        if self.ranks.is_distributed:
            self._check_weights(self.ranks.all_gather_object(checksum(self.model)), step)

    def check_step(self, batch: StepBatch, step: int) -> None:
        """Compare the rows of update number `step` (from 1), and the weights every CHECK_INTERVAL steps. Collective. Raises
        FledgeError on every rank if the ranks' rows together are not the rows of the step, if ranks read equal tokens in
        MAX_IDENTICAL_STEPS consecutive steps, or if weights differ. The weights on a GPU are compared one step late, so that
        the host does not wait for it."""
        if not self.ranks.is_distributed:
            return
        known = self._known_checksums(step)
        gathered = self.ranks.all_gather_object([list(batch.local_rows), digest(batch), known and known[1]])
        self._check_rows([rows for rows, _, _ in gathered], [tokens for _, tokens, _ in gathered], batch, step)
        if known is not None:
            self._check_weights([sums for _, _, sums in gathered], known[0])

    def finish(self) -> None:
        """Compare the weights that are still to be compared. Collective. Raises FledgeError on every rank if they differ."""
        if self._pending is not None:
            (step, sums), self._pending = self._pending, None
            self._check_weights(self.ranks.all_gather_object(sums.read()[0].tolist()), step)

    def _known_checksums(self, step: int) -> tuple[int, list[int]] | None:
        """The checksums to compare now, and the step that they belong to; on a GPU those of the step before."""
        pending, self._pending = self._pending, None
        if step % CHECK_INTERVAL == 0:
            sums = _checksums(self.model)
            if sums.device.type == "cpu":
                return step, sums.tolist()
            self._pending = step, HostCopy([sums])
        return pending and (pending[0], pending[1].read()[0].tolist())

    def _check_weights(self, checksums: Sequence[list[int]], step: int) -> None:
        for rank, sums in enumerate(checksums):
            if sums != checksums[0]:
                names = [name for name, _ in _replicated(self.model)]
                different = next(name for name, a, b in zip(names, sums, checksums[0], strict=True) if a != b)
                raise FledgeError(
                    f"process {rank} does not hold the weights of process 0 after step {step:,} "
                    f"(first difference: {different})",
                    where=f"process {rank}",
                    hint="processes must run the same code on machines of one kind; run the same command again to resume",
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
                hint="every process must see the same files; check that the data is not one row repeated",
            )


def digest(batch: StepBatch) -> str | None:
    """A hash of the tokens of this rank's micro-batches; None without tokens."""
    hashed = xxhash.xxh3_64()
    num_tokens = 0
    for micro_batch in batch.batches:
        num_tokens += micro_batch.num_tokens
        hashed.update(micro_batch.input_ids[micro_batch.documents > 0].cpu().numpy().tobytes())
    return hashed.hexdigest() if num_tokens else None


def _replicated(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The tensors that are not sharded, by name."""
    return [(name, tensor) for name, tensor in model.state_dict().items() if not is_sharded(tensor)]


def checksum(model: nn.Module) -> list[int]:
    """The checksums of `_checksums` as numbers; on a GPU this waits for it."""
    return _checksums(model).tolist()


@torch.no_grad()
def _checksums(model: nn.Module) -> Tensor:
    """One number for each tensor that is not sharded: the sum of its elements' bits as integers, which does not depend on the
    order of summation."""
    integers = {4: torch.int32, 2: torch.int16, 8: torch.int64}  # by bytes of an element
    tensors = [tensor.detach().contiguous() for _, tensor in _replicated(model)]
    sums = [tensor.view(integers[tensor.element_size()]).sum(dtype=torch.int64) for tensor in tensors]
    return torch.stack(sums) if sums else torch.zeros(0, dtype=torch.int64)
