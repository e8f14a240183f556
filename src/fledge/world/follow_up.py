"""Second questions that make sense only after the first question and its answer."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from fledge.world import listing
from fledge.world.lexicon import CATEGORIES, ORDINALS, WORDS, Noun, full_stop, is_a_sentence, other_language
from fledge.world.phrases import phrase_book, vary
from fledge.world.records import TRAIN, Item, assistant, user
from fledge.world.world_seed import WorldSeed

KIND_FIRST = {"zh": ("{x}是什么？", "什么是{x}？"), "en": ("What is {x}?", "Tell me what {x} is.")}
WORD_FIRST = {
    "zh": ("“{x}”用英文怎么说？", "“{x}”的英文是什么？"),
    "en": ('How do you say "{x}" in Chinese?', 'What is "{x}" in Chinese?'),
}
SUM_FIRST = {"zh": ("{a}{op}{b}等于多少？", "{a}{op}{b}是多少？"), "en": ("What is {a}{op}{b}?", "How much is {a}{op}{b}?")}

BOOKS = {
    "next": phrase_book(
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
    "sum": phrase_book(
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
    "ordinal": phrase_book(
        "follow_up/ordinal",
        (("{k}是什么？", "{k}是哪个？", "你说的{k}是什么？", "{k}呢？"), ("那{k}是什么？", "你说的{k}是哪个？")),
        (
            ("What is the {k} one?", "Which is the {k} one?", "What was the {k}?", "And the {k} one?"),
            ("Which was the {k} one?", "And what is the {k} one?"),
        ),
    ),
    "back": phrase_book(
        "follow_up/back",
        (("那用英文怎么说？", "英文怎么说？", "它的英文是什么？", "用英文呢？"), ("那它的英文怎么说？", "那它用英文怎么说？")),
        (
            ("How do you say it in Chinese?", "And in Chinese?", "What is it in Chinese?", "What about in Chinese?"),
            ("And how do you say it in Chinese?", "And what is it in Chinese?"),
        ),
    ),
}
WORDS_FOR = {("+", "zh"): "加", ("-", "zh"): "减", ("+", "en"): "plus", ("-", "en"): "minus"}


@dataclass(frozen=True, kw_only=True)
class FollowUp:
    """The content of a two-turn conversation: the first exchange, the blanks of the second question, and its answer."""

    key: str
    first: str
    first_answer: str
    phrase_book: str
    blanks: dict[str, str]
    answer: str
    answer_lang: str


def _in_question(noun: Noun, lang: str) -> str:
    return noun.zh if lang == "zh" else noun.with_article()


def _kind(rng: random.Random, world: WorldSeed, lang: str) -> FollowUp:
    """`What is an apple?` … `And a cat?`"""
    one, two = rng.sample(WORDS, 2)
    first = rng.choice(KIND_FIRST[lang]).format(x=_in_question(one, lang))
    return FollowUp(
        key=f"kind|{one.en}|{two.en}",
        first=first,
        first_answer=is_a_sentence(one, lang),
        phrase_book="next",
        blanks={"x": _in_question(two, lang)},
        answer=is_a_sentence(two, lang),
        answer_lang=lang,
    )


def _word(rng: random.Random, world: WorldSeed, lang: str) -> FollowUp:
    """`How do you say "apple" in Chinese?` … `And banana?`"""
    one, two = rng.sample(WORDS, 2)
    target = other_language(lang)
    first = rng.choice(WORD_FIRST[lang]).format(x=one.named(lang))
    return FollowUp(
        key=f"word|{one.en}|{two.en}",
        first=first,
        first_answer=one.named(target) + full_stop(target),
        phrase_book="next",
        blanks={"x": two.named(lang)},
        answer=two.named(target) + full_stop(target),
        answer_lang=target,
    )


def _sum(rng: random.Random, world: WorldSeed, lang: str) -> FollowUp:
    """`3+4?` … `plus 5?`: one-digit operands, so that no held-out two-digit pair can occur."""
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    total = a + b
    op = rng.choice("+-") if total > 1 else "+"
    c = rng.randint(1, min(9, total)) if op == "-" else rng.randint(1, 9)
    result = total + c if op == "+" else total - c
    first = rng.choice(SUM_FIRST[lang]).format(a=a, op="+", b=b)
    return FollowUp(
        key=f"sum|{a}|{b}|{op}{c}",
        first=first,
        first_answer=f"{a}+{b}={total}{full_stop(lang)}",
        phrase_book="sum",
        blanks={"word": WORDS_FOR[op, lang], "c": str(c)},
        answer=f"{total}{op}{c}={result}{full_stop(lang)}",
        answer_lang=lang,
    )


def _ordinal(rng: random.Random, world: WorldSeed, lang: str) -> FollowUp:
    """`Name three fruits.` … `What is the second one?`"""
    category, count = listing.combination(rng, world, TRAIN)
    start, position = rng.randrange(len(CATEGORIES[category].members)), rng.randrange(count)
    nouns = listing.consecutive_members(category, start, count)
    first = listing.fill_template(rng, rng.choice(listing.BOOK[lang].train), category, count, lang)
    return FollowUp(
        key=f"ordinal|{category}|{count}|{start}|{position}",
        first=first,
        first_answer=listing.list_answer(nouns, lang),
        phrase_book="ordinal",
        blanks={"k": ORDINALS[lang][position]},
        answer=nouns[position].named(lang) + full_stop(lang),
        answer_lang=lang,
    )


def _back(rng: random.Random, world: WorldSeed, lang: str) -> FollowUp:
    """`What is an apple?` … `How do you say it in Chinese?`"""
    noun, form = rng.choice(WORDS), rng.randrange(2)
    target = other_language(lang)
    first = KIND_FIRST[lang][form].format(x=_in_question(noun, lang))
    return FollowUp(
        key=f"back|{noun.en}|{form}",
        first=first,
        first_answer=is_a_sentence(noun, lang),
        phrase_book="back",
        blanks={},
        answer=noun.named(target) + full_stop(target),
        answer_lang=target,
    )


KINDS: tuple[Callable[[random.Random, WorldSeed, str], FollowUp], ...] = (_kind, _word, _sum, _ordinal, _back)


def draw(rng: random.Random, world: WorldSeed, lang: str, split: str) -> Item:
    """A random two-turn conversation. Only its last answer is scored."""
    kind = rng.choice(KINDS)
    while True:
        follow_up = kind(rng, world, lang)
        if world.fits_split(split, "follow_up", follow_up.key):
            break
    phrase = BOOKS[follow_up.phrase_book][lang].choose(rng, split)
    last = phrase.text.format(**follow_up.blanks)
    messages = (user(vary(rng, follow_up.first, lang)), assistant(follow_up.first_answer), user(last))
    return Item(
        task="follow_up",
        lang=lang,
        key=follow_up.key,
        phrase=phrase,
        messages=messages,
        reference=follow_up.answer,
        answer_lang=follow_up.answer_lang,
        details={"kind": follow_up.key.split("|")[0]},
    )
