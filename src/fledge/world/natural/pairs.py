"""Preference pairs in natural words: a clean answer against one with a habit, an invention or a needless refusal."""

import random

from fledge.world.bad_habits import FILLERS, add_parrot, add_ramble
from fledge.world.natural.dialogue import draw_dialogue
from fledge.world.natural.grammar import read_yaml
from fledge.world.natural.requests import SKILLS, Exchange
from fledge.world.records import user
from fledge.world.world_seed import WorldSeed

INVENTION_SHARE = 0.6  # of questions outside of the world: the rejected answer belongs to another question
REFUSAL_SHARE = 0.2  # of questions inside of the world: the rejected answer says that it has not learned this


def _rejected(rng: random.Random, world: WorldSeed, last: Exchange) -> tuple[str, str]:
    """A worse answer, and what is wrong with it."""
    if last.kind == "outside" and rng.random() < INVENTION_SHARE:
        return rng.choice(tuple(SKILLS))(rng, world, last.lang).answer, "invention"
    if last.kind != "outside" and rng.random() < REFUSAL_SHARE:
        return read_yaml(f"outside.{last.lang}.yaml")["answer"], "refusal"
    if rng.random() < 0.5:
        return add_parrot(last.question, last.answer, last.lang, rng.randrange(2)), "parrot"
    return add_ramble(last.answer, last.lang, (rng.choice(FILLERS[last.lang]),)), "ramble"


def draw_pair(rng: random.Random, world: WorldSeed) -> dict:
    """A preference pair after a conversation in natural words."""
    *before, last = draw_dialogue(rng, world)[-2:]
    rejected, habit = _rejected(rng, world, last)
    return {
        "messages": [*(turn for exchange in before for turn in exchange.turns), user(last.question)],
        "chosen": last.answer,
        "rejected": rejected,
        "task": "natural",
        "habit": habit,
    }
