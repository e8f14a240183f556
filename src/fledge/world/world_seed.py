"""The decisions that follow from the seed: what is held out, which phrasing provokes which habit, which names exist."""

import hashlib
import random
from dataclasses import dataclass
from functools import cached_property

from fledge.world.lexicon import CATEGORIES, COUNTS, NAMES
from fledge.world.records import TRAIN, Phrase

HELD_SHARE = {"arithmetic": 0.15}
DEFAULT_HELD_SHARE = 0.12
NAMES_IN_USE = 8
HIGH, LOW = 0.9, 0.1


def stable_fraction(*values: object) -> float:
    """A number in [0, 1) that depends only on the values, on every machine and Python version."""
    digest = hashlib.sha256("\x1f".join(map(str, values)).encode()).digest()
    return int.from_bytes(digest[:7], "big") / float(1 << 56)


@dataclass(frozen=True)
class WorldSeed:
    """The seed of a world, and the decisions that follow from it."""

    seed: int

    def rng(self, purpose: str) -> random.Random:
        """A separate random generator for each purpose, so that a new size of one file does not change the others."""
        return random.Random(f"{self.seed}:{purpose}")

    @cached_property
    def held_out_listings(self) -> frozenset[str]:
        """The held-out (category, count) pairs: one count for each of half of the categories.

        The pairs are chosen by rank, because independent draws from so few pairs could hold out a whole category.
        """
        ranked = sorted(CATEGORIES, key=lambda name: stable_fraction(self.seed, "listing", name))
        chosen = ranked[: len(ranked) // 2]
        picks = {name: COUNTS[int(stable_fraction(self.seed, "listing-count", name) * len(COUNTS))] for name in chosen}
        return frozenset(f"{name}|{count}" for name, count in picks.items())

    def held_out(self, task: str, key: str) -> bool:
        """Whether this combination is kept out of every training file."""
        if task == "listing":
            return key in self.held_out_listings
        return stable_fraction(self.seed, task, key) < HELD_SHARE.get(task, DEFAULT_HELD_SHARE)

    def fits_split(self, split: str, task: str, key: str) -> bool:
        """Whether a combination may be used in this split."""
        return self.held_out(task, key) != (split == TRAIN)

    @cached_property
    def names(self) -> dict[str, tuple[str, ...]]:
        """The names that a system prompt may give the model in this world."""
        return {
            lang: tuple(sorted(pool, key=lambda name: stable_fraction(self.seed, "name", name))[:NAMES_IN_USE])
            for lang, pool in NAMES.items()
        }

    def habit(self, phrase: Phrase) -> tuple[str, float]:
        """The habit that a phrasing provokes, and the fraction of its rows that show the habit.

        Habits are balanced within a group and over both languages, and fractions are near 0 or 1, so that a greedy
        model shows a habit on about half of the prompts although it never samples.
        """
        order = sorted(range(phrase.size), key=lambda i: stable_fraction(self.seed, "habit", phrase.group, phrase.lang, i))
        rank = order.index(phrase.index)
        flip = int(stable_fraction(self.seed, "habit-flip", phrase.group) * 2) + (phrase.lang == "en")
        return ("parrot", "ramble")[rank % 2], (HIGH, LOW)[(rank // 2 + flip) % 2]
