"""Two-digit sums and differences, with working that a left-to-right reader can produce digit by digit."""

import random

from fledge.world.lexicon import full_stop
from fledge.world.phrases import phrase_book, vary
from fledge.world.records import Item, user
from fledge.world.world_seed import WorldSeed

BOOK = phrase_book(
    "arithmetic",
    (
        (
            "{a}{op}{b}等于多少？",
            "计算{a}{op}{b}。",
            "{a}{op}{b}=？",
            "请算一下{a}{op}{b}。",
            "{a}{op}{b}是多少？",
            "{a}{word}{b}等于多少？",
            "{a}{op}{b}的结果是多少？",
            "{a}{word}{b}是多少？",
        ),
        ("请计算{a}{op}{b}的结果。", "请算一下{a}{op}{b}是多少。"),
    ),
    (
        (
            "What is {a}{op}{b}?",
            "Calculate {a}{op}{b}.",
            "{a}{op}{b}=?",
            "Please work out {a}{op}{b}.",
            "How much is {a}{op}{b}?",
            "What is {a} {word} {b}?",
            "What is the result of {a}{op}{b}?",
            "How much is {a} {word} {b}?",
        ),
        ("Please calculate {a}{op}{b}.", "Work out how much {a}{op}{b} is."),
    ),
)
WORDS = {("+", "zh"): "加", ("-", "zh"): "减", ("+", "en"): "plus", ("-", "en"): "minus"}
ADD_SHARE = 0.55


def pair_key(a: int, b: int) -> str:
    """The key of two operands, independent of their order: holding out 37+48 also holds out 48+37 and 48-37."""
    return f"{min(a, b)}|{max(a, b)}"


def steps(a: int, op: str, b: int) -> list[str]:
    """The working: ones first, then tens with the carry or the borrow written out."""
    (tens_a, ones_a), (tens_b, ones_b) = divmod(a, 10), divmod(b, 10)
    if op == "+":
        carry = (ones_a + ones_b) // 10
        tens = tens_a + tens_b + carry
        return [f"{ones_a}+{ones_b}={ones_a + ones_b}", f"{tens_a}+{tens_b}{'+1' * carry}={tens}"]
    borrow = int(ones_a < ones_b)
    ones = ones_a + 10 * borrow
    return [f"{ones}-{ones_b}={ones - ones_b}", f"{tens_a}-{tens_b}{'-1' * borrow}={tens_a - tens_b - borrow}"]


def working(a: int, op: str, b: int, lang: str) -> str:
    """The whole answer: `7+8=15，3+4+1=8，得85。` / `7+8=15, 3+4+1=8, so 85.`"""
    result = a + b if op == "+" else a - b
    lines = [*steps(a, op, b), f"得{result}" if lang == "zh" else f"so {result}"]
    return ("，" if lang == "zh" else ", ").join(lines) + full_stop(lang)


def operands(rng: random.Random, world: WorldSeed, split: str) -> tuple[int, str, int]:
    """Two two-digit numbers of the split, and an operation."""
    while True:
        a, b = rng.randint(10, 99), rng.randint(10, 99)
        if world.fits_split(split, "arithmetic", pair_key(a, b)):
            break
    if rng.random() < ADD_SHARE:
        return a, "+", b
    return max(a, b), "-", min(a, b)


def draw(rng: random.Random, world: WorldSeed, lang: str, split: str) -> Item:
    """A random sum or difference."""
    a, op, b = operands(rng, world, split)
    phrase = BOOK[lang].choose(rng, split)
    text = vary(rng, phrase.text.format(a=a, b=b, op=op, word=WORDS[op, lang]), lang)
    return Item(
        task="arithmetic",
        lang=lang,
        key=pair_key(a, b),
        phrase=phrase,
        messages=(user(text),),
        reference=working(a, op, b, lang),
        answer_lang=lang,
        details={"a": a, "op": op, "b": b},
    )
