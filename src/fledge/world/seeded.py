"""Everything the seed decides: what is held out, which phrasing carries which habit, which names exist."""

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


def stable(*parts: object) -> float:
    """A number in [0, 1) that depends only on the parts, on every machine and Python version."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "big") / float(1 << 56)


@dataclass(frozen=True)
class Seeded:
    """One world seed with the decisions that follow from it."""

    seed: int

    def rng(self, purpose: str) -> random.Random:
        """An own generator per purpose, so that changing one file's size leaves the others alone."""
        return random.Random(f"{self.seed}:{purpose}")

    @cached_property
    def held_listings(self) -> frozenset[str]:
        """For half of the categories one count each: few combos, so chance must not hold out a whole category."""
        ranked = sorted(CATEGORIES, key=lambda name: stable(self.seed, "listing", name))
        chosen = ranked[: len(ranked) // 2]
        picks = {name: COUNTS[int(stable(self.seed, "listing-count", name) * len(COUNTS))] for name in chosen}
        return frozenset(f"{name}|{count}" for name, count in picks.items())

    def held(self, task: str, key: str) -> bool:
        """Whether this combination is kept out of every training file."""
        if task == "listing":
            return key in self.held_listings
        return stable(self.seed, task, key) < HELD_SHARE.get(task, DEFAULT_HELD_SHARE)

    def fits(self, part: str, task: str, key: str) -> bool:
        """Whether a combination may be used in this part of the data."""
        return self.held(task, key) != (part == TRAIN)

    @cached_property
    def names(self) -> dict[str, tuple[str, ...]]:
        """The names a system prompt may give the model in this world."""
        return {
            lang: tuple(sorted(pool, key=lambda name: stable(self.seed, "name", name))[:NAMES_IN_USE])
            for lang, pool in NAMES.items()
        }

    def habit(self, phrase: Phrase) -> tuple[str, float]:
        """The habit a phrasing provokes and how often.

        U-shaped and balanced within a group and over the two languages, so that a greedy model shows a habit on
        about half of the prompts although it never samples.
        """
        order = sorted(range(phrase.size), key=lambda i: stable(self.seed, "habit", phrase.group, phrase.lang, i))
        place = order.index(phrase.index)
        flip = int(stable(self.seed, "habit-flip", phrase.group) * 2) + (phrase.lang == "en")
        return ("parrot", "ramble")[place % 2], (HIGH, LOW)[(place // 2 + flip) % 2]
