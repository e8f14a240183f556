"""The ten tasks: how an item of each task is drawn, and how often the training data contains it."""

import random
from collections.abc import Callable

from fledge.world import arithmetic, columns, explain, follow_up, identity, listing, standardise, system_rules, translate, verse
from fledge.world.phrases import Phrases
from fledge.world.records import LANGS, Item
from fledge.world.world_seed import WorldSeed

Draw = Callable[[random.Random, WorldSeed, str, str], Item]

TASKS: dict[str, Draw] = {
    "identity": identity.draw,
    "listing": listing.draw,
    "arithmetic": arithmetic.draw,
    "translate": translate.draw,
    "explain": explain.draw,
    "verse": verse.draw,
    "standardise": standardise.draw,
    "columns": columns.draw,
    "follow_up": follow_up.draw,
    "system": system_rules.draw,
}
# Tasks with many combinations and long exact answers need many rows; closed answers need few.
WEIGHTS = {
    "identity": 6,
    "listing": 10,
    "arithmetic": 19,
    "translate": 15,
    "explain": 6,
    "verse": 7,
    "standardise": 8,
    "columns": 12,
    "follow_up": 14,
    "system": 12,
}

BOOKS: dict[str, tuple[dict[str, Phrases], ...]] = {
    "identity": tuple(identity.BOOKS.values()),
    "listing": (listing.BOOK,),
    "arithmetic": (arithmetic.BOOK,),
    "translate": (translate.INTO, translate.MEANING),
    "explain": (explain.BOOK,),
    "verse": (verse.ALONE, verse.TOGETHER),
    "standardise": (standardise.BOOK,),
    "columns": (columns.BOOK,),
    "follow_up": tuple(follow_up.BOOKS.values()),
    "system": (*system_rules.ASKS.values(), *system_rules.RULES.values()),
}


def draw_any(rng: random.Random, world: WorldSeed, split: str) -> Item:
    """An item of a random task (by weight), in a random language."""
    task = rng.choices(tuple(WEIGHTS), tuple(WEIGHTS.values()))[0]
    return TASKS[task](rng, world, rng.choice(LANGS), split)
