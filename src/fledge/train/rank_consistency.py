"""What ranks prove to each other while they train: that they hold the same weights, and read different rows.

Ranks that drift apart, or learn from the same rows, train on without any sign of it: the loss falls all the same.
"""

from collections.abc import Sequence

import torch
import xxhash
from torch import Tensor, nn

from fledge.distributed.context import DistributedContext
from fledge.distributed.fsdp import is_sharded
from fledge.errors import FledgeError
from fledge.train.batch_loader import StepBatch

CHECK_INTERVAL = 2  # steps between two looks at the weights
MAX_IDENTICAL_STEPS = 3  # windows whose parts look alike before that is no coincidence: rows may be in the data twice


class RankConsistencyCheck:
    """Compares what the ranks have. Alone it does nothing."""

    def __init__(self, ranks: DistributedContext, model: nn.Module) -> None:
        self.ranks, self.model = ranks, model
        self._alike = 0

    def begin(self, step: int) -> None:
        """Before the first step. FledgeError on every rank where weights or data differ from the first rank's."""
        if self.ranks.is_distributed:
            self._same_weights(self.ranks.all_gather_object(checksum(self.model)), step)

    def after(self, window: StepBatch, step: int) -> None:
        """After the update with which `step` are done. FledgeError, on every rank, where the ranks' parts of the window are not
        the window or look alike, or where the weights, looked at every EVERY steps, are not the same."""
        if not self.ranks.is_distributed:
            return
        looks = step % CHECK_INTERVAL == 0
        mine = [list(window.local_rows), digest(window), checksum(self.model) if looks else None]
        said = self.ranks.all_gather_object(mine)
        self._different_rows([part for part, _, _ in said], [mark for _, mark, _ in said], window, step)
        if looks:
            self._same_weights([sums for _, _, sums in said], step)

    def _same_weights(self, sums: Sequence[list[int]], step: int) -> None:
        for rank, mark in enumerate(sums):
            if mark != sums[0]:
                names = [name for name, _ in _compared(self.model)]
                other = next(name for name, a, b in zip(names, mark, sums[0], strict=True) if a != b)
                raise FledgeError(
                    f"process {rank} does not hold the weights of process 0 after step {step:,} (first difference: {other})",
                    where=f"process {rank}",
                    hint="processes must run the same code on machines of one kind; go on from the last checkpoint",
                )

    def _different_rows(self, parts: list[list[int]], marks: list[str | None], window: StepBatch, step: int) -> None:
        ends = [window.rows[0], *(stop for _, stop in parts)]
        if [first for first, _ in parts] != ends[:-1] or ends[-1] != window.rows[1]:
            raise FledgeError(f"processes did not share the rows of step {step:,} among them: {parts} of {list(window.rows)}")
        filled = [mark for mark in marks if mark is not None]
        self._alike = self._alike + 1 if len(set(filled)) < len(filled) else 0
        if self._alike == MAX_IDENTICAL_STEPS:
            raise FledgeError(
                f"processes read the same rows in {MAX_IDENTICAL_STEPS} steps in a row, up to step {step:,}",
                hint="every process must see the same files; is the data one row, many times over?",
            )


def digest(window: StepBatch) -> str | None:
    """Of the tokens that this rank learns from; None where there are none."""
    hashed = xxhash.xxh3_64()
    filled = 0
    for batch in window.batches:
        filled += batch.num_tokens
        hashed.update(batch.input_ids[batch.documents > 0].cpu().numpy().tobytes())
    return hashed.hexdigest() if filled else None


def _compared(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, tensor) for name, tensor in model.state_dict().items() if not is_sharded(tensor)]


@torch.no_grad()
def checksum(model: nn.Module) -> list[int]:
    """A number for each tensor that ranks hold alike: the sum of its words as whole numbers, whatever the order."""
    words = {4: torch.int32, 2: torch.int16, 8: torch.int64}
    tensors = [tensor.detach().contiguous() for _, tensor in _compared(model)]
    sums = [tensor.view(words[tensor.element_size()]).sum(dtype=torch.int64) for tensor in tensors]
    return torch.stack(sums).tolist() if sums else []
