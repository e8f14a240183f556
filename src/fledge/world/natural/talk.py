"""Small talk: greetings, thanks, goodbyes, praise, names."""

import random

from fledge.world.natural.grammar import as_typed, choose_sentence, expand, fill, read_yaml
from fledge.world.natural.requests import Exchange

INTENTS = {  # of small talk, with their weights
    "greeting": 24, "goodbye": 14, "good_night": 4, "thanks": 12, "how_are_you": 12, "praise": 12, "acknowledge": 10,
    "sorry": 3, "wrong": 5, "name_unknown": 4,
}  # fmt: skip
SHORT_SHARE = 0.4  # of what people say is one of the few usual words


def name(rng: random.Random, lang: str) -> str:
    """A name of a person, so varied that it has to be copied."""
    words, roll = read_yaml("words.yaml"), rng.random()
    surnames, given, first_names = words["surnames"], words["given"], words["first_names"].split()
    if lang == "zh":
        if roll < 0.4:
            return rng.choice(words["pet_names"]) + rng.choice(given + surnames)
        if roll < 0.9:
            return rng.choice(surnames) + "".join(rng.sample(given, rng.randint(1, 2)))
        return rng.choice(first_names)
    if roll < 0.6:
        return rng.choice(first_names)
    return "".join(rng.sample(words["syllables"].split(), rng.randint(2, 3))).capitalize()


def say(rng: random.Random, intent: str, lang: str, own_name: str = "") -> Exchange:
    """One thing that people say, with its answer."""
    entry = read_yaml(f"talk.{lang}.yaml")[intent]
    blanks = {"name": own_name}
    is_short = rng.random() < SHORT_SHARE
    pattern = expand(rng, entry["short"]) if is_short else choose_sentence(rng, f"talk.{lang}.yaml", intent)
    sentence = fill(pattern, blanks)
    question = as_typed(rng, sentence, lang, may_add=intent.startswith("name"), keep=own_name)
    return Exchange(question, fill(entry["answer"], blanks), lang, intent, blanks)


def say_unknown(rng: random.Random, lang: str) -> Exchange:
    """A question for the name of a person who has not told it, asked as if it were known."""
    asked = say(rng, "name_asked", lang)
    return Exchange(asked.question, read_yaml(f"talk.{lang}.yaml")["name_unknown"]["answer"], lang, "name_unknown")


def draw_talk(rng: random.Random, lang: str) -> Exchange:
    """Something of small talk that needs no turn before it."""
    if rng.random() < 0.06:
        return say(rng, "name_given", lang, name(rng, lang))
    return say(rng, rng.choices(tuple(INTENTS), tuple(INTENTS.values()))[0], lang)
