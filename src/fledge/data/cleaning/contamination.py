"""Contamination: training rows that contain evaluation texts, found by long shared n-grams.

An n-gram is 13 consecutive words as in "Language Models are Few-Shot Learners" (Brown et al. 2020, appendix C): independent
texts hardly ever share as many. In scripts without spaces it is 26 characters, because a Chinese word has about two.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from fledge.data.cleaning.ngrams import Units, ngram_hashes, prefix_sums, span_hashes, units
from fledge.data.storage import load_arrays
from fledge.errors import FledgeError
from fledge.run.text_files import give_usual_mode

WORDS, CHARACTERS = 13, 26  # units of an n-gram: of a text with spaces between words; of one without
MIN_WORDS, MIN_CHARACTERS = 8, 16  # a shorter text is found only if a training text equals it
EXCERPT = 160  # characters of a match that are reported
VERSION = 1
_WHOLE_TEXT = np.uint64(0xA0761D6478BD642F)  # distinguishes the hash of a whole text from that of an n-gram
_TEXTS_AT_ONCE = 1000


@dataclass(frozen=True)
class Contamination:
    """Evaluation texts as sorted hashes (uint64) to search in training rows.

    `long`: all n-grams of texts with at least 13 words or 26 characters. `heads`: the first 8 words or 16 characters of
    shorter texts, and `short`: all units of these texts, compared where a head matches. `whole`: texts that are shorter
    still, which match only an equal text."""

    long: np.ndarray
    heads: np.ndarray
    short: np.ndarray
    whole: np.ndarray

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Contamination":
        """Collect evaluation texts (questions, prompts, documents). Texts without a letter or digit are ignored."""
        collected: dict[str, list[np.ndarray]] = {"long": [], "heads": [], "short": [], "whole": []}
        for chunk in _chunks(texts):
            for name, hashes in _evaluation_hashes(units(chunk)):
                collected[name].append(hashes)
        return cls(**{name: np.unique(np.concatenate([np.zeros(0, np.uint64), *arrays])) for name, arrays in collected.items()})

    def check(self, texts: Sequence[str]) -> str | None:
        """An excerpt of the first text of a row that contains an evaluation text or a long part of one; None if none does."""
        return self.check_rows([texts])[0]

    def check_rows(self, rows: Sequence[Sequence[str]]) -> list[str | None]:
        """`check` for many rows, faster than one by one."""
        texts = [text for row in rows for text in row]
        excerpts: list[str | None] = [None] * len(rows)
        row_of = np.repeat(np.arange(len(rows)), np.asarray([len(row) for row in rows], np.int64))
        for text, start, end in self._matches(units(texts)):
            row = int(row_of[text])
            if excerpts[row] is None:
                excerpts[row] = texts[text][start:end][:EXCERPT].rstrip()
        return excerpts

    def save(self, path: Path) -> None:
        """Write the hashes to a safetensors file."""
        from safetensors.numpy import save_file

        arrays = {"long": self.long, "heads": self.heads, "short": self.short, "whole": self.whole}
        save_file({**arrays, "version": np.asarray([VERSION])}, path)
        give_usual_mode(path)

    @classmethod
    def load(cls, path: Path) -> "Contamination":
        """Read a file written by `save`. Raises FledgeError for any other file."""
        from safetensors import SafetensorError

        try:
            arrays = load_arrays(path)
        except (OSError, SafetensorError) as error:
            raise FledgeError(f"cannot read the hashes of evaluation texts: {error}", where=str(path)) from None
        if arrays.pop("version", np.zeros(0)).tolist() != [VERSION]:
            raise FledgeError("the hashes of evaluation texts are of another version", where=str(path), hint="delete the file")
        return cls(**arrays)

    def _matches(self, text_units: Units) -> Iterator[tuple[int, int, int | None]]:
        """(text, first character, character after the last or None for the end) of each match, sorted."""
        sums = prefix_sums(text_units.hashes)
        ends = np.cumsum(text_units.counts)
        text_of = np.repeat(np.arange(len(ends)), text_units.counts)
        # Units from each position to the end of its text.
        remaining = np.repeat(ends, text_units.counts) - np.arange(len(text_of))
        matches = [
            (text, int(ends[text] - text_units.counts[text]), int(text_units.counts[text]))
            for text in self._equal(text_units, sums)
        ]
        for n in (WORDS, CHARACTERS) if len(self.long) else ():
            hits = self._long_filter.hits(ngram_hashes(sums, n), remaining, n)
            first = hits[np.diff(text_of[hits], prepend=-1) > 0]  # the first hit of each text
            matches += [(int(text_of[position]), position, n) for position in first.tolist()]
        for n in (MIN_WORDS, MIN_CHARACTERS) if len(self.heads) else ():
            hits = self._head_filter.hits(ngram_hashes(sums, n), remaining, n)
            for size in range(n, CHARACTERS if n == MIN_CHARACTERS else WORDS) if len(hits) else ():
                fitting = hits[remaining[hits] >= size]
                matching = fitting[_contains(self.short, span_hashes(sums, fitting, fitting + size))]
                matches += [(int(text_of[position]), position, size) for position in matching.tolist()]
        for text, position, n in sorted(matches):
            after = position + n
            yield text, int(text_units.positions[position]), int(text_units.positions[after]) if after < ends[text] else None

    def _equal(self, text_units: Units, sums: np.ndarray) -> list[int]:
        """Indices of the texts that equal a short evaluation text."""
        if not len(self.whole):
            return []
        texts, hashes = _whole_texts(text_units, sums)
        return texts[_contains(self.whole, hashes)].tolist()

    @cached_property
    def _long_filter(self) -> "_HashFilter":
        return _HashFilter(self.long)

    @cached_property
    def _head_filter(self) -> "_HashFilter":
        return _HashFilter(self.heads)


class _HashFilter:
    """Membership in sorted hashes, tested first in a table of their upper bits, which nearly always excludes."""

    def __init__(self, hashes: np.ndarray) -> None:
        self.hashes = hashes
        bits = min(28, max(12, len(hashes).bit_length() + 4))
        self.shift = np.uint64(64 - bits)
        self.table = np.zeros(1 << bits, bool)
        self.table[hashes >> self.shift] = True

    def hits(self, queries: np.ndarray, remaining: np.ndarray, n: int) -> np.ndarray:
        """The positions whose n-gram is a member and lies within one text. int64."""
        positions = np.flatnonzero(self.table[queries >> self.shift])
        positions = positions[remaining[positions] >= n]
        return positions[_contains(self.hashes, queries[positions])]


def _contains(hashes: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Which queries are among the sorted hashes (at least one). bool [queries]."""
    return hashes[np.minimum(np.searchsorted(hashes, queries), len(hashes) - 1)] == queries


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    texts = iter(texts)
    while chunk := list(islice(texts, _TEXTS_AT_ONCE)):
        yield chunk


def _evaluation_hashes(text_units: Units) -> Iterator[tuple[str, np.ndarray]]:
    """The hashes of evaluation texts, each with the name of its field in Contamination."""
    sums = prefix_sums(text_units.hashes)
    ends = np.cumsum(text_units.counts)
    starts = ends - text_units.counts
    unspaced = text_units.mostly_unspaced()
    remaining = np.repeat(ends, text_units.counts) - np.arange(len(text_units.hashes))
    for n, minimum, selected in ((WORDS, MIN_WORDS, ~unspaced), (CHARACTERS, MIN_CHARACTERS, unspaced)):
        positions = np.flatnonzero(np.repeat(selected, text_units.counts) & (remaining >= n))
        yield "long", span_hashes(sums, positions, positions + n)
        for size in range(minimum, n):
            short_starts = starts[selected & (text_units.counts == size)]
            yield "heads", span_hashes(sums, short_starts, short_starts + minimum)
            yield "short", span_hashes(sums, short_starts, short_starts + size)
    texts, hashes = _whole_texts(text_units, sums)
    yield "whole", hashes[text_units.counts[texts] < np.where(unspaced, MIN_CHARACTERS, MIN_WORDS)[texts]]


def _whole_texts(text_units: Units, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The indices of texts with 1 to 15 units, and the hashes of the whole texts."""
    texts = np.flatnonzero((text_units.counts > 0) & (text_units.counts < MIN_CHARACTERS))
    ends = np.cumsum(text_units.counts)[texts]
    return texts, span_hashes(sums, ends - text_units.counts[texts], ends) ^ _WHOLE_TEXT
