"""Rows that say the same: equal ones by a hash of their content, near ones by the n-grams that they share.

Near duplicates are found in stages: n-grams of a text become hashes (`shingles`), these 128 numbers that two texts share
as often as they share n-grams (`signatures`), rows with equal bands of these are suspected (`candidates`), and the share is
then measured on the texts themselves (`near_duplicates`). Everything is a function of the texts alone.
"""

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import xxhash

from fledge.data.cleaning.languages import SCRIPTS

WORDS, CHARACTERS = 3, 5  # units in one n-gram of a text with spaces between words, and of one without
PERMUTATIONS = 128
SIGNATURE = "minhash-128-1"  # names the units, n-grams and hashes here; another number when their results change
RECALL = 0.995  # least chance that a pair at the threshold shares a band
SPREAD = 3.0  # standard deviations that an estimate may lie below the threshold
SETS_KEPT = 20_000  # sets of n-grams of suspected rows that stay in memory
NEIGHBOURS = 8  # rows of a bucket that each row is compared with, beside the first

_BASE = 0x9E3779B97F4A7C15  # odd, so that its powers have inverses modulo 2^64; and 5 modulo 8, so that they differ most
_PIECE = 1 << 17  # characters worked on together
_UNSPACED = ("han", "kana", "th", "lo", "km", "my", "bo")
_SEPARATOR, _WORD, _SINGLE = 0, 1, 2


# -- equal rows ---------------------------------------------------------------------------------------------------------


def content_hash(content: bytes) -> tuple[int, int]:
    """The 128-bit xxHash3 of a row, as two numbers of 64 bits."""
    value = xxhash.xxh3_128_intdigest(content)
    return value >> 64, value & 0xFFFFFFFFFFFFFFFF


def first_occurrences(hashes: np.ndarray) -> np.ndarray:
    """For each row of hashes [N, 2] the number of the first equal row, its own if there is none before. int64 [N]."""
    first = np.arange(len(hashes), dtype=np.int64)
    if len(hashes) < 2:
        return first
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: equal rows stay in order
    ordered = hashes[order]
    begins = np.concatenate(([True], (ordered[1:] != ordered[:-1]).any(axis=1)))
    first[order] = order[begins][np.cumsum(begins) - 1]
    return first


# -- units and n-grams --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Units:
    """Words of texts, and single characters of scripts that write no spaces: what n-grams are made of.

    hashes uint64 [U]; places int64 [U], characters before the unit in its text; unspaced bool [U]; counts int64 [texts].
    """

    hashes: np.ndarray
    places: np.ndarray
    unspaced: np.ndarray
    counts: np.ndarray

    def mostly_unspaced(self) -> np.ndarray:
        """Whether most units of a text are characters of scripts without spaces. bool [texts]."""
        ends = np.cumsum(self.counts)
        before = np.concatenate(([0], np.cumsum(self.unspaced)))
        return 2 * (before[ends] - before[ends - self.counts]) > self.counts


def units(texts: Sequence[str]) -> Units:
    """Units of several texts, end to end. Case, width, punctuation and white space make no difference."""
    pieces = [
        (number, start, text[start : start + _PIECE] if len(text) > _PIECE else text)
        for number, text in enumerate(texts)
        for start in range(0, max(len(text), 1), _PIECE)
    ]
    found: list[tuple[np.ndarray, ...]] = []
    counts = np.zeros(len(texts), np.int64)
    first, size = 0, 0
    for index, (_, _, piece) in enumerate(pieces):
        size += len(piece) + 1
        if size >= _PIECE or index == len(pieces) - 1:
            chunk = pieces[first : index + 1]
            *columns, per_piece = _units_of([text for _, _, text in chunk])
            if any(start for _, start, _ in chunk):
                columns[1] += np.repeat(np.asarray([start for _, start, _ in chunk]), per_piece)
            found.append(tuple(columns))
            np.add.at(counts, [number for number, _, _ in chunk], per_piece)
            first, size = index + 1, 0
    if not found:
        return Units(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, bool), counts)
    hashes, places, unspaced = (np.concatenate(column) for column in zip(*found, strict=True))
    return Units(hashes, places, unspaced, counts)


def _units_of(texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Hashes, places, unspaced and counts of texts that fit into one piece.

    A unit hashes to the sum of its characters times powers of the base, by the place of each character; dividing by the
    power at its beginning makes that independent of where the unit lies.
    """
    codes = np.frombuffer(("\n".join(texts) + "\n").encode("utf-32-le", "surrogatepass"), np.uint32)
    values, kinds = _characters()
    kind = kinds[codes]
    begins = kind != _SEPARATOR
    begins[1:] &= (kind[1:] != _WORD) | (kind[:-1] != _WORD)
    starts = np.flatnonzero(begins)
    powers, inverses = _powers(len(codes))
    terms = values[codes]
    terms *= powers[: len(codes)]
    hashes = np.add.reduceat(terms, starts) if len(starts) else np.zeros(0, np.uint64)
    hashes *= inverses[starts]
    lengths = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
    ends = np.cumsum(lengths)
    counts = np.searchsorted(starts, ends)
    counts[1:] -= counts[:-1].copy()
    return _mixed(hashes), starts - np.repeat(ends - lengths, counts), kind[starts] == _SINGLE, counts


@cache
def _characters() -> tuple[np.ndarray, np.ndarray]:
    """For each code point: its value, that of its lower-case form in usual width, 0 for a separator (uint64 [0x110000]);
    and its kind (uint8): separator, of a word (letters, marks, digits), or a unit by itself."""
    values = np.arange(1, 0x110001, dtype=np.uint64)
    kinds = np.full(0x110000, _WORD, np.uint8)
    kinds[0xD800:0xF900] = kinds[0xE0000:] = _SEPARATOR
    for code in (*range(0x3400), *range(0xA000, 0xAC00), *range(0xF900, 0x20000), *range(0x2F800, 0x2FA20)):
        character = chr(code)
        if unicodedata.category(character)[0] not in "LMN":
            kinds[code] = _SEPARATOR
            continue
        usual = unicodedata.normalize("NFKC", character).lower()
        if len(usual) == 1:
            values[code] = ord(usual) + 1
    for name in _UNSPACED:
        for start, end in SCRIPTS[name]:
            inside = kinds[start : end + 1]
            inside[inside == _WORD] = _SINGLE
    values[kinds == _SEPARATOR] = 0
    return values, kinds


def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers 0, 1, … of the base modulo 2^64, and their inverses; at least `size` of them."""
    return _powers_up_to(1 << max(16, (size - 1).bit_length()))


@lru_cache(maxsize=2)
def _powers_up_to(size: int) -> tuple[np.ndarray, np.ndarray]:
    both = []
    for base in (_BASE, pow(_BASE, -1, 1 << 64)):
        factors = np.full(size, base, np.uint64)
        factors[0] = 1
        both.append(np.cumprod(factors))
    return both[0], both[1]


def _mixed(values: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on every bit of the value (the finalizer of splitmix64); in place."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def prefix_sums(hashes: np.ndarray) -> np.ndarray:
    """What `grams` needs of a sequence of units: their hashes times powers of the base, summed up. uint64 [units + 1]."""
    sums = np.zeros(len(hashes) + 1, np.uint64)
    np.cumsum(hashes * _powers(len(hashes))[0][: len(hashes)], out=sums[1:])
    return sums


def grams(sums: np.ndarray, n: int) -> np.ndarray:
    """Hashes of n units in a row, for each of the units - n + 1 places. uint64."""
    count = max(len(sums) - n, 0)
    return _mixed((sums[n:] - sums[:count]) * _powers(len(sums))[1][:count] + np.uint64(n))


def spans(sums: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Hashes of the units from each start up to its end; equal to those of `grams`. uint64."""
    return _mixed((sums[ends] - sums[starts]) * _powers(len(sums))[1][starts] + (ends - starts).astype(np.uint64))


def shingles(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """n-grams of texts: 64-bit hashes end to end [S], repetitions included, and offsets [texts + 1], both uint64.

    A text's n-grams are of 3 words, or of 5 characters where most of its units are characters of a script without spaces. A
    text with fewer units is one n-gram; one without any is its raw self.
    """
    found = units(texts)
    ends = np.cumsum(found.counts)
    begins = ends - found.counts
    n = np.where(found.mostly_unspaced(), CHARACTERS, WORDS)
    short = (found.counts > 0) & (found.counts < n)
    sums = prefix_sums(found.hashes)
    flat = np.zeros(len(found.hashes), np.uint64)
    used = np.repeat(~short, found.counts)
    for size in (WORDS, CHARACTERS):
        mine = (n == size) & ~short & (found.counts > 0)
        if mine.any():
            hashes = grams(sums, size)
            places = np.repeat(mine, found.counts)[: len(hashes)]
            np.copyto(flat[: len(hashes)], hashes, where=places)
            for back in range(1, size):
                used[ends[mine] - back] = False
    if short.any():
        flat[begins[short]] = spans(sums, begins[short], ends[short])
        used[begins[short]] = True
    return _with_raw(flat[used], np.where(short, 1, np.maximum(found.counts - n + 1, 0)), texts)


def shingle_set(text: str) -> np.ndarray:
    """The n-grams of one text, sorted and each once: what `jaccard` compares. uint64."""
    return _distinct(shingles([text])[0])


def _with_raw(flat: np.ndarray, counts: np.ndarray, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Put in a hash of the raw text for each text without an n-gram."""
    bare = np.flatnonzero(counts == 0)
    if len(bare):
        raw = [xxhash.xxh3_64_intdigest(texts[index].encode("utf-8", "surrogatepass")) for index in bare.tolist()]
        flat = np.insert(flat, np.cumsum(counts)[bare], np.asarray(raw, np.uint64))
        counts = np.maximum(counts, 1)
    return flat, np.concatenate(([0], np.cumsum(counts))).astype(np.uint64)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|A ∩ B| / |A ∪ B| of two sorted arrays without repetitions."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / max(1, len(a) + len(b) - shared)


# -- signatures and candidates ------------------------------------------------------------------------------------------


def backend() -> str:
    """What computes signatures here. Those of different backends must not be compared."""
    rensa = _rensa()
    return f"{SIGNATURE}/rensa-{rensa.ALGORITHM_VERSION}" if rensa else f"{SIGNATURE}/numpy"


def signatures(flat: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """MinHash signatures of sets of hashes (as `shingles` gives them). uint32 [texts, 128]; the share of places where two
    of them are equal estimates the Jaccard similarity (Broder, "On the resemblance and containment of documents", 1997)."""
    if len(offsets) < 2:
        return np.zeros((0, PERMUTATIONS), np.uint32)
    rensa = _rensa()
    if rensa is None:
        return numpy_signatures(flat, offsets)
    rows = rensa.digest_matrix_from_flat_token_hashes(flat, offsets, PERMUTATIONS, 1).to_rows()
    return np.asarray(rows, np.uint32)


def numpy_signatures(flat: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The same without rensa: for each of 128 pairs (a, b) the least of the upper halves of a·h + b. uint32 [texts, 128]."""
    numbers = _mixed(np.arange(1, 2 * PERMUTATIONS + 1, dtype=np.uint64) * np.uint64(_BASE))
    factors, terms = numbers[:PERMUTATIONS] | np.uint64(1), numbers[PERMUTATIONS:]
    starts = offsets[:-1].astype(np.int64)
    found = np.empty((len(starts), PERMUTATIONS), np.uint32)
    for place, (factor, term) in enumerate(zip(factors, terms, strict=True)):
        permuted = ((flat * factor + term) >> np.uint64(32)).astype(np.uint32)
        found[:, place] = np.minimum.reduceat(permuted, starts)
    return found


@cache
def _rensa() -> Any:
    try:
        from rensa import RMinHash  # type: ignore[attr-defined]
    except ImportError:
        return None
    return RMinHash


def bands_of(threshold: float) -> tuple[int, int]:
    """(bands, rows): as many rows a band as still let a pair at the threshold share a band with RECALL.

    A pair of similarity s shares one of b bands of r rows with probability 1 − (1 − sʳ)ᵇ (Leskovec, Rajaraman, Ullman,
    "Mining of Massive Datasets", section 3.4).
    """
    for rows in range(32, 1, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= RECALL:
            return bands, rows
    return PERMUTATIONS, 1


def candidates(signatures: np.ndarray, threshold: float) -> np.ndarray:
    """Pairs of rows that may be similar: they share a band, and their estimated similarity is not far below the threshold.

    `signatures` may be a memory map. int64 [M, 2], earlier row first, ordered by the later row and then the earlier. In a
    bucket of many rows each is paired with the first and with the NEIGHBOURS before it, so the work stays linear.
    """
    bands, rows = bands_of(threshold)
    least = math.floor(PERMUTATIONS * (threshold - SPREAD * math.sqrt(threshold * (1 - threshold) / PERMUTATIONS)))
    count = np.int64(max(1, len(signatures)))
    asked = found = np.zeros(0, np.int64)  # pairs as later row times count plus earlier row, sorted
    for band in range(bands):
        earlier, later = _same_bucket(signatures[:, band * rows : (band + 1) * rows])
        new = _distinct(later * count + earlier)
        new = new[asked[np.minimum(np.searchsorted(asked, new), len(asked) - 1)] != new] if len(asked) else new
        asked = _distinct(np.concatenate((asked, new)))
        alike = _agreement(signatures, new % count, new // count) >= least
        found = _distinct(np.concatenate((found, new[alike])))
    return np.stack((found % count, found // count), axis=1)


def _distinct(values: np.ndarray) -> np.ndarray:
    """Sorted, without repetitions. np.unique hashes whole numbers, badly where they are multiples of one number."""
    values = np.sort(values)
    return values[np.concatenate(([True], values[1:] != values[:-1]))] if len(values) else values


def _same_bucket(band: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (earlier, later) of rows whose values in this band [N, rows] are equal."""
    key = np.zeros(len(band), np.uint64)
    for column in band.T:
        key = (key + column) * np.uint64(_BASE)
    bits = np.uint64(max(1, len(band)).bit_length())
    keys = (_mixed(key) >> bits << bits) | np.arange(len(band), dtype=np.uint64)  # the row is the lower part: one sort
    keys.sort()
    row, bucket = (keys & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64), keys >> bits
    earlier, later = [], []
    for back in range(1, NEIGHBOURS + 1):
        same = bucket[back:] == bucket[:-back]
        if not same.any():
            break
        earlier.append(row[:-back][same])
        later.append(row[back:][same])
    else:
        place = np.arange(len(row))
        begins = np.concatenate(([True], bucket[1:] != bucket[:-1]))
        first = np.maximum.accumulate(np.where(begins, place, 0))
        far = place - first > NEIGHBOURS
        earlier.append(row[first[far]])
        later.append(row[far])
    empty = [np.zeros(0, np.int64)]
    return np.concatenate(earlier or empty), np.concatenate(later or empty)


def _agreement(signatures: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """In how many places the signatures of two rows are equal, for each pair. int64 [pairs]."""
    parts = [
        np.count_nonzero(signatures[a[start : start + 8192]] == signatures[b[start : start + 8192]], axis=1)
        for start in range(0, len(a), 8192)
    ]
    return np.concatenate([np.zeros(0, np.int64), *parts])


def near_duplicates(signatures: np.ndarray, threshold: float, jaccard: Callable[[int, int], float]) -> np.ndarray:
    """For each row the kept row that it nearly equals, its own number if it is kept itself. int64 [N].

    `jaccard(row, kept)` measures the true similarity of two rows; it is asked of suspected pairs only, in the order of rows. A
    row goes only if its similarity to a row that stays is at least the threshold; the earliest such row stands for it.
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


def overlapping(signatures: np.ndarray, threshold: float, text: Callable[[int], str]) -> list[tuple[int, int, float]]:
    """(row, earlier row, true Jaccard) of each near duplicate, in order. `text(row)` is asked for suspected rows only."""

    @lru_cache(maxsize=SETS_KEPT)
    def shingles_of(row: int) -> np.ndarray:
        return shingle_set(text(row))

    def overlap(row: int, other: int) -> float:
        return jaccard(shingles_of(row), shingles_of(other))

    first = near_duplicates(signatures, threshold, overlap)
    rows = np.flatnonzero(first != np.arange(len(first))).tolist()
    return [(row, int(first[row]), overlap(row, int(first[row]))) for row in rows]
