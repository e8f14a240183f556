"""The sequences of training data as the loader's batches hold them, beside what was stored."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fledge.data import Batch
from fledge.data.storage import Examples
from fledge.diagnosis.case import Figure

OFFSETS = (1, 0, 2, -1)  # of targets against inputs, the right one first: it wins where several fit
FEWEST_POSITIONS = 20  # of which something can be said


@dataclass(frozen=True, kw_only=True)
class ReadSequences:
    """S sequences in the order in which training reads them, N tokens in all.

    `numbers` int64 [S]: of the sequences in the data. `tokens` int64 [N], `stored` float32 [N]: as they were built. `weights`
    float32 [N]: as the batches hold them, where they can be told (`is_placed`), else as they were built. A weight belongs to
    the token at its position as a target. `offsets` int64 [S + 1]. `misplaced`: positions of the batches that hold another
    token, or another place, than was stored.
    """

    numbers: np.ndarray
    tokens: np.ndarray
    stored: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray
    sequences_per_example: int
    is_placed: bool
    misplaced: int

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def is_first(self) -> np.ndarray:
        """Which tokens are the first of their sequence, and so no target, bool [N]."""
        first = np.zeros(len(self.tokens), bool)
        first[self.offsets[:-1][np.diff(self.offsets) > 0]] = True
        return first

    @property
    def supervised(self) -> np.ndarray:
        """Which tokens are targets with weight, bool [N]."""
        return (self.weights > 0) & ~self.is_first

    @property
    def sequence_of_token(self) -> np.ndarray:
        """The place of each token's sequence among these, int64 [N]."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def example(self) -> np.ndarray:
        """The number of each sequence's example, int64 [S]."""
        return self.numbers // self.sequences_per_example

    @property
    def is_main(self) -> np.ndarray:
        """Whether each sequence is the first one of its example, bool [S]."""
        return self.numbers % self.sequences_per_example == 0


@dataclass(frozen=True)
class _Positions:
    """The positions of a batch that hold data: place of the sequence in the batch, position in the sequence, input, weight."""

    sequence: np.ndarray
    position: np.ndarray
    token: np.ndarray
    weight: np.ndarray


def read_sequences(batches: Sequence[Batch], examples: Examples, *, splits: bool) -> ReadSequences:
    """The sequences of some batches, made of rows of `examples`. `splits`: a sequence may be cut into pieces, whose places in
    it a batch does not tell."""
    per_example = examples.sequences_per_example
    numbers = np.concatenate(
        [np.zeros(0, np.int64), *(examples.sequences_of(np.asarray(batch.examples, np.int64)) for batch in batches)]
    )
    found = np.unique(numbers, return_index=True)[1] if splits else np.arange(len(numbers))
    own = numbers[np.sort(found)]
    pairs = [examples.sequence(int(number)) for number in own]
    offsets = np.concatenate(([0], np.cumsum([len(tokens) for tokens, _ in pairs]))).astype(np.int64)
    tokens = np.concatenate([np.zeros(0, np.int64), *(np.asarray(tokens, np.int64) for tokens, _ in pairs)])
    stored = np.concatenate([np.zeros(0, np.float32), *(np.asarray(weights, np.float32) for _, weights in pairs)])
    weights, misplaced = stored, 0
    if not splits:
        weights = np.zeros_like(stored)
        first = 0
        for batch in batches:
            one = _positions(batch)
            place = np.minimum(first + one.sequence, len(own) - 1)
            index = offsets[place] + one.position
            fits = (one.position >= 0) & (index + 1 < offsets[place + 1])
            same = fits & (tokens[np.where(fits, index, 0)] == one.token)
            weights[index[fits] + 1] = one.weight[fits]
            misplaced += int((~same).sum())
            first += batch.num_sequences
    return ReadSequences(
        numbers=own,
        tokens=tokens,
        stored=stored,
        weights=weights,
        offsets=offsets,
        sequences_per_example=per_example,
        is_placed=not splits,
        misplaced=misplaced,
    )


def _positions(batch: Batch) -> _Positions:
    held = (batch.documents > 0).numpy()
    return _Positions(
        batch.sequence_ids.numpy()[held],
        batch.position_ids.numpy()[held],
        batch.input_ids.numpy()[held],
        batch.loss_weights.numpy()[held],
    )


def batch_figures(batches: Sequence[Batch], read: ReadSequences) -> dict[str, Figure]:
    """`data/batch_shift`, `data/batch_targets_fit`, `data/batch_differs` and `data/target_share` of the loader's batches."""
    figures: dict[str, Figure] = {}
    positions = sum(batch.num_tokens for batch in batches)
    note = f"{len(batches)} micro-batches, {positions:,} positions"
    shares = _shares_at_offsets(batches)
    if shares:
        best = max(OFFSETS, key=lambda offset: shares.get(offset, -1.0))
        figures["data/batch_shift"] = Figure(best, "data", note=f"fits {shares[best]:.1%} of the targets; {note}")
        figures["data/batch_targets_fit"] = Figure(shares[1], "data", note=note)
    if positions:
        targets = sum(batch.num_target_tokens for batch in batches)
        figures["data/target_share"] = Figure(targets / positions, "data", note=note)
    if read.is_placed and len(read.tokens):
        counted = ~read.is_first
        differs = int((read.weights != read.stored)[counted].sum()) + read.misplaced
        figures["data/batch_differs"] = Figure(differs / max(1, int(counted.sum())), "data", note=note)
    elif positions:
        others = sum(int(((batch.loss_weights != 1) & (batch.documents > 0)).sum()) for batch in batches)
        figures["data/batch_differs"] = Figure(others / positions, "data", note=note)
    return figures


def _shares_at_offsets(batches: Sequence[Batch]) -> dict[int, float]:
    """For each offset, the share of the targets that are the input so many positions on, in the same piece of a sequence; empty
    for too few positions."""
    fit, count = dict.fromkeys(OFFSETS, 0), dict.fromkeys(OFFSETS, 0)
    for batch in batches:
        inputs, targets = batch.input_ids.numpy(), batch.targets.numpy()
        documents, sequences = batch.documents.numpy(), batch.sequence_ids.numpy()
        for offset in OFFSETS:
            here = slice(max(0, -offset), min(inputs.shape[1], inputs.shape[1] - offset))
            there = slice(max(0, offset), min(inputs.shape[1], inputs.shape[1] + offset))
            same = (documents[:, here] > 0) & (documents[:, here] == documents[:, there])
            same &= sequences[:, here] == sequences[:, there]
            fit[offset] += int((same & (targets[:, here] == inputs[:, there])).sum())
            count[offset] += int(same.sum())
    if count[1] < FEWEST_POSITIONS:
        return {}
    return {offset: fit[offset] / count[offset] for offset in OFFSETS if count[offset]}
