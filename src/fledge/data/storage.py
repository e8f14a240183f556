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
from fledge.run.file_hash import hash_files
from fledge.run.input_files import check_input_file

MAX_UINT16_VOCABULARY = 2**16


@dataclass(frozen=True)
class ConcatenatedArrays:
    """Arrays that are read as one concatenated array. A slice must lie within one array, as every sequence does."""

    arrays: tuple[np.ndarray, ...]

    @cached_property
    def starts(self) -> np.ndarray:
        """The position of each array's first element, and the total length at the end: int64 [K + 1]."""
        return np.concatenate(([0], np.cumsum([len(array) for array in self.arrays]))).astype(np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, span: slice) -> np.ndarray:
        number = int(np.searchsorted(self.starts, span.start, side="right")) - 1
        start = int(self.starts[number])
        return self.arrays[number][span.start - start : span.stop - start]


@dataclass(frozen=True)
class UniformWeights:
    """Loss weights of plain documents: every token counts once. Nothing is stored."""

    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, span: slice) -> np.ndarray:
        return np.ones(max(0, span.stop - span.start), np.float32)


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Token sequences, concatenated: N tokens in S sequences, which are E examples.

    tokens integer [N], weights float32 [N], offsets int64 [S + 1]. A weight belongs to the token at its position *as a target*.
    Each `sequences_per_example` neighbouring sequences are one example, so S = E · sequences_per_example. `digest`: of tokens
    and weights, if it is known already. `source`, `shard`, `row` [E]: number of each example's source, shard, and row in the
    shard. `counted_target_tokens` [S]: `target_tokens`, if they are known already. `labels` bool [E]: whether each example's
    answer is desirable, in formats with labels. `margins` float32 [E]: by how much the first sequence of each example is to be
    rewarded more, in formats with margins.
    """

    tokens: np.ndarray | ConcatenatedArrays
    weights: np.ndarray | ConcatenatedArrays | UniformWeights
    offsets: np.ndarray
    sequences_per_example: int
    digest: str | None = None
    source: np.ndarray | None = None
    shard: np.ndarray | None = None
    row: np.ndarray | None = None
    counted_target_tokens: np.ndarray | None = None
    labels: np.ndarray | None = None
    margins: np.ndarray | None = None

    @property
    def count(self) -> int:
        """Number of examples."""
        return (len(self.offsets) - 1) // self.sequences_per_example

    def sequence(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and weights of one sequence."""
        span = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return self.tokens[span], self.weights[span]

    def sequences_of(self, examples: np.ndarray) -> np.ndarray:
        """Numbers of the sequences of some examples [n], in their order: int64 [n · sequences_per_example]."""
        per_example = self.sequences_per_example
        return (np.asarray(examples, np.int64)[:, None] * per_example + np.arange(per_example)).ravel()

    @cached_property
    def target_tokens(self) -> np.ndarray:
        """Number of targets with weight in each sequence, int64 [S]; the first token of a sequence is not a target."""
        if self.counted_target_tokens is not None:
            return self.counted_target_tokens
        sequences = (self.sequence(index)[1] for index in range(len(self.offsets) - 1))
        return np.asarray([np.count_nonzero(weights[1:] > 0) for weights in sequences], dtype=np.int64)

    @cached_property
    def shared_lengths(self) -> np.ndarray:
        """For each example, the positions at its beginning that all its sequences can share, int64 [E]: their tokens are equal
        and none predicts a target with weight. So each sequence keeps the position that predicts its first such target, and no
        position has two targets."""
        per_example = self.sequences_per_example
        sequences = (self.sequence(index) for index in range(len(self.offsets) - 1))
        examples = zip(*[sequences] * per_example, strict=True)
        return np.asarray([_shared_length(example) for example in examples], dtype=np.int64)

    def fingerprint(self) -> str:
        """A digest that changes with any token, weight, length, label or margin."""
        digest = xxhash.xxh3_64(np.ascontiguousarray(self.offsets, dtype=np.int64).tobytes())
        if self.digest is not None:
            digest.update(self.digest.encode())
        else:
            digest.update(np.asarray(self.tokens[0 : len(self.tokens)], dtype=np.int32).tobytes())
            digest.update(np.asarray(self.weights[0 : len(self.weights)], dtype=np.float32).tobytes())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        if self.margins is not None:
            digest.update(self.margins.tobytes())
        return digest.hexdigest()

    def row_numbers(self) -> np.ndarray:
        """Number of the row that each example comes from, counted over all shards, int64 [E]; examples of one row are equal."""
        assert self.shard is not None and self.row is not None
        if not self.count:
            return np.zeros(0, np.int64)
        begins = (np.diff(self.row) != 0) | (np.diff(self.shard) != 0)
        return np.concatenate(([0], np.cumsum(begins))).astype(np.int64)

    def tokens_per_example(self) -> np.ndarray:
        """Number of positions (tokens with a target) of each example, int64 [E]."""
        return (np.diff(self.offsets) - 1).reshape(-1, self.sequences_per_example).sum(axis=1)


def _shared_length(example: Sequence[tuple[np.ndarray, np.ndarray]]) -> int:
    """The positions at the beginning of an example that its sequences, tokens and weights each, can share."""
    weighted = [np.flatnonzero(weights[1:]) for _, weights in example]
    length = min(int(places[0]) if len(places) else 0 for places in weighted)
    first = example[0][0]
    for tokens, _ in example[1:]:
        differs = np.flatnonzero(first[:length] != tokens[:length])
        length = int(differs[0]) if len(differs) else length
    return length


def token_type(vocab_size: int) -> np.dtype:
    """The narrowest integer type that holds every token id."""
    return np.dtype(np.uint16 if vocab_size <= MAX_UINT16_VOCABULARY else np.int32)


def load_arrays(file: Path) -> dict[str, np.ndarray]:
    """Load the arrays of a .safetensors file. Raises FledgeError if it is missing or damaged."""
    try:
        return load_file(file)
    except FileNotFoundError:  # safetensors raises it for a file that may not be read, too
        if file.exists():
            check_input_file(file)
        raise FledgeError("this file is missing", where=str(file), hint="build the data again") from None
    except SafetensorError as error:
        raise FledgeError(f"damaged: {error}", where=str(file), hint="build the data again") from None


def memmap(file: Path, dtype: np.dtype) -> np.ndarray:
    """A file of numbers, memory-mapped; an empty file is an empty array."""
    if file.stat().st_size == 0:
        return np.zeros(0, dtype)
    return np.asarray(np.memmap(file, dtype=dtype, mode="r"))


class SequenceWriter:
    """Appends sequences to `<split>.tokens` and, if `weighted`, to `<split>.weights`; computes a digest of both.

    `lengths` and `target_tokens` have an entry for each sequence written so far: its tokens, and its targets with weight."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype, weighted: bool) -> None:
        self._dtype, self._digests = dtype, (xxhash.xxh3_64(), xxhash.xxh3_64())
        self._tokens = (folder / f"{split}.tokens").open("wb")
        self._weights = (folder / f"{split}.weights").open("wb") if weighted else None
        self.lengths: list[int] = []
        self.target_tokens: list[int] = []

    def write(self, tokens: np.ndarray | Sequence[int], weights: np.ndarray) -> None:
        """Append one sequence."""
        content = np.asarray(tokens, dtype=self._dtype).tobytes()
        self._tokens.write(content)
        self._digests[0].update(content)
        self.lengths.append(len(weights))
        if self._weights is None:
            self.target_tokens.append(max(0, len(weights) - 1))
            return
        values = np.asarray(weights, dtype=np.float32)
        content = values.tobytes()
        self._weights.write(content)
        self._digests[1].update(content)
        self.target_tokens.append(int(np.count_nonzero(values[1:] > 0)))

    def close(self) -> str:
        """Close the files; returns the digest of what was written."""
        self._tokens.close()
        if self._weights is not None:
            self._weights.close()
        return "".join(digest.hexdigest() for digest in self._digests)


def digest_of(folder: Path, split: str) -> str:
    """The digest of the files of a split, computed from their content (see `SequenceWriter.close`)."""
    files = (folder / f"{split}.{kind}" for kind in ("tokens", "weights"))
    return "".join(hash_files(*([file] if file.exists() else [])) for file in files)
