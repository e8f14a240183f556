"""Patterns of sentences: alternatives in round brackets, blanks in angle brackets, and the habits of typing."""

import math
import random
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import yaml

_INNERMOST = re.compile(r"(?<!\\)\(((?:[^()\\]|\\.)*)\)")
_BLANK = re.compile(r"<(\w+)>")
_FULL_WIDTH = str.maketrans("0123456789+-=", "０１２３４５６７８９＋－＝")
_MARKS = {"zh": "。？！?!.", "en": ".?!"}


@cache
def read_yaml(name: str) -> dict[str, Any]:
    """A file of patterns of this package."""
    return yaml.safe_load((resources.files("fledge.world.natural") / name).read_text(encoding="utf-8"))


def number_of_sentences(pattern: str) -> int:
    """How many sentences a pattern stands for, equal ones counted as often as they occur."""
    counts: dict[str, int] = {}

    def of(text: str) -> int:
        return math.prod(counts.get(sign, 1) for sign in text)

    while match := _INNERMOST.search(pattern):
        sign = chr(0xE000 + len(counts))  # a private character stands for the group that was counted
        counts[sign] = sum(map(of, re.split(r"(?<!\\)\|", match[1])))
        pattern = pattern[: match.start()] + sign + pattern[match.end() :]
    return of(pattern)


@cache
def _weighted(name: str, group: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The patterns of a group of a file, with their weights: √ of how many sentences each stands for."""
    found = read_yaml(name)[group]
    patterns = tuple(found["say"] if isinstance(found, dict) else found)
    return patterns, tuple(math.sqrt(number_of_sentences(pattern)) for pattern in patterns)


def choose_sentence(rng: random.Random, name: str, group: str) -> str:
    """A random sentence of a group of a file, with its blanks still open."""
    patterns, weights = _weighted(name, group)
    return expand(rng, rng.choices(patterns, weights)[0])


def expand(rng: random.Random, pattern: str) -> str:
    """A random sentence of a pattern, with its blanks still open: `(a|b|)c` gives `ac`, `bc` or `c`.

    A backslash before a bracket or a bar makes it a character of the sentence.
    """
    while match := _INNERMOST.search(pattern):
        chosen = rng.choice(re.split(r"(?<!\\)\|", match[1]))
        pattern = pattern[: match.start()] + chosen + pattern[match.end() :]
    return re.sub(r"\\(.)", r"\1", pattern)


def fill(text: str, blanks: Mapping[str, str]) -> str:
    """The sentence with its blanks filled in. Raises KeyError for a blank without a value."""
    return _BLANK.sub(lambda match: blanks[match[1]], text)


def as_typed(rng: random.Random, text: str, lang: str, *, may_add: bool = True, keep: str = "") -> str:
    """The sentence as people type it: words before and after it, a missing or another last mark, small letters.

    With `keep`, a part of the sentence whose letters stay as they are.
    """
    text, words = text.strip(), read_yaml("words.yaml")
    if may_add and rng.random() < 0.12:
        text = rng.choice(words["before"][lang]) + text
    elif lang == "en" and rng.random() < 0.6:
        text = text[:1].upper() + text[1:]
    if rng.random() < 0.3:
        text = text.rstrip(_MARKS[lang]) or text
    if may_add and rng.random() < 0.08:
        text = (text.rstrip(_MARKS[lang]) or text) + rng.choice(words["after"][lang])
    if rng.random() < 0.02:
        text += rng.choice(words["emoji"])
    if lang == "zh" and rng.random() < 0.15:
        text = text.translate(str.maketrans("？！，：。", "?!,:."))
    if lang == "en" and rng.random() < 0.3:
        text = text.lower() if not keep else keep.join(part.lower() for part in text.split(keep))
    if rng.random() < 0.03:
        text = _slip(rng, text, keep)
    return text.strip()


def full_width(text: str) -> str:
    """The text with full-width digits and signs."""
    return text.translate(_FULL_WIDTH)


def _slip(rng: random.Random, text: str, keep: str) -> str:
    """The text with two neighbouring letters swapped, as fingers do, outside of the part that is to be kept."""
    places = [i for i in range(len(text) - 1) if text[i].isalpha() and text[i + 1].isalpha() and text[i].isascii()]
    kept = text.find(keep) if keep else -1
    places = [i for i in places if kept < 0 or i + 1 < kept or i >= kept + len(keep)]
    if not places:
        return text
    i = rng.choice(places)
    return text[:i] + text[i + 1] + text[i] + text[i + 2 :]
