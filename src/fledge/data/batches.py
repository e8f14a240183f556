"""Batches: a pure function of (seed, position in the run), so that a resumed run reads the same rows."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import xxhash
from torch import Tensor

from fledge.data.examples import Examples
from fledge.data.packing import Rows, pack_split, pack_whole, permutation


@dataclass(frozen=True)
class Batch:
    """Packed rows. Every tensor is [B, T].

    `targets[b, t]` is the token after `tokens[b, t]` in the same sequence and `weights` its weight in the loss;
    `positions` restart at 0 with each piece; `documents` number the pieces of a row from 1, padding is 0;
    `sequences` number the sequences of the batch from 0, padding is `count`.
    """

    tokens: Tensor
    targets: Tensor
    weights: Tensor
    positions: Tensor
    documents: Tensor
    sequences: Tensor
    count: int
    examples: tuple[int, ...]  # index of each example, in the order of its sequences

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        tensors = (self.tokens, self.targets, self.weights, self.positions, self.documents, self.sequences)
        return Batch(*(tensor.to(device) for tensor in tensors), count=self.count, examples=self.examples)

    @cached_property
    def weight(self) -> float:
        """Sum of the weights."""
        return float(self.weights.sum(dtype=torch.float64))

    @cached_property
    def supervised(self) -> int:
        """Number of targets with weight."""
        return int((self.weights > 0).sum())

    @cached_property
    def filled(self) -> int:
        """Positions that are not padding."""
        return int((self.documents > 0).sum())


@dataclass(frozen=True)
class PackedData:
    """Examples packed into rows of `row_length`, and their order in each epoch."""

    examples: Examples
    rows: Rows
    row_length: int
    pad: int
    seed: int

    @classmethod
    def pack(cls, examples: Examples, row_length: int, pad: int, seed: int, split: bool) -> "PackedData":
        """Pack; `split` lets sequences continue in the next row."""
        lengths = np.diff(examples.offsets) - 1
        rows = pack_split(lengths, row_length, seed) if split else pack_whole(lengths, row_length, seed, examples.per_example)
        return cls(examples, rows, row_length, pad, seed)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def positions(self) -> int:
        """Filled positions of all rows."""
        return int(self.rows.length.sum())

    def account(self) -> dict[str, float | int | str]:
        """What training will see, for data.json."""
        size = len(self) * self.row_length
        return {
            "examples": self.examples.count,
            "rows": len(self),
            "row_length": self.row_length,
            "tokens": self.positions,
            "supervised_tokens": self.supervised,
            "padding_share": 1 - self.positions / size if size else 0.0,
            "fingerprint": self.fingerprint(),
        }

    def fingerprint(self) -> str:
        """Changes with any token, weight, length or place in a row."""
        digest = xxhash.xxh3_64()
        for array in (self.examples.tokens, self.examples.weights, self.examples.offsets, self.rows.sequence):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    @cached_property
    def supervised(self) -> int:
        """Targets with weight; the first token of a sequence is nobody's target."""
        first = self.examples.offsets[:-1]
        return int((self.examples.weights > 0).sum() - (self.examples.weights[first] > 0).sum())

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Row numbers in the order of an epoch."""
        cached = self.__dict__.get("_order")
        if cached is None or cached[0] != epoch:
            cached = (epoch, permutation(len(self), self.seed, epoch + 1))
            self.__dict__["_order"] = cached
        return cached[1]

    def batch(self, first: int, count: int, stop: int | None = None) -> Batch:
        """Rows `first … first+count` of the endless stream of epochs; rows from `stop` on stay empty (weight 0)."""
        chosen = []
        for place in range(first, first + count):
            if stop is not None and place >= stop:
                chosen.append(None)
            else:
                epoch, index = divmod(place, len(self))
                chosen.append(int(self.epoch_order(epoch)[index]))
        return self.assemble(chosen)

    def assemble(self, chosen: list[int | None]) -> Batch:
        """The batch of these rows; None is an empty row."""
        shape = (len(chosen), self.row_length)
        tokens, targets = np.full(shape, self.pad, np.int64), np.full(shape, self.pad, np.int64)
        weights, positions = np.zeros(shape, np.float32), np.zeros(shape, np.int64)
        documents, sequences = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
        members: list[int] = []
        data, rows = self.examples, self.rows
        for b, row in enumerate(chosen):
            if row is None:
                continue
            t = 0
            for number, slot in enumerate(range(rows.offsets[row], rows.offsets[row + 1]), 1):
                n = int(rows.length[slot])
                at = int(data.offsets[rows.sequence[slot]] + rows.start[slot])
                tokens[b, t : t + n] = data.tokens[at : at + n]
                targets[b, t : t + n] = data.tokens[at + 1 : at + n + 1]
                weights[b, t : t + n] = data.weights[at + 1 : at + n + 1]
                positions[b, t : t + n] = np.arange(n)
                documents[b, t : t + n] = number
                sequences[b, t : t + n] = len(members)
                members.append(int(rows.sequence[slot]))
                t += n
        sequences[sequences < 0] = len(members)
        made = (torch.from_numpy(a) for a in (tokens, targets, weights, positions, documents, sequences))
        per = data.per_example
        return Batch(*made, count=len(members), examples=tuple(m // per for m in members[::per]))
