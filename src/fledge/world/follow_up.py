"""Second questions that make sense only after the first."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from fledge.world import listing
from fledge.world.lexicon import CATEGORIES, ORDINALS, WORDS, Noun, is_a, other, stop
from fledge.world.phrases import book, dress
from fledge.world.records import TRAIN, Item, assistant, user
from fledge.world.seeded import Seeded

KIND_FIRST = {"zh": ("{x}是什么？", "什么是{x}？"), "en": ("What is {x}?", "Tell me what {x} is.")}
WORD_FIRST = {
    "zh": ("“{x}”用英文怎么说？", "“{x}”的英文是什么？"),
    "en": ('How do you say "{x}" in Chinese?', 'What is "{x}" in Chinese?'),
}
SUM_FIRST = {"zh": ("{a}{op}{b}等于多少？", "{a}{op}{b}是多少？"), "en": ("What is {a}{op}{b}?", "How much is {a}{op}{b}?")}

BOOKS = {
    "next": book(
        "follow_up/next",
        (
            ("那{x}呢？", "{x}呢？", "那么{x}呢？", "换成{x}呢？", "还有{x}呢？", "要是{x}呢？"),
            ("那么换成{x}呢？", "那要是{x}呢？"),
        ),
        (
            ("And {x}?", "What about {x}?", "How about {x}?", "Now {x}?", "And what about {x}?", "Then {x}?"),
            ("And how about {x}?", "Now what about {x}?"),
        ),
    ),
    "sum": book(
        "follow_up/sum",
        (
            ("再{word}{c}呢？", "那再{word}{c}呢？", "再{word}{c}等于多少？", "然后{word}{c}呢？"),
            ("然后再{word}{c}呢？", "那再{word}{c}等于多少？"),
        ),
        (
            ("And {word} {c}?", "Now {word} {c}?", "What about {word} {c}?", "Then {word} {c}?"),
            ("And then {word} {c}?", "Now what about {word} {c}?"),
        ),
    ),
    "ordinal": book(
        "follow_up/ordinal",
        (("{k}是什么？", "{k}是哪个？", "你说的{k}是什么？", "{k}呢？"), ("那{k}是什么？", "你说的{k}是哪个？")),
        (
            ("What is the {k} one?", "Which is the {k} one?", "What was the {k}?", "And the {k} one?"),
            ("Which was the {k} one?", "And what is the {k} one?"),
        ),
    ),
    "back": book(
        "follow_up/back",
        (("那用英文怎么说？", "英文怎么说？", "它的英文是什么？", "用英文呢？"), ("那它的英文怎么说？", "那它用英文怎么说？")),
        (
            ("How do you say it in Chinese?", "And in Chinese?", "What is it in Chinese?", "What about in Chinese?"),
            ("And how do you say it in Chinese?", "And what is it in Chinese?"),
        ),
    ),
}
WORDS_FOR = {("+", "zh"): "加", ("-", "zh"): "减", ("+", "en"): "plus", ("-", "en"): "minus"}


@dataclass(frozen=True)
class Turns:
    """What a kind of follow-up fills in: the first exchange, the second question's blanks, the answer."""

    key: str
    first: str
    first_answer: str
    book: str
    blanks: dict[str, str]
    answer: str
    answer_lang: str


def _asked(noun: Noun, lang: str) -> str:
    return noun.zh if lang == "zh" else noun.with_article()


def _kind(rng: random.Random, world: Seeded, lang: str) -> Turns:
    """'What is an apple?' ... 'And a cat?'"""
    one, two = rng.sample(WORDS, 2)
    first = rng.choice(KIND_FIRST[lang]).format(x=_asked(one, lang))
    return Turns(f"kind|{one.en}|{two.en}", first, is_a(one, lang), "next", {"x": _asked(two, lang)}, is_a(two, lang), lang)


def _word(rng: random.Random, world: Seeded, lang: str) -> Turns:
    """'How do you say "apple" in Chinese?' ... 'And banana?'"""
    one, two = rng.sample(WORDS, 2)
    target = other(lang)
    first = rng.choice(WORD_FIRST[lang]).format(x=one.named(lang))
    return Turns(
        f"word|{one.en}|{two.en}",
        first,
        one.named(target) + stop(target),
        "next",
        {"x": two.named(lang)},
        two.named(target) + stop(target),
        target,
    )


def _sum(rng: random.Random, world: Seeded, lang: str) -> Turns:
    """'3+4?' ... 'plus 5?': one digit at a time, so no two-digit pair can leak."""
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    total = a + b
    op = rng.choice("+-") if total > 1 else "+"
    c = rng.randint(1, min(9, total)) if op == "-" else rng.randint(1, 9)
    result = total + c if op == "+" else total - c
    first = rng.choice(SUM_FIRST[lang]).format(a=a, op="+", b=b)
    return Turns(
        f"sum|{a}|{b}|{op}{c}",
        first,
        f"{a}+{b}={total}{stop(lang)}",
        "sum",
        {"word": WORDS_FOR[op, lang], "c": str(c)},
        f"{total}{op}{c}={result}{stop(lang)}",
        lang,
    )


def _ordinal(rng: random.Random, world: Seeded, lang: str) -> Turns:
    """'Name three fruits.' ... 'What is the second one?'"""
    category, count = listing.combination(rng, world, TRAIN)
    start, place = rng.randrange(len(CATEGORIES[category].members)), rng.randrange(count)
    nouns = listing.run(category, start, count)
    first = listing.ask(rng, rng.choice(listing.BOOK[lang].train), category, count, lang)
    return Turns(
        f"ordinal|{category}|{count}|{start}|{place}",
        first,
        listing.written(nouns, lang),
        "ordinal",
        {"k": ORDINALS[lang][place]},
        nouns[place].named(lang) + stop(lang),
        lang,
    )


def _back(rng: random.Random, world: Seeded, lang: str) -> Turns:
    """'What is an apple?' ... 'How do you say it in Chinese?'"""
    noun, place = rng.choice(WORDS), rng.randrange(2)
    target = other(lang)
    first = KIND_FIRST[lang][place].format(x=_asked(noun, lang))
    return Turns(f"back|{noun.en}|{place}", first, is_a(noun, lang), "back", {}, noun.named(target) + stop(target), target)


KINDS: tuple[Callable[[random.Random, Seeded, str], Turns], ...] = (_kind, _word, _sum, _ordinal, _back)


def draw(rng: random.Random, world: Seeded, lang: str, part: str) -> Item:
    """A two-turn conversation whose last answer counts."""
    kind = rng.choice(KINDS)
    while True:
        turns = kind(rng, world, lang)
        if world.fits(part, "follow_up", turns.key):
            break
    phrase = BOOKS[turns.book][lang].choose(rng, part)
    last = phrase.text.format(**turns.blanks)
    messages = (user(dress(rng, turns.first, lang)), assistant(turns.first_answer), user(last))
    return Item(
        "follow_up",
        lang,
        turns.key,
        phrase,
        messages,
        turns.answer,
        turns.answer_lang,
        details={"kind": turns.key.split("|")[0]},
    )
