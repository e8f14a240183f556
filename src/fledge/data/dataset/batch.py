"""A batch: packed rows as tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch is imported in the functions: workers that only read and encode start without it
    import torch
    from torch import Tensor

COUNTED = ("weight", "num_target_tokens", "num_tokens")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B packed rows of T positions. Every tensor is [B, T] unless said otherwise.

    `targets[b, t]` is the token that follows `input_ids[b, t]` in its sequence, `loss_weights[b, t]` the weight of this
    target in the loss. `position_ids` restart at 0 with each piece of a sequence. `documents` number the pieces of a packed
    row from 1; padding is 0. `sequence_ids` number the sequences of the batch from 0; padding is `num_sequences`.

    Where the sequences of an example share their beginning, `documents` number it as a trunk and the rest of each sequence as
    a branch (`document_numbers`). The positions of a branch go on from those of the trunk, which belongs to the first sequence
    and has no target with weight.

    Each `sequences_per_example` neighbouring sequences are one example. `examples`: numbers of the examples in the data, in the
    order of their sequences. `tokens_by_source`: tokens of each source, if sources are known. `known_target_index` [n]:
    `target_index`, computed on the host so that no code waits for a device. `token_values`: further figures of the targets by
    name, such as the advantages of answers that a model has drawn. `segment_starts`: where attention's segments begin
    (`model.segments.segment_starts`), in a batch that is prepared for a GPU.
    """

    input_ids: "Tensor"
    targets: "Tensor"
    loss_weights: "Tensor"
    position_ids: "Tensor"
    documents: "Tensor"
    sequence_ids: "Tensor"
    num_sequences: int
    examples: tuple[int, ...]
    sequences_per_example: int = 1
    tokens_by_source: tuple[int, ...] = ()
    known_target_index: "Tensor | None" = None
    token_values: "Mapping[str, Tensor]" = field(default_factory=dict)
    segment_starts: "Tensor | tuple[Tensor, ...] | None" = None

    @property
    def model_inputs(self) -> "tuple[Tensor, Tensor, Tensor, Tensor | tuple[Tensor, ...] | None]":
        """The arguments of a model's forward pass."""
        return self.input_ids, self.position_ids, self.documents, self.segment_starts

    def _with(self, change: "Callable[[Tensor], Tensor]") -> "Batch":
        """A copy with `change` applied to every tensor, and with the counts that were computed already."""
        index = None if self.known_target_index is None else change(self.known_target_index)
        starts = self.segment_starts
        if starts is not None:
            starts = tuple(map(change, starts)) if isinstance(starts, tuple) else change(starts)
        batch = Batch(
            input_ids=change(self.input_ids),
            targets=change(self.targets),
            loss_weights=change(self.loss_weights),
            position_ids=change(self.position_ids),
            documents=change(self.documents),
            sequence_ids=change(self.sequence_ids),
            num_sequences=self.num_sequences,
            examples=self.examples,
            sequences_per_example=self.sequences_per_example,
            tokens_by_source=self.tokens_by_source,
            known_target_index=index,
            token_values={name: change(values) for name, values in self.token_values.items()},
            segment_starts=starts,
        )
        return batch._with_counts_of(self)

    def _with_counts_of(self, batch: "Batch") -> "Batch":
        """This batch, knowing the counts that `batch`, which has equal ones, has computed already."""
        self.__dict__.update({name: batch.__dict__[name] for name in COUNTED if name in batch.__dict__})
        return self

    def with_segment_starts(self, starts: "Tensor | tuple[Tensor, ...]") -> "Batch":
        """The batch with `segment_starts`."""
        return replace(self, segment_starts=starts)._with_counts_of(self)

    @property
    def target_index(self) -> "Tensor":
        """Flat positions b · T + t of the targets with weight, ascending, int64 [n]."""
        return (
            self.loss_weights.flatten().nonzero(as_tuple=True)[0]
            if self.known_target_index is None
            else self.known_target_index
        )

    def to(self, device: "torch.device") -> "Batch":
        """The batch on a device; pinned tensors are copied to a GPU asynchronously."""
        if self.input_ids.device.type == device.type:
            return self
        can_wait_later = device.type != "cpu"  # main memory would be read before the copy is complete
        return self._with(lambda tensor: tensor.to(device, non_blocking=can_wait_later))

    def pinned(self) -> "Batch":
        """The batch in page-locked memory, which can be copied to a GPU asynchronously."""
        return self._with(lambda tensor: tensor.pin_memory())

    @cached_property
    def weight(self) -> float:
        """Sum of the loss weights."""
        import torch

        return float(self.loss_weights.sum(dtype=torch.float64))

    @cached_property
    def num_target_tokens(self) -> int:
        """Number of targets with weight."""
        return int((self.loss_weights > 0).sum())

    @cached_property
    def num_tokens(self) -> int:
        """Number of positions that are not padding."""
        return int((self.documents > 0).sum())
