"""The units that texts are compared in: words where a script writes words, characters of Chinese and the like."""

import re
from collections import Counter
from collections.abc import Sequence

CHARACTERS = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U000323af"  # of Chinese, Japanese and Korean
_UNITS = re.compile(rf"[^\W{CHARACTERS}]+|[{CHARACTERS}]|[^\w\s]")
_WORDS = re.compile(rf"[^\W_{CHARACTERS}]+|(?=\w)[{CHARACTERS}]")


def split_units(text: str) -> list[str]:
    """Words of Latin text, single characters of Chinese and the like, punctuation marks; in lower case."""
    return _UNITS.findall(text.lower())


def split_words(text: str) -> list[str]:
    """The same without punctuation marks, and a word ends at an underscore: in English text the runs of letters and digits."""
    return _WORDS.findall(text.lower())


def ngrams(units: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """All runs of n units, with how often each is there."""
    return Counter(tuple(units[start : start + n]) for start in range(len(units) - n + 1))
