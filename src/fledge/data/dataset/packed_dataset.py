"""Examples as an endless stream of packed rows: a pure function of the seed, so a resumed run reads equal batches."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import xxhash

from fledge.data.dataset.batch import Batch
from fledge.data.dataset.mixing import Mixture
from fledge.data.dataset.packing import (
    PackedLayout,
    evenly_spread,
    pack_best_fit,
    pack_concat_and_chunk,
    pack_singly,
    permutation,
)
from fledge.data.storage import Examples
from fledge.document_numbers import BRANCH

Skipped = Sequence[Sequence[int]]
"""Runs of packed rows to leave out of the stream, each as (first position, count)."""


def skip_offset(position: int, skipped: Skipped) -> int:
    """Convert a position in the stream without the `skipped` runs into the position in the complete stream."""
    for first, count in sorted(map(tuple, skipped)):
        if first <= position:
            position += count
    return position


class PackedDataset:
    """Examples packed into rows of `packed_length` positions, and the packed rows of each epoch in order.

    `split_documents`: a sequence may continue in the next packed row; otherwise a packed row holds complete examples.
    `pad`: id of the padding token. `sources`: names of the sources, in the order of their numbers in `examples.source`.
    `mixture`: draws the examples of each epoch, which are packed anew. None: every epoch has equal packed rows, in another
    order. `halves_rows`: as in `pack_best_fit`. Rows with desirable and rows with undesirable answers come at even intervals,
    where examples have labels. `shares_beginnings`: the sequences of an example share the positions that they begin with
    (`Examples.shared_lengths`), which stand in the packed row once."""

    def __init__(
        self,
        examples: Examples,
        packed_length: int,
        pad: int,
        seed: int,
        split_documents: bool,
        *,
        packs: bool = True,
        mixture: Mixture | None = None,
        sources: tuple[str, ...] = (),
        halves_rows: bool = False,
        shares_beginnings: bool = False,
    ) -> None:
        self.halves_rows, self.shares_beginnings = halves_rows, shares_beginnings
        self.examples, self.packed_length, self.pad, self.seed = examples, packed_length, pad, seed
        self.split_documents, self.packs, self.mixture, self.sources = split_documents, packs, mixture, sources
        self._epochs: dict[int, tuple[PackedLayout, np.ndarray]] = {}
        self._counts: list[int] = []

    def sharing_beginnings(self) -> "PackedDataset":
        """These examples packed anew, with `shares_beginnings`."""
        return PackedDataset(
            self.examples,
            self.packed_length,
            self.pad,
            self.seed,
            self.split_documents,
            packs=self.packs,
            mixture=self.mixture,
            sources=self.sources,
            shares_beginnings=True,
        )

    @cached_property
    def shareable_share(self) -> float:
        """The share of the positions of all examples that `shares_beginnings` saves."""
        saved = (self.examples.sequences_per_example - 1) * int(self.examples.shared_lengths.sum())
        return saved / max(1, int(self.examples.tokens_per_example().sum()))

    # -- epochs -----------------------------------------------------------------------------------------------------

    def _pack(self, examples: np.ndarray | None, seed: int) -> PackedLayout:
        """Pack these examples (None: all)."""
        lengths, sequences = np.diff(self.examples.offsets) - 1, None
        if examples is not None:
            sequences = self.examples.sequences_of(examples)
            lengths = lengths[sequences]
        if self.split_documents:
            layout = pack_concat_and_chunk(lengths, self.packed_length, seed)
        elif not self.packs:
            layout = pack_singly(lengths, self.examples.sequences_per_example)
        else:
            shared = self.examples.shared_lengths if self.shares_beginnings else None
            if shared is not None and examples is not None:
                shared = shared[examples]
            per_example = self.examples.sequences_per_example
            layout = pack_best_fit(lengths, self.packed_length, seed, per_example, halves_rows=self.halves_rows, shared=shared)
        return layout if sequences is None else replace(layout, sequence=sequences[layout.sequence])

    @cached_property
    def layout(self) -> PackedLayout:
        """All examples once, packed: an epoch without a mixture, or the validation data."""
        return self._pack(None, self.seed)

    def epoch(self, epoch: int) -> tuple[PackedLayout, np.ndarray]:
        """The packed rows of an epoch, and the order [R] in which they are read."""
        if epoch not in self._epochs:
            if len(self._epochs) > 1:
                self._epochs.pop(min(self._epochs))
            layout = self.layout
            if self.mixture is not None:
                layout = self._pack(self.mixture.sample_epoch(epoch), self._epoch_seed(epoch))
            kinds = self.label_kinds(layout)
            key = (self.seed, epoch + 1)
            self._epochs[epoch] = layout, permutation(len(layout), *key) if kinds is None else evenly_spread(kinds, *key)
        return self._epochs[epoch]

    def label_kinds(self, layout: PackedLayout) -> np.ndarray | None:
        """For each packed row [R], 1 if it holds an undesirable answer plus 2 if it holds a desirable one; None without
        labels."""
        labels = self.examples.labels
        if labels is None:
            return None
        row = np.repeat(np.arange(len(layout)), np.diff(layout.offsets))
        kinds = np.zeros(len(layout), np.int64)
        np.bitwise_or.at(kinds, row, np.where(labels[layout.sequence // self.examples.sequences_per_example], 2, 1))
        return kinds

    def _epoch_seed(self, epoch: int) -> int:
        return xxhash.xxh3_64_intdigest(f"{self.seed}/{epoch}".encode()) % 2**32

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Numbers of the packed rows in the order of an epoch [R]."""
        return self.epoch(epoch)[1]

    def num_packed_rows(self, epoch: int) -> int:
        """Number of packed rows of an epoch."""
        if self.mixture is None:
            return len(self.layout)
        while len(self._counts) <= epoch:
            self._counts.append(len(self.epoch(len(self._counts))[0]))
        return self._counts[epoch]

    def __len__(self) -> int:
        """Number of packed rows of the first epoch."""
        return self.num_packed_rows(0)

    def packed_rows_in(self, epochs: float) -> float:
        """Number of packed rows of `epochs` epochs; not rounded."""
        complete = int(epochs)
        if self.mixture is None:
            return epochs * len(self.layout)
        rows = sum(self.num_packed_rows(epoch) for epoch in range(complete))
        return rows + ((epochs - complete) * self.num_packed_rows(complete) if epochs > complete else 0)

    def _locate(self, position: int) -> tuple[int, int]:
        """(epoch, position in the epoch) of a position in the stream."""
        if self.mixture is None:
            return divmod(position, len(self.layout))
        epoch = 0
        while position >= self.num_packed_rows(epoch):
            position -= self.num_packed_rows(epoch)
            epoch += 1
        return epoch, position

    def epochs_after(self, packed_rows: int) -> float:
        """Number of epochs that have passed after `packed_rows` packed rows."""
        if self.mixture is None:
            return packed_rows / len(self.layout)
        epoch, position = self._locate(packed_rows)
        return epoch + position / self.num_packed_rows(epoch)

    # -- the first epoch --------------------------------------------------------------------------------------------

    @cached_property
    def mean_context(self) -> float:
        """The sequence length at which causal attention has the operations of the first epoch: Σ n² / Σ n over its pieces of n
        tokens. Pieces in one packed row do not see each other, so it is below `packed_length`; a branch sees the b tokens
        before it, and counts as (b + n)² − b²."""
        layout = self.epoch(0)[0]
        lengths = layout.length.astype(np.float64)
        before = np.where(layout.branches > 0, layout.start, 0)
        return float((lengths**2 + 2 * before * lengths).sum() / lengths.sum())

    @cached_property
    def pieces_per_row(self) -> float:
        """Mean number of pieces of sequences in a packed row of the first epoch."""
        layout = self.epoch(0)[0]
        return len(layout.length) / len(layout) if len(layout) else 0.0

    @cached_property
    def num_tokens(self) -> int:
        """Positions of the first epoch that are not padding."""
        return int(self.epoch(0)[0].length.sum())

    @cached_property
    def num_target_tokens(self) -> int:
        """Number of targets with weight in the first epoch; the first token of a sequence is not a target."""
        counts = self.examples.target_tokens
        if self.mixture is None:
            return int(counts.sum())
        return int(counts[self.examples.sequences_of(self.mixture.sample_epoch(0))].sum())

    def summary(self) -> dict[str, float | int | str]:
        """The sizes of the first epoch and the fingerprint, for data_report.json."""
        size = len(self) * self.packed_length
        return {
            "examples": self.examples.count,
            "packed_rows": len(self),
            "packed_length": self.packed_length,
            "tokens": self.num_tokens,
            "target_tokens": self.num_target_tokens,
            "padding_share": 1 - self.num_tokens / size if size else 0.0,
            "fingerprint": self.fingerprint(),
        }

    def fingerprint(self) -> str:
        """A digest that changes with any token, weight or length, with the packing and with the mixture."""
        digest = xxhash.xxh3_64(self.examples.fingerprint().encode())
        packing = (self.packed_length, self.pad, self.seed, self.split_documents, self.examples.sequences_per_example)
        digest.update(" ".join(map(str, (*packing, *(["halves"] if self.halves_rows else [])))).encode())
        if not self.packs:
            digest.update(b"singly")
        if self.shares_beginnings:
            digest.update(b"shared beginnings")
        if self.mixture is not None:
            digest.update(repr(self.mixture.quotas).encode())
        return digest.hexdigest()

    # -- batches ----------------------------------------------------------------------------------------------------

    def batch(self, first: int, count: int, stop: int | None = None, skipped: Skipped = ()) -> Batch:
        """The batch of the packed rows at positions first … first + count - 1 of the endless stream of epochs, `skipped`
        runs left out. Rows from position `stop` on are empty (weight 0)."""
        chosen: list[tuple[PackedLayout, int] | None] = []
        for position in range(first, first + count):
            if stop is not None and position >= stop:
                chosen.append(None)
            else:
                epoch, index = self._locate(skip_offset(position, skipped))
                layout, order = self.epoch(epoch)
                chosen.append((layout, int(order[index])))
        return self._assemble(chosen)

    def examples_at(self, first: int, count: int, skipped: Skipped = ()) -> list[int]:
        """Numbers of the examples in the packed rows at positions first … first + count - 1 of the endless stream of epochs,
        `skipped` runs left out, in order."""
        numbers: list[int] = []
        for position in range(first, first + count):
            epoch, index = self._locate(skip_offset(position, skipped))
            layout, order = self.epoch(epoch)
            row = int(order[index])
            pieces = slice(layout.offsets[row], layout.offsets[row + 1])
            sequences = layout.sequence[pieces][layout.branches[pieces] != 1]  # a first branch goes on with a sequence
            numbers += (sequences[:: self.examples.sequences_per_example] // self.examples.sequences_per_example).tolist()
        return numbers

    def assemble(self, packed_rows: Sequence[int | None]) -> Batch:
        """The batch of these packed rows of `layout`; None stands for an empty row."""
        return self._assemble([None if row is None else (self.layout, row) for row in packed_rows])

    def _assemble(self, chosen: Sequence[tuple[PackedLayout, int] | None]) -> Batch:
        import torch

        shape, data = (len(chosen), self.packed_length), self.examples
        input_ids, targets = np.full(shape, self.pad, np.int64), np.full(shape, self.pad, np.int64)
        weights, positions = np.zeros(shape, np.float32), np.zeros(shape, np.int64)
        documents, sequence_ids = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
        sequences: list[int] = []  # numbers in the data
        by_source = np.zeros(len(self.sources), np.int64)
        for b, entry in enumerate(chosen):
            if entry is None:
                continue
            layout, row = entry
            t = number = 0
            for slot in range(layout.offsets[row], layout.offsets[row + 1]):
                n, sequence = int(layout.length[slot]), int(layout.sequence[slot])
                first, branch = int(layout.start[slot]), int(layout.branches[slot])
                start = int(data.offsets[sequence]) + first
                tokens = data.tokens[start : start + n + 1]
                number += branch == 0
                if branch != 1:  # a first branch goes on with the sequence of its trunk
                    sequences.append(sequence)
                input_ids[b, t : t + n] = tokens[:-1]
                targets[b, t : t + n] = tokens[1:]
                weights[b, t : t + n] = data.weights[start + 1 : start + n + 1]
                positions[b, t : t + n] = np.arange(n) + (first if branch else 0)
                documents[b, t : t + n] = number + branch * BRANCH
                sequence_ids[b, t : t + n] = len(sequences) - 1
                if self.sources and data.source is not None:
                    by_source[data.source[sequence // data.sequences_per_example]] += n
                t += n
        sequence_ids[sequence_ids < 0] = len(sequences)
        return Batch(
            input_ids=torch.from_numpy(input_ids),
            targets=torch.from_numpy(targets),
            loss_weights=torch.from_numpy(weights),
            position_ids=torch.from_numpy(positions),
            documents=torch.from_numpy(documents),
            sequence_ids=torch.from_numpy(sequence_ids),
            num_sequences=len(sequences),
            examples=tuple(s // data.sequences_per_example for s in sequences[:: data.sequences_per_example]),
            sequences_per_example=data.sequences_per_example,
            tokens_by_source=tuple(int(count) for count in by_source),
            known_target_index=torch.from_numpy(np.flatnonzero(weights)),
        )
