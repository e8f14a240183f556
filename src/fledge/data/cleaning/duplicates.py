"""Duplicate rows: equal rows by a hash of their content, near duplicates by shared n-grams.

Near duplicates are found in steps. `ngrams.shingles` hashes the n-grams of a text. `signatures` are 128 numbers, which two
texts share in proportion to their common n-grams (MinHash). Rows with an equal band of the signature are `candidates`, whose
similarity is then measured on the texts (`near_duplicates`). Everything is a function of the texts alone.
"""

import math
from collections.abc import Callable
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import xxhash

from fledge.data.cleaning.ngrams import HASH_BASE, distinct, jaccard, mix_bits, shingle_set

PERMUTATIONS = 128
SIGNATURE_VERSION = "minhash-128-1"  # version of units, n-grams and hashes: change the number when results change
MIN_RECALL = 0.995  # minimal probability that a pair at the threshold shares a band
MAX_DEVIATIONS = 3.0  # standard deviations by which an estimate may be below the threshold
SHINGLE_SETS_IN_CACHE = 20_000  # n-gram sets of candidate rows
NEIGHBOURS = 8  # preceding rows of a bucket that each row is compared with, in addition to the first row


# -- equal rows ---------------------------------------------------------------------------------------------------------


def content_hash(content: bytes) -> tuple[int, int]:
    """The 128-bit xxHash3 of a row, as two 64-bit numbers."""
    value = xxhash.xxh3_128_intdigest(content)
    return value >> 64, value & 0xFFFFFFFFFFFFFFFF


def first_occurrences(hashes: np.ndarray) -> np.ndarray:
    """For each row of `hashes` [N, 2] the index of the first equal row (its own index if there is none before). int64 [N]."""
    first = np.arange(len(hashes), dtype=np.int64)
    if len(hashes) < 2:
        return first
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: equal rows stay in order
    ordered = hashes[order]
    begins = np.concatenate(([True], (ordered[1:] != ordered[:-1]).any(axis=1)))
    first[order] = order[begins][np.cumsum(begins) - 1]
    return first


# -- signatures and candidates ------------------------------------------------------------------------------------------


def signature_backend() -> str:
    """The name of the implementation that computes signatures; signatures of different ones must not be compared."""
    rensa = _rensa_minhash()
    return f"{SIGNATURE_VERSION}/rensa-{rensa.ALGORITHM_VERSION}" if rensa else f"{SIGNATURE_VERSION}/numpy"


def signatures(flat: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """MinHash signatures of sets of hashes, given as by `shingles`. uint32 [texts, 128].

    The fraction of equal numbers in two signatures estimates the Jaccard similarity (Broder, "On the resemblance and
    containment of documents", 1997).
    """
    if len(offsets) < 2:
        return np.zeros((0, PERMUTATIONS), np.uint32)
    rensa = _rensa_minhash()
    if rensa is None:
        return numpy_signatures(flat, offsets)
    rows = rensa.digest_matrix_from_flat_token_hashes(flat, offsets, PERMUTATIONS, 1).to_rows()
    return np.asarray(rows, np.uint32)


def numpy_signatures(flat: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """`signatures` without rensa: for each of 128 pairs (a, b) the minimum of the upper half of a·h + b. uint32 [texts,
    128]."""
    numbers = mix_bits(np.arange(1, 2 * PERMUTATIONS + 1, dtype=np.uint64) * np.uint64(HASH_BASE))
    factors, terms = numbers[:PERMUTATIONS] | np.uint64(1), numbers[PERMUTATIONS:]
    starts = offsets[:-1].astype(np.int64)
    minima = np.empty((len(starts), PERMUTATIONS), np.uint32)
    for column, (factor, term) in enumerate(zip(factors, terms, strict=True)):
        permuted = ((flat * factor + term) >> np.uint64(32)).astype(np.uint32)
        minima[:, column] = np.minimum.reduceat(permuted, starts)
    return minima


@cache
def _rensa_minhash() -> Any:
    try:
        from rensa import RMinHash  # type: ignore[attr-defined]
    except ImportError:
        return None
    return RMinHash


def bands_of(threshold: float) -> tuple[int, int]:
    """(bands, rows per band): as many rows per band as possible, so that a pair at the threshold shares a band with MIN_RECALL.

    A pair with similarity s shares one of b bands of r rows with probability 1 − (1 − sʳ)ᵇ (Leskovec, Rajaraman, Ullman,
    "Mining of Massive Datasets", section 3.4).
    """
    for rows in range(32, 1, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= MIN_RECALL:
            return bands, rows
    return PERMUTATIONS, 1


def candidates(signatures: np.ndarray, threshold: float) -> np.ndarray:
    """Pairs of rows that may be near duplicates: they share a band and their estimated similarity is not far below the
    threshold.

    `signatures` may be a memory map. int64 [M, 2], the earlier row first, sorted by the later row and then the earlier one. In
    a bucket of many rows each row is paired with the first and the NEIGHBOURS preceding rows, so the work stays linear.
    """
    bands, rows = bands_of(threshold)
    min_agreement = math.floor(
        PERMUTATIONS * (threshold - MAX_DEVIATIONS * math.sqrt(threshold * (1 - threshold) / PERMUTATIONS))
    )
    count = np.int64(max(1, len(signatures)))
    checked = similar = np.zeros(0, np.int64)  # sorted; a pair is encoded as later row · count + earlier row
    for band in range(bands):
        earlier, later = _same_bucket(signatures[:, band * rows : (band + 1) * rows])
        new = distinct(later * count + earlier)
        new = new[checked[np.minimum(np.searchsorted(checked, new), len(checked) - 1)] != new] if len(checked) else new
        checked = distinct(np.concatenate((checked, new)))
        is_similar = _agreement(signatures, new % count, new // count) >= min_agreement
        similar = distinct(np.concatenate((similar, new[is_similar])))
    return np.stack((similar % count, similar // count), axis=1)


def _same_bucket(band: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (earlier, later) of rows whose values in this band [N, rows] are equal."""
    key = np.zeros(len(band), np.uint64)
    for column in band.T:
        key = (key + column) * np.uint64(HASH_BASE)
    bits = np.uint64(max(1, len(band)).bit_length())
    keys = (mix_bits(key) >> bits << bits) | np.arange(len(band), dtype=np.uint64)  # the lower bits are the row: one sort
    keys.sort()
    row, bucket = (keys & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64), keys >> bits
    earlier, later = [], []
    for distance in range(1, NEIGHBOURS + 1):
        same = bucket[distance:] == bucket[:-distance]
        if not same.any():
            break
        earlier.append(row[:-distance][same])
        later.append(row[distance:][same])
    else:
        index = np.arange(len(row))
        bucket_starts = np.concatenate(([True], bucket[1:] != bucket[:-1]))
        first = np.maximum.accumulate(np.where(bucket_starts, index, 0))
        far = index - first > NEIGHBOURS
        earlier.append(row[first[far]])
        later.append(row[far])
    empty = [np.zeros(0, np.int64)]
    return np.concatenate(earlier or empty), np.concatenate(later or empty)


def _agreement(signatures: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The number of equal entries in the signatures of two rows, for each pair. int64 [pairs]."""
    counts = [
        np.count_nonzero(signatures[a[start : start + 8192]] == signatures[b[start : start + 8192]], axis=1)
        for start in range(0, len(a), 8192)
    ]
    return np.concatenate([np.zeros(0, np.int64), *counts])


def near_duplicates(signatures: np.ndarray, threshold: float, jaccard: Callable[[int, int], float]) -> np.ndarray:
    """For each row the index of the kept row that it nearly equals; its own index if it is kept itself. int64 [N].

    `jaccard(row, kept)` measures the exact similarity of two rows; it is called for candidates only, in row order. A row is
    dropped only if its similarity to a kept row is at least the threshold; the earliest such row represents it.
    """
    kept = np.arange(len(signatures), dtype=np.int64)
    pairs = candidates(signatures, threshold)
    borders = np.flatnonzero(np.diff(pairs[:, 1], prepend=-1, append=-1)).tolist() if len(pairs) else []
    for start, end in pairwise(borders):
        row = int(pairs[start, 1])
        for representative in np.unique(kept[pairs[start:end, 0]]).tolist():
            if jaccard(row, representative) >= threshold:
                kept[row] = representative
                break
    return kept


def find_near_duplicates(signatures: np.ndarray, threshold: float, text: Callable[[int], str]) -> list[tuple[int, int, float]]:
    """(row, earlier row, exact Jaccard similarity) of each near duplicate, in order. `text(row)` is called for candidates
    only."""

    @lru_cache(maxsize=SHINGLE_SETS_IN_CACHE)
    def shingles_of(row: int) -> np.ndarray:
        return shingle_set(text(row))

    def overlap(row: int, other: int) -> float:
        return jaccard(shingles_of(row), shingles_of(other))

    representative = near_duplicates(signatures, threshold, overlap)
    rows = np.flatnonzero(representative != np.arange(len(representative))).tolist()
    return [(row, int(representative[row]), overlap(row, int(representative[row]))) for row in rows]
