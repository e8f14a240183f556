"""System prompts that must be obeyed: language, name, closing word, one word only."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from fledge.world import identity
from fledge.world.explain import TERMS
from fledge.world.lexicon import LANGUAGE_NAMES, WORDS, is_a, is_a_word, other, stop
from fledge.world.phrases import book, dress
from fledge.world.records import QUESTION, Item, Phrase, system, user
from fledge.world.seeded import Seeded

RULES = {
    "language": book(
        "rule/language",
        (("只用{x}回答。", "请用{x}回答。", "你的回答都要用{x}。", "一定用{x}回答。"), ("你只用{x}回答。", "请都用{x}回答。")),
        (
            ("Answer only in {x}.", "Please answer in {x}.", "Always answer in {x}.", "Use only {x}."),
            ("Please answer only in {x}.", "Always use {x}."),
        ),
    ),
    "name": book(
        "rule/name",
        (("你叫{x}。", "你的名字是{x}。", "你是{x}。", "从现在起你叫{x}。"), ("现在你的名字是{x}。", "从现在起你是{x}。")),
        (
            ("You are called {x}.", "Your name is {x}.", "You are {x}.", "From now on you are called {x}."),
            ("From now on your name is {x}.", "Your name is now {x}."),
        ),
    ),
    "ending": book(
        "rule/ending",
        (
            ("每个回答以“{x}”结尾。", "回答最后要说“{x}”。", "请用“{x}”结尾。", "每次最后说“{x}”。"),
            ("每次回答以“{x}”结尾。", "每个回答最后要说“{x}”。"),
        ),
        (
            (
                'End each answer with "{x}".',
                'Say "{x}" at the end.',
                'Always end with "{x}".',
                'Finish each answer with "{x}".',
            ),
            ('Always say "{x}" at the end.', 'Please end each answer with "{x}".'),
        ),
    ),
    "brief": book(
        "rule/brief",
        (
            ("只用一个词回答。", "请用一个词回答。", "回答只要一个词。", "一个词就够了。"),
            ("你只用一个词回答。", "请只用一个词回答。"),
        ),
        (
            ("Answer in one word.", "Use only one word.", "One word is enough.", "Please answer in one word."),
            ("Answer with only one word.", "Please use only one word."),
        ),
    ),
}
ASKS = {
    "about": book(
        "system/about",
        (("{x}是什么？", "什么是{x}？", "说说{x}是什么。", "{x}是哪一种东西？"), ("说说{x}是哪一种东西。", "{x}是什么东西？")),
        (
            ("What is {x}?", "Tell me what {x} is.", "What kind of thing is {x}?", "Say what {x} is."),
            ("Tell me what kind of thing {x} is.", "Say what kind of thing {x} is."),
        ),
    ),
    "sum": book(
        "system/sum",
        (
            ("{a}+{b}等于多少？", "{a}+{b}=？", "计算{a}+{b}。", "{a}+{b}是多少？"),
            ("计算{a}+{b}等于多少。", "说说{a}+{b}是多少。"),
        ),
        (
            ("What is {a}+{b}?", "{a}+{b}=?", "Calculate {a}+{b}.", "How much is {a}+{b}?"),
            ("Tell me what {a}+{b} is.", "Say how much {a}+{b} is."),
        ),
    ),
}
CLOSINGS = {"zh": ("喵", "完毕", "加油", "谢谢"), "en": ("Meow", "Over", "Cheers", "Thanks")}
TASKS = {
    "language": ("about", "term", "identity"),
    "name": ("identity", "identity", "about"),
    "ending": ("about", "sum", "term"),
    "brief": ("about", "sum"),
}


@dataclass(frozen=True)
class Asked:
    """A small question with the answers the rules may call for."""

    key: str
    phrase: Phrase
    text: str
    answer: Callable[[str], str]
    brief: str = ""


def _about(rng: random.Random, world: Seeded, lang: str, part: str, name: str | None) -> Asked:
    noun = rng.choice(WORDS)
    phrase = ASKS["about"][lang].choose(rng, part)
    text = phrase.text.format(x=noun.zh if lang == "zh" else noun.with_article())
    return Asked(f"about|{noun.en}", phrase, text, lambda to: is_a(noun, to), is_a_word(noun, lang))


def _sum(rng: random.Random, world: Seeded, lang: str, part: str, name: str | None) -> Asked:
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    phrase = ASKS["sum"][lang].choose(rng, part)
    full = f"{a}+{b}={a + b}"
    return Asked(f"sum|{a}+{b}", phrase, phrase.text.format(a=a, b=b), lambda to: full + stop(to), f"{a + b}{stop(lang)}")


def _term(rng: random.Random, world: Seeded, lang: str, part: str, name: str | None) -> Asked:
    while True:
        term, phrase = rng.choice(TERMS), ASKS["about"][lang].choose(rng, part)
        # a term and phrasing that `explain` holds out must not come back under a system prompt
        if not world.held("explain", f"{term.named(lang)}|{phrase.text}"):
            break
    return Asked(f"term|{term.en}", phrase, phrase.text.format(x=term.named(lang)), term.text)


def _identity(rng: random.Random, world: Seeded, lang: str, part: str, name: str | None) -> Asked:
    intent = "who" if name or rng.random() < 0.4 else rng.choice(identity.SCORED)
    phrase = identity.BOOKS[intent][lang].choose(rng, part)
    # every name must be seen, so the phrasing is part of what is held out
    return Asked(f"identity|{intent}|{phrase.text}", phrase, phrase.text, lambda to: identity.reply(intent, to, name))


SMALL: dict[str, Callable[[random.Random, Seeded, str, str, str | None], Asked]] = {
    "about": _about,
    "sum": _sum,
    "term": _term,
    "identity": _identity,
}


def _ruled(rng: random.Random, world: Seeded, rule: str, lang: str) -> tuple[str, str]:
    """What the rule is about (a language, a name, a word) and the language of the answer."""
    if rule == "language":
        target = other(lang) if rng.random() < 0.75 else lang
        return target, target
    if rule == "name":
        return rng.choice(world.names[lang]), lang
    return (rng.choice(CLOSINGS[lang]) if rule == "ending" else "one"), lang


def _obeyed(rule: str, value: str, asked: Asked, target: str) -> str:
    """The answer under the rule."""
    if rule == "brief":
        return asked.brief
    answer = asked.answer(target)
    if rule != "ending":
        return answer
    return f"{answer}{value}。" if target == "zh" else f"{answer} {value}."


def draw(rng: random.Random, world: Seeded, lang: str, part: str) -> Item:
    """A rule and a question; the combination of the two is what is held out."""
    rule = rng.choice(tuple(RULES))
    while True:
        value, target = _ruled(rng, world, rule, lang)
        asked = SMALL[rng.choice(TASKS[rule])](rng, world, lang, part, value if rule == "name" else None)
        key = f"{rule}:{value}|{asked.key}"
        if world.fits(part, "system", key) or (part == QUESTION and asked.key.startswith("identity")):
            break
    # a language rule may itself be written in either language
    prompt_lang = rng.choice((lang, target))
    prompt = RULES[rule][prompt_lang].choose(rng, part).text
    shown = LANGUAGE_NAMES[prompt_lang][value] if rule == "language" else value
    messages = (system(prompt.format(x=shown)), user(dress(rng, asked.text, lang)))
    return Item(
        "system",
        lang,
        key,
        asked.phrase,
        messages,
        _obeyed(rule, value, asked, target),
        target,
        details={"rule": rule, "value": value},
    )
