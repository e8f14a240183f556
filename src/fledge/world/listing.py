"""Questions that ask for N members of a category."""

import random

from fledge.world.lexicon import CATEGORIES, COUNTS, NUMBERS_EN, NUMBERS_ZH, Noun
from fledge.world.phrases import phrase_book, vary
from fledge.world.records import Item, user
from fledge.world.world_seed import WorldSeed

BOOK = phrase_book(
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


def consecutive_members(category: str, start: int, count: int) -> list[Noun]:
    """Members in a fixed circular order: the first member determines the list, so that few rows teach it."""
    members = CATEGORIES[category].members
    return [members[(start + i) % len(members)] for i in range(count)]


def list_answer(nouns: list[Noun], lang: str) -> str:
    """The list as an answer."""
    names = [noun.named(lang) for noun in nouns]
    return "、".join(names) + "。" if lang == "zh" else ", ".join(names) + "."


def fill_template(rng: random.Random, template: str, category: str, count: int, lang: str) -> str:
    """A template filled with the category and the count, as a word or as a digit."""
    words = NUMBERS_ZH if lang == "zh" else NUMBERS_EN
    number = str(count) if rng.random() < DIGIT_SHARE else words[count]
    kind = CATEGORIES[category]
    return template.format(n=number, c=kind.zh if lang == "zh" else kind.plural)


def combination(rng: random.Random, world: WorldSeed, split: str) -> tuple[str, int]:
    """A random category and count of the split."""
    while True:
        category, count = rng.choice(tuple(CATEGORIES)), rng.choice(COUNTS)
        if world.fits_split(split, "listing", f"{category}|{count}"):
            return category, count


def draw(rng: random.Random, world: WorldSeed, lang: str, split: str) -> Item:
    """A random listing question. Its rule accepts any correct list."""
    category, count = combination(rng, world, split)
    phrase = BOOK[lang].choose(rng, split)
    start = rng.randrange(len(CATEGORIES[category].members))
    text = vary(rng, fill_template(rng, phrase.text, category, count, lang), lang)
    return Item(
        task="listing",
        lang=lang,
        key=f"{category}|{count}",
        phrase=phrase,
        messages=(user(text),),
        reference=list_answer(consecutive_members(category, start, count), lang),
        answer_lang=lang,
        rule="listing",
        details={"category": category, "n": count},
    )


def is_correct_list(answer: str, category: str, count: int, lang: str) -> bool:
    """Whether the whole answer is a list of exactly `count` different members in the right form."""
    mark, separator = ("。", "、") if lang == "zh" else (".", ", ")
    if not answer.endswith(mark):
        return False
    names = answer[: -len(mark)].split(separator)
    members = {noun.named(lang) for noun in CATEGORIES[category].members}
    return len(names) == count == len(set(names)) and set(names) <= members
