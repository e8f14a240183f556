"""Hashes of examples and of runs of tokens, by which copies are found."""

from collections.abc import Iterator

import numpy as np
import xxhash

from fledge.data.storage import ConcatenatedArrays, Examples

BLOCK = 2**22  # tokens that are hashed together
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, with bits well mixed (2^64 divided by the golden ratio)


def hash_of(tokens: np.ndarray) -> int:
    """The hash of some tokens, 64 bits, whatever their integer type."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(tokens, dtype=np.int32).tobytes())


def example_hashes(examples: Examples, count: int) -> np.ndarray:
    """The hash of each of the first `count` examples, uint64 [count]: Σ mixed token · factor^place, modulo 2^64. Of a labelled
    answer, the answer to another prompt beside it is left out."""
    per_example = examples.sequences_per_example
    kept = 1 if examples.labels is not None else per_example
    begins = examples.offsets[: count * per_example + 1 : per_example]
    ends = examples.offsets[kept : count * per_example + 1 : per_example]
    hashes = np.zeros(count, np.uint64)
    for first, stop in _blocks(examples, begins):
        base = int(begins[first])
        mixed = _mixed(np.asarray(examples.tokens[base : int(begins[stop])]))
        starts, sizes = begins[first:stop] - base, np.diff(begins[first : stop + 1])
        place = np.arange(len(mixed)) - np.repeat(starts, sizes)
        mixed *= _powers(int(sizes.max()))[place]
        mixed[place >= np.repeat(ends[first:stop] - begins[first:stop], sizes)] = 0
        lengths = (ends[first:stop] - begins[first:stop]).astype(np.uint64)
        hashes[first:stop] = np.add.reduceat(mixed, starts) ^ (lengths * _FACTOR)
    return hashes


def _blocks(examples: Examples, begins: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of examples, at `begins` [n + 1] in the stream, whose tokens lie in one array and are about a block in all."""
    count, stream = len(begins) - 1, examples.tokens
    limits = stream.starts if isinstance(stream, ConcatenatedArrays) else np.asarray([0, len(stream)])
    first = 0
    while first < count:
        limit = int(limits[np.searchsorted(limits, begins[first], side="right")])
        stop = int(np.searchsorted(begins, min(limit, int(begins[first]) + BLOCK), side="right")) - 1
        stop = min(count, max(stop, first + 1))
        yield first, stop
        first = stop


def window_hashes(tokens: np.ndarray, size: int) -> np.ndarray:
    """The hash of each run of `size` tokens, uint64 [N − size + 1]: a polynomial of mixed token ids, modulo 2^64."""
    count = len(tokens) - size + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    mixed = _mixed(tokens)
    hashes = np.zeros(count, np.uint64)
    for offset in range(size):
        hashes = hashes * _FACTOR + mixed[offset : offset + count]
    return hashes


def is_copy(hashes: np.ndarray) -> np.ndarray:
    """Whether each hash stood before, bool [n]."""
    copies = np.ones(len(hashes), bool)
    copies[np.unique(hashes, return_index=True)[1]] = False
    return copies


def _mixed(tokens: np.ndarray) -> np.ndarray:
    """Token ids as numbers whose bits are mixed, uint64."""
    mixed = (tokens.astype(np.uint64) + np.uint64(1)) * _FACTOR
    return mixed ^ (mixed >> np.uint64(29))


def _powers(count: int) -> np.ndarray:
    """factor^0 … factor^(count − 1), modulo 2^64."""
    powers = np.full(count, _FACTOR, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)
