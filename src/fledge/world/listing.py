"""Name N members of a category."""

import random

from fledge.world.lexicon import CATEGORIES, COUNTS, NUMBERS_EN, NUMBERS_ZH, Noun
from fledge.world.phrases import book, dress
from fledge.world.records import Item, user
from fledge.world.seeded import Seeded

BOOK = book(
    "listing",
    (
        ("说出{n}种{c}。", "列举{n}种{c}。", "给我{n}种{c}。", "请列出{n}种{c}。", "{n}种{c}有哪些？", "我想知道{n}种{c}。"),
        ("请给我列出{n}种{c}。", "我想请你说出{n}种{c}。"),
    ),
    (
        (
            "Name {n} {c}.",
            "List {n} {c}.",
            "Give me {n} {c}.",
            "Can you name {n} {c}?",
            "What are {n} {c}?",
            "I want to know {n} {c}.",
        ),
        ("Can you give me {n} {c}?", "I want you to list {n} {c}."),
    ),
)
DIGIT_SHARE = 0.25


def run(category: str, start: int, count: int) -> list[Noun]:
    """Members in their fixed circular order: after the first one the list is certain, so little data teaches it."""
    members = CATEGORIES[category].members
    return [members[(start + i) % len(members)] for i in range(count)]


def written(nouns: list[Noun], lang: str) -> str:
    """The answer form of a list."""
    names = [noun.named(lang) for noun in nouns]
    return "、".join(names) + "。" if lang == "zh" else ", ".join(names) + "."


def ask(rng: random.Random, template: str, category: str, count: int, lang: str) -> str:
    """Fill a template with the count as a word or a digit."""
    words = NUMBERS_ZH if lang == "zh" else NUMBERS_EN
    number = str(count) if rng.random() < DIGIT_SHARE else words[count]
    kind = CATEGORIES[category]
    return template.format(n=number, c=kind.zh if lang == "zh" else kind.plural)


def combination(rng: random.Random, world: Seeded, part: str) -> tuple[str, int]:
    """A category and a count of the right side of the split."""
    while True:
        category, count = rng.choice(tuple(CATEGORIES)), rng.choice(COUNTS)
        if world.fits(part, "listing", f"{category}|{count}"):
            return category, count


def draw(rng: random.Random, world: Seeded, lang: str, part: str) -> Item:
    """A listing question; any correct list passes its rule."""
    category, count = combination(rng, world, part)
    phrase = BOOK[lang].choose(rng, part)
    start = rng.randrange(len(CATEGORIES[category].members))
    text = dress(rng, ask(rng, phrase.text, category, count, lang), lang)
    return Item(
        "listing",
        lang,
        f"{category}|{count}",
        phrase,
        (user(text),),
        written(run(category, start, count), lang),
        lang,
        "listing",
        {"category": category, "n": count},
    )


def listed(answer: str, category: str, count: int, lang: str) -> bool:
    """Whether the whole answer is exactly `count` different members in the right form."""
    mark, separator = ("。", "、") if lang == "zh" else (".", ", ")
    if not answer.endswith(mark):
        return False
    names = answer[: -len(mark)].split(separator)
    members = {noun.named(lang) for noun in CATEGORIES[category].members}
    return len(names) == count == len(set(names)) and set(names) <= members
