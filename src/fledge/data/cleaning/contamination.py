"""Training rows that hold what a model will be evaluated on: found by long n-grams that they share.

13 words in a row, as in "Language Models are Few-Shot Learners" (Brown et al. 2020, appendix C): texts that do not stem from
one another hardly ever share as many. Of scripts without spaces 26 characters, for a Chinese word has about two.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from fledge.data.cleaning.duplicates import Units, grams, prefix_sums, spans, units
from fledge.data.storage import load_arrays
from fledge.errors import FledgeError

WORDS, CHARACTERS = 13, 26  # units of the n-grams of an evaluation text with spaces between words, and of one without
LEAST_WORDS, LEAST_CHARACTERS = 8, 16  # a text of fewer units is found only where it is the whole of a training text
EXCERPT = 160  # characters of a match that are shown
VERSION = 1
_WHOLE = np.uint64(0xA0761D6478BD642F)  # tells the hash of a whole text from that of an n-gram
_CHUNK = 1000


@dataclass(frozen=True)
class Contamination:
    """What must not be trained on, as sorted hashes (uint64).

    `long`: all n-grams of evaluation texts of 13 words or 26 characters and more. `heads`: the first 8 words or 16 characters
    of shorter ones, and `short`: all their units, looked for where a head is found. `whole`: texts shorter than that.
    """

    long: np.ndarray
    heads: np.ndarray
    short: np.ndarray
    whole: np.ndarray

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Contamination":
        """Collect questions, prompts or documents of evaluation. Texts without a letter or digit are passed over."""
        parts: dict[str, list[np.ndarray]] = {"long": [], "heads": [], "short": [], "whole": []}
        for chunk in _chunks(texts):
            for name, hashes in _collected(units(chunk)):
                parts[name].append(hashes)
        return cls(**{name: np.unique(np.concatenate([np.zeros(0, np.uint64), *found])) for name, found in parts.items()})

    def check(self, texts: Sequence[str]) -> str | None:
        """The excerpt of the first of a row's texts that holds an evaluation text or a long part of it; None if none does."""
        return self.check_rows([texts])[0]

    def check_rows(self, rows: Sequence[Sequence[str]]) -> list[str | None]:
        """`check` of many rows, faster than one by one."""
        texts = [text for row in rows for text in row]
        found: list[str | None] = [None] * len(rows)
        row_of = np.repeat(np.arange(len(rows)), np.asarray([len(row) for row in rows], np.int64))
        for text, start, end in self._matches(units(texts)):
            row = int(row_of[text])
            if found[row] is None:
                found[row] = texts[text][start:end][:EXCERPT].rstrip()
        return found

    def save(self, path: Path) -> None:
        """Write the hashes as safetensors."""
        from safetensors.numpy import save_file

        arrays = {"long": self.long, "heads": self.heads, "short": self.short, "whole": self.whole}
        save_file({**arrays, "version": np.asarray([VERSION])}, path)

    @classmethod
    def load(cls, path: Path) -> "Contamination":
        """Read what `save` wrote. FledgeError for a file that is not that."""
        from safetensors import SafetensorError

        try:
            arrays = load_arrays(path)
        except (OSError, SafetensorError) as error:
            raise FledgeError(f"cannot read the hashes of evaluation texts: {error}", where=str(path)) from None
        if arrays.pop("version", np.zeros(0)).tolist() != [VERSION]:
            raise FledgeError("hashes of evaluation texts made by another version", where=str(path), hint="delete the file")
        return cls(**arrays)

    def _matches(self, found: Units) -> Iterator[tuple[int, int, int | None]]:
        """(text, first character, character after the last or None for the end), in the order of texts and places."""
        sums = prefix_sums(found.hashes)
        ends = np.cumsum(found.counts)
        text_of = np.repeat(np.arange(len(ends)), found.counts)
        left = np.repeat(ends, found.counts) - np.arange(len(text_of))  # units from here to the end of the text
        matches = [(text, int(ends[text] - found.counts[text]), int(found.counts[text])) for text in self._equal(found, sums)]
        for n in (WORDS, CHARACTERS) if len(self.long) else ():
            hits = self._long_filter.hits(grams(sums, n), left, n)
            first = hits[np.diff(text_of[hits], prepend=-1) > 0]  # of each text
            matches += [(int(text_of[place]), place, n) for place in first.tolist()]
        for n in (LEAST_WORDS, LEAST_CHARACTERS) if len(self.heads) else ():
            hits = self._head_filter.hits(grams(sums, n), left, n)
            for size in range(n, CHARACTERS if n == LEAST_CHARACTERS else WORDS) if len(hits) else ():
                inside = hits[left[hits] >= size]
                held = inside[_held(self.short, spans(sums, inside, inside + size))]
                matches += [(int(text_of[place]), place, size) for place in held.tolist()]
        for text, place, n in sorted(matches):
            after = place + n
            yield text, int(found.places[place]), int(found.places[after]) if after < ends[text] else None

    def _equal(self, found: Units, sums: np.ndarray) -> list[int]:
        """The texts that are equal to a short evaluation text."""
        if not len(self.whole):
            return []
        texts, hashes = _whole_texts(found, sums)
        return texts[_held(self.whole, hashes)].tolist()

    @cached_property
    def _long_filter(self) -> "_Filter":
        return _Filter(self.long)

    @cached_property
    def _head_filter(self) -> "_Filter":
        return _Filter(self.heads)


class _Filter:
    """Membership in sorted hashes, asked first of a table of their upper bits, which nearly always says no."""

    def __init__(self, hashes: np.ndarray) -> None:
        self.hashes = hashes
        bits = min(28, max(12, len(hashes).bit_length() + 4))
        self.shift = np.uint64(64 - bits)
        self.table = np.zeros(1 << bits, bool)
        self.table[hashes >> self.shift] = True

    def hits(self, asked: np.ndarray, left: np.ndarray, n: int) -> np.ndarray:
        """The places whose n-gram is a member and lies within one text. int64."""
        places = np.flatnonzero(self.table[asked >> self.shift])
        places = places[left[places] >= n]
        return places[_held(self.hashes, asked[places])]


def _held(hashes: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Which of those asked for are among the sorted hashes, of which there is at least one. bool [asked]."""
    return hashes[np.minimum(np.searchsorted(hashes, asked), len(hashes) - 1)] == asked


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    texts = iter(texts)
    while chunk := list(islice(texts, _CHUNK)):
        yield chunk


def _collected(found: Units) -> Iterator[tuple[str, np.ndarray]]:
    """The hashes of evaluation texts, each with the field that they belong to."""
    sums = prefix_sums(found.hashes)
    ends = np.cumsum(found.counts)
    begins = ends - found.counts
    unspaced = found.mostly_unspaced()
    left = np.repeat(ends, found.counts) - np.arange(len(found.hashes))
    for n, least, mine in ((WORDS, LEAST_WORDS, ~unspaced), (CHARACTERS, LEAST_CHARACTERS, unspaced)):
        places = np.flatnonzero(np.repeat(mine, found.counts) & (left >= n))
        yield "long", spans(sums, places, places + n)
        for size in range(least, n):
            starts = begins[mine & (found.counts == size)]
            yield "heads", spans(sums, starts, starts + least)
            yield "short", spans(sums, starts, starts + size)
    texts, hashes = _whole_texts(found, sums)
    yield "whole", hashes[found.counts[texts] < np.where(unspaced, LEAST_CHARACTERS, LEAST_WORDS)[texts]]


def _whole_texts(found: Units, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The texts of fewer than 16 units (and at least one), and their hashes."""
    texts = np.flatnonzero((found.counts > 0) & (found.counts < LEAST_CHARACTERS))
    ends = np.cumsum(found.counts)[texts]
    return texts, spans(sums, ends - found.counts[texts], ends) ^ _WHOLE
