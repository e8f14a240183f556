"""Batches: a pure function of (seed, position in the run), so that a resumed run reads the same rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from fledge.data.dataset.mixing import Mixture
from fledge.data.dataset.packing import PackedLayout, pack_best_fit, pack_concat_and_chunk, permutation
from fledge.data.storage import Examples

if TYPE_CHECKING:  # torch is imported where a batch is made: workers that only read and encode start without it
    import torch
    from torch import Tensor


Skipped = Sequence[Sequence[int]]
COUNTED = ("weight", "num_target_tokens", "num_tokens")


@dataclass(frozen=True)
class Batch:
    """Packed rows. Every tensor is [B, T].

    `targets[b, t]` is the token after `tokens[b, t]` in the same sequence and `weights` its weight in the loss;
    `positions` restart at 0 with each piece; `documents` number the pieces of a row from 1, padding is 0;
    `sequences` number the sequences of the batch from 0, padding is `count`. `by_source` counts the tokens of each source,
    where sources are known. `trained` [n] are the places (b · T + t) of targets with weight: found on the host, where that
    costs no waiting for a device.
    """

    input_ids: "Tensor"
    targets: "Tensor"
    loss_weights: "Tensor"
    position_ids: "Tensor"
    documents: "Tensor"
    sequence_ids: "Tensor"
    num_sequences: int
    examples: tuple[int, ...]  # index of each example, in the order of its sequences
    by_source: tuple[int, ...] = ()
    known_target_index: "Tensor | None" = None

    def _with(self, change: "Callable[[Tensor], Tensor]") -> "Batch":
        tensors = (self.input_ids, self.targets, self.loss_weights, self.position_ids, self.documents, self.sequence_ids)
        trained = None if self.known_target_index is None else change(self.known_target_index)
        made = Batch(
            *map(change, tensors),
            num_sequences=self.num_sequences,
            examples=self.examples,
            by_source=self.by_source,
            known_target_index=trained,
        )
        made.__dict__.update({name: self.__dict__[name] for name in COUNTED if name in self.__dict__})  # not counted again
        return made

    @property
    def target_index(self) -> "Tensor":
        """Places of the targets with weight, in order [n]."""
        return (
            self.loss_weights.flatten().nonzero(as_tuple=True)[0]
            if self.known_target_index is None
            else self.known_target_index
        )

    def to(self, device: "torch.device") -> "Batch":
        """The batch on a device; pinned tensors travel while the host goes on."""
        if self.input_ids.device.type == device.type:
            return self
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """The batch in page-locked memory, from which copies to a GPU need no waiting."""
        return self._with(lambda tensor: tensor.pin_memory())

    @cached_property
    def weight(self) -> float:
        """Sum of the weights."""
        import torch

        return float(self.loss_weights.sum(dtype=torch.float64))

    @cached_property
    def num_target_tokens(self) -> int:
        """Number of targets with weight."""
        return int((self.loss_weights > 0).sum())

    @cached_property
    def num_tokens(self) -> int:
        """Positions that are not padding."""
        return int((self.documents > 0).sum())


def skip_offset(place: int, skipped: Skipped) -> int:
    """The place in the whole stream of the row that is number `place` of what is left when (first, count) of each of
    `skipped` are left out."""
    for first, count in sorted(map(tuple, skipped)):
        if first <= place:
            place += count
    return place


class PackedDataset:
    """Examples packed into rows of `row_length`, and the rows of each epoch in order.

    Without a mixture every epoch has the same rows in another order; with one, each epoch's examples are drawn and packed
    afresh.
    """

    def __init__(
        self,
        examples: Examples,
        row_length: int,
        pad: int,
        seed: int,
        split: bool,
        mixture: Mixture | None = None,
        sources: tuple[str, ...] = (),
    ) -> None:
        self.examples, self.row_length, self.pad, self.seed, self.split = examples, row_length, pad, seed, split
        self.mixture, self.sources = mixture, sources
        self._epochs: dict[int, tuple[PackedLayout, np.ndarray]] = {}
        self._counts: list[int] = []

    @classmethod
    def pack(cls, examples: Examples, row_length: int, pad: int, seed: int, split: bool) -> "PackedDataset":
        """Pack; `split` lets sequences continue in the next row."""
        return cls(examples, row_length, pad, seed, split)

    # -- epochs -----------------------------------------------------------------------------------------------------

    def _pack(self, chosen: np.ndarray | None, seed: int) -> PackedLayout:
        """Rows of these examples (None: of all)."""
        lengths, per = np.diff(self.examples.offsets) - 1, self.examples.per_example
        members = None
        if chosen is not None:
            members = (chosen[:, None] * per + np.arange(per)).ravel()
            lengths = lengths[members]
        rows = (
            pack_concat_and_chunk(lengths, self.row_length, seed)
            if self.split
            else pack_best_fit(lengths, self.row_length, seed, per)
        )
        return rows if members is None else PackedLayout(rows.offsets, members[rows.sequence], rows.start, rows.length)

    @cached_property
    def rows(self) -> PackedLayout:
        """All examples once, packed: what an epoch has without a mixture, and what validation reads."""
        return self._pack(None, self.seed)

    def epoch(self, epoch: int) -> tuple[PackedLayout, np.ndarray]:
        """The packed rows of an epoch, and the order in which they are read."""
        if epoch not in self._epochs:
            if len(self._epochs) > 1:
                self._epochs.pop(min(self._epochs))
            mixed = self.mixture is not None
            rows = self._pack(self.mixture.sample_epoch(epoch), self._epoch_seed(epoch)) if mixed else self.rows  # type: ignore[union-attr]
            self._epochs[epoch] = rows, permutation(len(rows), self.seed, epoch + 1)
        return self._epochs[epoch]

    def _epoch_seed(self, epoch: int) -> int:
        return xxhash.xxh3_64_intdigest(f"{self.seed}/{epoch}".encode()) % 2**32

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Row numbers in the order of an epoch."""
        return self.epoch(epoch)[1]

    def epoch_rows(self, epoch: int) -> int:
        """Number of packed rows of an epoch."""
        if self.mixture is None:
            return len(self.rows)
        while len(self._counts) <= epoch:
            self._counts.append(len(self.epoch(len(self._counts))[0]))
        return self._counts[epoch]

    def __len__(self) -> int:
        return self.epoch_rows(0)

    def rows_in(self, epochs: float) -> float:
        """Rows of so many epochs; not rounded."""
        whole = int(epochs)
        if self.mixture is None:
            return epochs * len(self.rows)
        rows = sum(self.epoch_rows(epoch) for epoch in range(whole))
        return rows + ((epochs - whole) * self.epoch_rows(whole) if epochs > whole else 0)

    def _locate(self, place: int) -> tuple[int, int]:
        """Epoch and place in it of a row of the endless stream."""
        if self.mixture is None:
            return divmod(place, len(self.rows))
        epoch = 0
        while place >= self.epoch_rows(epoch):
            place -= self.epoch_rows(epoch)
            epoch += 1
        return epoch, place

    def epochs_at(self, rows: int) -> float:
        """How many epochs have passed after so many rows."""
        if self.mixture is None:
            return rows / len(self.rows)
        epoch, place = self._locate(rows)
        return epoch + place / self.epoch_rows(epoch)

    # -- what an epoch holds ----------------------------------------------------------------------------------------

    @cached_property
    def positions(self) -> int:
        """Filled positions of the first epoch's rows."""
        return int(self.epoch(0)[0].length.sum())

    @cached_property
    def supervised(self) -> int:
        """Targets with weight in the first epoch; the first token of a sequence is nobody's target."""
        counts = self.examples.supervised
        if self.mixture is None:
            return int(counts.sum())
        return int(counts.reshape(-1, self.examples.per_example).sum(axis=1)[self.mixture.sample_epoch(0)].sum())

    def account(self) -> dict[str, float | int | str]:
        """What training will see in its first epoch, for data_report.json."""
        size = len(self) * self.row_length
        return {
            "examples": self.examples.count,
            "rows": len(self),
            "row_length": self.row_length,
            "tokens": self.positions,
            "target_tokens": self.supervised,
            "padding_share": 1 - self.positions / size if size else 0.0,
            "fingerprint": self.fingerprint(),
        }

    def fingerprint(self) -> str:
        """Changes with any token, weight or length, with the packing and with the mixture."""
        digest = xxhash.xxh3_64(self.examples.fingerprint().encode())
        digest.update(f"{self.row_length} {self.pad} {self.seed} {self.split} {self.examples.per_example}".encode())
        if self.mixture is not None:
            digest.update(repr(self.mixture.quotas).encode())
        return digest.hexdigest()

    # -- batches ----------------------------------------------------------------------------------------------------

    def batch(self, first: int, count: int, stop: int | None = None, skipped: Skipped = ()) -> Batch:
        """Rows `first … first+count` of the endless stream of epochs without what is `skipped` of it; rows from `stop` on stay
        empty (weight 0)."""
        chosen: list[tuple[PackedLayout, int] | None] = []
        for place in range(first, first + count):
            if stop is not None and place >= stop:
                chosen.append(None)
            else:
                epoch, index = self._locate(skip_offset(place, skipped))
                rows, order = self.epoch(epoch)
                chosen.append((rows, int(order[index])))
        return self._assemble(chosen)

    def assemble(self, chosen: Sequence[int | None]) -> Batch:
        """The batch of these rows of `rows`; None is an empty row."""
        return self._assemble([None if row is None else (self.rows, row) for row in chosen])

    def _assemble(self, chosen: Sequence[tuple[PackedLayout, int] | None]) -> Batch:
        import torch

        shape = (len(chosen), self.row_length)
        tokens, targets = np.full(shape, self.pad, np.int64), np.full(shape, self.pad, np.int64)
        weights, positions = np.zeros(shape, np.float32), np.zeros(shape, np.int64)
        documents, sequences = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
        members: list[int] = []
        data, by_source = self.examples, np.zeros(len(self.sources), np.int64)
        for b, place in enumerate(chosen):
            if place is None:
                continue
            rows, row = place
            t = 0
            for number, slot in enumerate(range(rows.offsets[row], rows.offsets[row + 1]), 1):
                n = int(rows.length[slot])
                at = int(data.offsets[rows.sequence[slot]] + rows.start[slot])
                piece = data.tokens[at : at + n + 1]
                tokens[b, t : t + n] = piece[:-1]
                targets[b, t : t + n] = piece[1:]
                weights[b, t : t + n] = data.weights[at + 1 : at + n + 1]
                positions[b, t : t + n] = np.arange(n)
                documents[b, t : t + n] = number
                sequences[b, t : t + n] = len(members)
                members.append(int(rows.sequence[slot]))
                if self.sources and data.source is not None:
                    by_source[data.source[members[-1] // data.per_example]] += n
                t += n
        sequences[sequences < 0] = len(members)
        made = (torch.from_numpy(a) for a in (tokens, targets, weights, positions, documents, sequences))
        per, counts = data.per_example, tuple(int(count) for count in by_source)
        trained = torch.from_numpy(np.flatnonzero(weights))
        examples = tuple(m // per for m in members[::per])
        return Batch(*made, num_sequences=len(members), examples=examples, by_source=counts, known_target_index=trained)
