"""Token sequences end to end, in memory or in the memory-mapped files of a built directory."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fledge.errors import FledgeError

WIDEST_SHORT = 2**16  # ids below this fit two bytes


@dataclass(frozen=True)
class ConcatenatedArrays:
    """Arrays read as one. A slice must lie within one of them, as every sequence does."""

    arrays: tuple[np.ndarray, ...]

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each array begins, and the end: int64 [K + 1]."""
        return np.concatenate(([0], np.cumsum([len(array) for array in self.arrays]))).astype(np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, part: slice) -> np.ndarray:
        number = int(np.searchsorted(self.starts, part.start, side="right")) - 1
        start = int(self.starts[number])
        return self.arrays[number][part.start - start : part.stop - start]


@dataclass(frozen=True)
class UniformWeights:
    """Weights of plain documents: every token counts once."""

    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, part: slice) -> np.ndarray:
        return np.ones(max(0, part.stop - part.start), np.float32)


@dataclass(frozen=True)
class Examples:
    """Token sequences, end to end. A weight belongs to the token at its place *as a target*.

    tokens integer [N], weights float32 [N], offsets int64 [S + 1]. `per_example` sequences make one example: 1, or 2
    for a preference (chosen, rejected). `digest` stands for the content where it is known already. `source`, `shard` and
    `row` [E] say where an example comes from.
    """

    tokens: np.ndarray | ConcatenatedArrays
    weights: np.ndarray | ConcatenatedArrays | UniformWeights
    offsets: np.ndarray
    per_example: int
    digest: str | None = None
    source: np.ndarray | None = None
    shard: np.ndarray | None = None
    row: np.ndarray | None = None
    counted: np.ndarray | None = None  # supervised targets of each sequence, where known already

    @property
    def count(self) -> int:
        """Number of examples."""
        return (len(self.offsets) - 1) // self.per_example

    def sequence(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and weights of one sequence."""
        part = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return self.tokens[part], self.weights[part]

    @cached_property
    def supervised(self) -> np.ndarray:
        """Targets with weight, int64 [S]; the first token of a sequence is nobody's target."""
        if self.counted is not None:
            return self.counted
        sequences = (self.sequence(index)[1] for index in range(len(self.offsets) - 1))
        return np.asarray([np.count_nonzero(weights[1:] > 0) for weights in sequences], dtype=np.int64)

    def fingerprint(self) -> str:
        """Changes with any token, weight or length."""
        digest = xxhash.xxh3_64(np.ascontiguousarray(self.offsets, dtype=np.int64).tobytes())
        if self.digest is not None:
            digest.update(self.digest.encode())
        else:
            digest.update(np.asarray(self.tokens[0 : len(self.tokens)], dtype=np.int32).tobytes())
            digest.update(np.asarray(self.weights[0 : len(self.weights)], dtype=np.float32).tobytes())
        return digest.hexdigest()

    def row_numbers(self) -> np.ndarray:
        """Numbers the rows that the examples come from, in order, int64 [E]: several examples of one row share it."""
        assert self.shard is not None and self.row is not None
        if not self.count:
            return np.zeros(0, np.int64)
        begins = (np.diff(self.row) != 0) | (np.diff(self.shard) != 0)
        return np.concatenate(([0], np.cumsum(begins))).astype(np.int64)

    def tokens_per_example(self) -> np.ndarray:
        """Positions of each example, int64 [E]."""
        return (np.diff(self.offsets) - 1).reshape(-1, self.per_example).sum(axis=1)


def token_type(vocab_size: int) -> np.dtype:
    """The narrowest type that holds every id."""
    return np.dtype(np.uint16 if vocab_size <= WIDEST_SHORT else np.int32)


def load_arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a .safetensors file; FledgeError where it is missing or damaged."""
    try:
        return load_file(file)
    except FileNotFoundError:
        raise FledgeError("this file is missing", where=str(file), hint="build the data again") from None
    except SafetensorError as error:
        raise FledgeError(f"damaged: {error}", where=str(file), hint="build the data again") from None


def memmap(file: Path, kind: np.dtype) -> np.ndarray:
    """A file of numbers, memory-mapped; an empty file is an empty array."""
    if file.stat().st_size == 0:
        return np.zeros(0, kind)
    return np.asarray(np.memmap(file, dtype=kind, mode="r"))


class SequenceWriter:
    """Appends sequences to `<part>.tokens` and, where weights differ, `<part>.weights`; keeps a digest of both."""

    def __init__(self, folder: Path, part: str, kind: np.dtype, weighted: bool) -> None:
        self._kind, self._digests = kind, (xxhash.xxh3_64(), xxhash.xxh3_64())
        self._tokens = (folder / f"{part}.tokens").open("wb")
        self._weights = (folder / f"{part}.weights").open("wb") if weighted else None
        self.lengths: list[int] = []
        self.supervised: list[int] = []

    def write(self, tokens: np.ndarray | Sequence[int], weights: np.ndarray) -> None:
        """One sequence."""
        content = np.asarray(tokens, dtype=self._kind).tobytes()
        self._tokens.write(content)
        self._digests[0].update(content)
        self.lengths.append(len(weights))
        if self._weights is None:
            self.supervised.append(max(0, len(weights) - 1))
            return
        values = np.asarray(weights, dtype=np.float32)
        content = values.tobytes()
        self._weights.write(content)
        self._digests[1].update(content)
        self.supervised.append(int(np.count_nonzero(values[1:] > 0)))

    def close(self) -> str:
        """Close the files; the digest of what was written."""
        self._tokens.close()
        if self._weights is not None:
            self._weights.close()
        return "".join(digest.hexdigest() for digest in self._digests)


def digest_of(folder: Path, part: str) -> str:
    """The digest of a part's files as they are now (`SequenceWriter.close`)."""
    found = ""
    for kind in ("tokens", "weights"):
        digest, file = xxhash.xxh3_64(), folder / f"{part}.{kind}"
        if file.exists():
            with file.open("rb") as content:
                while block := content.read(2**20):
                    digest.update(block)
        found += digest.hexdigest()
    return found
