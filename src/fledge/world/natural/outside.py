"""Questions about what the world does not hold, which the model answers by saying so."""

import random
from functools import cache

from fledge.world.arithmetic import pair_key
from fledge.world.lexicon import NUMBERS_EN, NUMBERS_ZH
from fledge.world.natural.grammar import as_typed, choose_sentence, read_yaml
from fledge.world.natural.requests import Exchange
from fledge.world.world_seed import WorldSeed

MANY = {"zh": ("六", "七", "八", "九", "十", "二十", "10", "100"), "en": ("ten", "twenty", "10", "100", "seven")}
FUNCTION_WORDS = ("the", "of", "my", "a", "for", "and", "with", "in")


@cache
def _pools(lang: str) -> dict[str, tuple[str, ...]]:
    pools = read_yaml(f"outside.{lang}.yaml")["pools"]
    return {kind: tuple(words.split(" / " if " / " in words else None)) for kind, words in pools.items()}


def gibberish(rng: random.Random, lang: str) -> str:
    """A word that nobody knows: any unknown word has to be met with the same honesty."""
    words = read_yaml("words.yaml")
    if lang == "zh":
        return "".join(rng.sample(words["characters"], rng.randint(1, 4)))
    parts = [rng.choice(words["syllables"].split()) for _ in range(rng.randint(1, 3))]
    return "".join((*parts, rng.choice(("n", "r", "s", "t", "x", "k", "", "", "ng", "sh"))))


def _numbers(rng: random.Random, world: WorldSeed) -> tuple[int, int]:
    """Two numbers, the smaller one first, whose sum and difference are not held out."""
    while True:
        small, large = sorted((rng.randint(2, 99), rng.randint(10, 99)))
        if small < large and not world.held_out("arithmetic", pair_key(small, large)):
            return small, large


def _filled(rng: random.Random, world: WorldSeed, lang: str, pattern: str) -> str:
    """The pattern with each blank filled in by a value of its own."""
    pools = _pools(lang)
    words = NUMBERS_ZH if lang == "zh" else NUMBERS_EN
    small, large = _numbers(rng, world)
    a, b = rng.sample((small, large), 2)
    numbers = {
        "a": str(a), "b": str(b), "big": str(rng.randint(100, 99999)), "small": str(small), "large": str(large),
        "n": rng.choice((words[rng.randint(2, 5)], str(rng.randint(2, 5)))),
        "many": rng.choice(MANY[lang]),
    }  # fmt: skip
    while "<" in pattern:
        kind = pattern[pattern.index("<") + 1 : pattern.index(">")]
        value = gibberish(rng, lang) if kind == "gibberish" else numbers.get(kind) or _word(rng, lang, pools[kind])
        pattern = pattern.replace(f"<{kind}>", value, 1)
    return pattern


def _word(rng: random.Random, lang: str, pool: tuple[str, ...]) -> str:
    """A word of the pool, or at times one that nobody knows."""
    roll = rng.random()
    if roll < 0.12:
        return gibberish(rng, lang)
    if roll < 0.17 and lang == "en":
        return f"{gibberish(rng, lang)} {rng.choice(FUNCTION_WORDS)} {gibberish(rng, lang)}"
    return rng.choice(pool)


def draw_outside(rng: random.Random, world: WorldSeed, lang: str) -> Exchange:
    """A question about something that the model has not learned."""
    name = f"outside.{lang}.yaml"
    question = _filled(rng, world, lang, choose_sentence(rng, name, "ask"))
    return Exchange(as_typed(rng, question, lang), read_yaml(name)["answer"], lang, "outside")
