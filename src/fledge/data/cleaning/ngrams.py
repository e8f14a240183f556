"""N-grams of texts as 64-bit hashes; everything is a function of the texts alone.

The units of an n-gram are words, or characters in scripts that are written without spaces. The hash of a sequence of units
is a polynomial in a fixed base modulo 2^64, so hashes of all n-grams are differences of prefix sums."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import xxhash

from fledge.data.cleaning.languages import SCRIPTS

WORDS_PER_NGRAM, CHARACTERS_PER_NGRAM = 3, 5  # units of one n-gram: of a text with spaces between words; of one without
HASH_BASE = 0x9E3779B97F4A7C15  # odd: its powers have inverses modulo 2^64; 5 modulo 8: the powers have the longest period
MAX_CHARACTERS = 1 << 17  # processed together
_UNSPACED_SCRIPTS = ("han", "kana", "th", "lo", "km", "my", "bo")
_SEPARATOR, _WORD, _SINGLE = 0, 1, 2


@dataclass(frozen=True)
class Units:
    """The units of texts: words, and single characters of scripts that are written without spaces.

    hashes: uint64 [U]; positions: int64 [U], characters before the unit in its text; unspaced: bool [U]; counts: int64
    [texts]."""

    hashes: np.ndarray
    positions: np.ndarray
    unspaced: np.ndarray
    counts: np.ndarray

    def mostly_unspaced(self) -> np.ndarray:
        """Whether most units of a text are characters of scripts without spaces. bool [texts]."""
        ends = np.cumsum(self.counts)
        cumulative = np.concatenate(([0], np.cumsum(self.unspaced)))
        return 2 * (cumulative[ends] - cumulative[ends - self.counts]) > self.counts


def units(texts: Sequence[str]) -> Units:
    """The units of several texts, concatenated. Case, width, punctuation and white space make no difference."""
    pieces = [
        (number, start, text[start : start + MAX_CHARACTERS] if len(text) > MAX_CHARACTERS else text)
        for number, text in enumerate(texts)
        for start in range(0, max(len(text), 1), MAX_CHARACTERS)
    ]
    columns_of_chunks: list[tuple[np.ndarray, ...]] = []
    counts = np.zeros(len(texts), np.int64)
    first, size = 0, 0
    for index, (_, _, piece) in enumerate(pieces):
        size += len(piece) + 1
        if size >= MAX_CHARACTERS or index == len(pieces) - 1:
            chunk = pieces[first : index + 1]
            *columns, per_piece = _units_of([text for _, _, text in chunk])
            if any(start for _, start, _ in chunk):
                columns[1] += np.repeat(np.asarray([start for _, start, _ in chunk]), per_piece)
            columns_of_chunks.append(tuple(columns))
            np.add.at(counts, [number for number, _, _ in chunk], per_piece)
            first, size = index + 1, 0
    if not columns_of_chunks:
        return Units(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, bool), counts)
    hashes, positions, unspaced = (np.concatenate(column) for column in zip(*columns_of_chunks, strict=True))
    return Units(hashes, positions, unspaced, counts)


def _units_of(texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Hashes, positions, unspaced and counts of texts that are processed together.

    A unit hashes to the sum of its characters times powers of the base, by the position of each character. Division by the
    power at its beginning makes the hash independent of the unit's position.
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
    return mix_bits(hashes), starts - np.repeat(ends - lengths, counts), kind[starts] == _SINGLE, counts


@cache
def _characters() -> tuple[np.ndarray, np.ndarray]:
    """For each code point its value and its kind, uint64 and uint8 [0x110000].

    The value is that of the lower-case form in standard width, 0 for a separator. The kind is separator, word character
    (letters, marks, digits), or single unit.
    """
    values = np.arange(1, 0x110001, dtype=np.uint64)
    kinds = np.full(0x110000, _WORD, np.uint8)
    kinds[0xD800:0xF900] = kinds[0xE0000:] = _SEPARATOR
    for code in (*range(0x3400), *range(0xA000, 0xAC00), *range(0xF900, 0x20000), *range(0x2F800, 0x2FA20)):
        character = chr(code)
        if unicodedata.category(character)[0] not in "LMN":
            kinds[code] = _SEPARATOR
            continue
        normalized = unicodedata.normalize("NFKC", character).lower()
        if len(normalized) == 1:
            values[code] = ord(normalized) + 1
    for name in _UNSPACED_SCRIPTS:
        for start, end in SCRIPTS[name]:
            section = kinds[start : end + 1]
            section[section == _WORD] = _SINGLE
    values[kinds == _SEPARATOR] = 0
    return values, kinds


def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers 0, 1, … of the base modulo 2^64, and their inverses; at least `size` of each."""
    return _powers_up_to(1 << max(16, (size - 1).bit_length()))


@lru_cache(maxsize=2)
def _powers_up_to(size: int) -> tuple[np.ndarray, np.ndarray]:
    tables = []
    for base in (HASH_BASE, pow(HASH_BASE, -1, 1 << 64)):
        factors = np.full(size, base, np.uint64)
        factors[0] = 1
        tables.append(np.cumprod(factors))
    return tables[0], tables[1]


def mix_bits(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64, in place: every bit of the result depends on every bit of the value."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def prefix_sums(hashes: np.ndarray) -> np.ndarray:
    """Prefix sums of unit hashes times powers of the base, the input of `ngram_hashes`. uint64 [units + 1]."""
    sums = np.zeros(len(hashes) + 1, np.uint64)
    np.cumsum(hashes * _powers(len(hashes))[0][: len(hashes)], out=sums[1:])
    return sums


def ngram_hashes(sums: np.ndarray, n: int) -> np.ndarray:
    """Hashes of n consecutive units at each of the units − n + 1 positions. uint64."""
    count = max(len(sums) - n, 0)
    return mix_bits((sums[n:] - sums[:count]) * _powers(len(sums))[1][:count] + np.uint64(n))


def span_hashes(sums: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Hashes of the units from each start to its end, uint64; equal to `ngram_hashes` for spans of n units."""
    return mix_bits((sums[ends] - sums[starts]) * _powers(len(sums))[1][starts] + (ends - starts).astype(np.uint64))


def shingles(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The n-grams of texts: 64-bit hashes, concatenated [S], repetitions included, and offsets [texts + 1], both uint64.

    N-grams are of 3 words, or of 5 characters if most units of the text are characters of scripts without spaces. A text
    with fewer units is one n-gram; for a text without units, the raw text is hashed."""
    text_units = units(texts)
    ends = np.cumsum(text_units.counts)
    starts = ends - text_units.counts
    n = np.where(text_units.mostly_unspaced(), CHARACTERS_PER_NGRAM, WORDS_PER_NGRAM)
    short = (text_units.counts > 0) & (text_units.counts < n)
    sums = prefix_sums(text_units.hashes)
    flat = np.zeros(len(text_units.hashes), np.uint64)
    is_ngram = np.repeat(~short, text_units.counts)
    for size in (WORDS_PER_NGRAM, CHARACTERS_PER_NGRAM):
        selected = (n == size) & ~short & (text_units.counts > 0)
        if selected.any():
            hashes = ngram_hashes(sums, size)
            mask = np.repeat(selected, text_units.counts)[: len(hashes)]
            np.copyto(flat[: len(hashes)], hashes, where=mask)
            for distance in range(1, size):
                is_ngram[ends[selected] - distance] = False
    if short.any():
        flat[starts[short]] = span_hashes(sums, starts[short], ends[short])
        is_ngram[starts[short]] = True
    return _add_raw_hashes(flat[is_ngram], np.where(short, 1, np.maximum(text_units.counts - n + 1, 0)), texts)


def shingle_set(text: str) -> np.ndarray:
    """The n-grams of one text, sorted, without repetitions: the input of `jaccard`. uint64."""
    return distinct(shingles([text])[0])


def _add_raw_hashes(flat: np.ndarray, counts: np.ndarray, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Insert a hash of the raw text for each text without an n-gram; returns hashes and offsets."""
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        raw = [xxhash.xxh3_64_intdigest(texts[index].encode("utf-8", "surrogatepass")) for index in empty.tolist()]
        flat = np.insert(flat, np.cumsum(counts)[empty], np.asarray(raw, np.uint64))
        counts = np.maximum(counts, 1)
    return flat, np.concatenate(([0], np.cumsum(counts))).astype(np.uint64)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|A ∩ B| / |A ∪ B| of two sorted arrays without repetitions."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / max(1, len(a) + len(b) - shared)


def distinct(values: np.ndarray) -> np.ndarray:
    """Sorted values without repetitions. np.unique hashes integers, which is slow for multiples of one number."""
    values = np.sort(values)
    return values[np.concatenate(([True], values[1:] != values[:-1]))] if len(values) else values
