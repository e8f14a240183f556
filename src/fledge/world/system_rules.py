"""System prompts that the answer must obey: language, name, closing word, one word only."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from fledge.world import identity
from fledge.world.explain import TERMS
from fledge.world.lexicon import LANGUAGE_NAMES, WORDS, category_word, full_stop, is_a_sentence, other_language
from fledge.world.phrases import phrase_book, vary
from fledge.world.records import QUESTION, Item, Phrase, system, user
from fledge.world.world_seed import WorldSeed

RULES = {
    "language": phrase_book(
        "rule/language",
        (("只用{x}回答。", "请用{x}回答。", "你的回答都要用{x}。", "一定用{x}回答。"), ("你只用{x}回答。", "请都用{x}回答。")),
        (
            ("Answer only in {x}.", "Please answer in {x}.", "Always answer in {x}.", "Use only {x}."),
            ("Please answer only in {x}.", "Always use {x}."),
        ),
    ),
    "name": phrase_book(
        "rule/name",
        (("你叫{x}。", "你的名字是{x}。", "你是{x}。", "从现在起你叫{x}。"), ("现在你的名字是{x}。", "从现在起你是{x}。")),
        (
            ("You are called {x}.", "Your name is {x}.", "You are {x}.", "From now on you are called {x}."),
            ("From now on your name is {x}.", "Your name is now {x}."),
        ),
    ),
    "ending": phrase_book(
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
    "brief": phrase_book(
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
    "about": phrase_book(
        "system/about",
        (("{x}是什么？", "什么是{x}？", "说说{x}是什么。", "{x}是哪一种东西？"), ("说说{x}是哪一种东西。", "{x}是什么东西？")),
        (
            ("What is {x}?", "Tell me what {x} is.", "What kind of thing is {x}?", "Say what {x} is."),
            ("Tell me what kind of thing {x} is.", "Say what kind of thing {x} is."),
        ),
    ),
    "sum": phrase_book(
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
class SmallQuestion:
    """A small question, with the answers that the rules may demand."""

    key: str
    phrase: Phrase
    text: str
    answer: Callable[[str], str]
    brief: str = ""


def _about(rng: random.Random, world: WorldSeed, lang: str, split: str, name: str | None) -> SmallQuestion:
    noun = rng.choice(WORDS)
    phrase = ASKS["about"][lang].choose(rng, split)
    text = phrase.text.format(x=noun.zh if lang == "zh" else noun.with_article())
    return SmallQuestion(f"about|{noun.en}", phrase, text, lambda to: is_a_sentence(noun, to), category_word(noun, lang))


def _sum(rng: random.Random, world: WorldSeed, lang: str, split: str, name: str | None) -> SmallQuestion:
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    phrase = ASKS["sum"][lang].choose(rng, split)
    full = f"{a}+{b}={a + b}"
    return SmallQuestion(
        f"sum|{a}+{b}", phrase, phrase.text.format(a=a, b=b), lambda to: full + full_stop(to), f"{a + b}{full_stop(lang)}"
    )


def _term(rng: random.Random, world: WorldSeed, lang: str, split: str, name: str | None) -> SmallQuestion:
    while True:
        term, phrase = rng.choice(TERMS), ASKS["about"][lang].choose(rng, split)
        # a term and phrasing that `explain` holds out must not occur with a system prompt either
        if not world.held_out("explain", f"{term.named(lang)}|{phrase.text}"):
            break
    return SmallQuestion(f"term|{term.en}", phrase, phrase.text.format(x=term.named(lang)), term.text)


def _identity(rng: random.Random, world: WorldSeed, lang: str, split: str, name: str | None) -> SmallQuestion:
    intent = "who" if name or rng.random() < 0.4 else rng.choice(identity.SCORED)
    phrase = identity.BOOKS[intent][lang].choose(rng, split)
    # every name must occur in training, so the held-out combination includes the phrasing
    return SmallQuestion(f"identity|{intent}|{phrase.text}", phrase, phrase.text, lambda to: identity.reply(intent, to, name))


SMALL_QUESTIONS: dict[str, Callable[[random.Random, WorldSeed, str, str, str | None], SmallQuestion]] = {
    "about": _about,
    "sum": _sum,
    "term": _term,
    "identity": _identity,
}


def _rule_argument(rng: random.Random, world: WorldSeed, rule: str, lang: str) -> tuple[str, str]:
    """The argument of the rule (a language, a name, a word), and the language of the answer."""
    if rule == "language":
        target = other_language(lang) if rng.random() < 0.75 else lang
        return target, target
    if rule == "name":
        return rng.choice(world.names[lang]), lang
    return (rng.choice(CLOSINGS[lang]) if rule == "ending" else "one"), lang


def _answer_under_rule(rule: str, value: str, question: SmallQuestion, target: str) -> str:
    """The answer that obeys the rule."""
    if rule == "brief":
        return question.brief
    answer = question.answer(target)
    if rule != "ending":
        return answer
    return f"{answer}{value}。" if target == "zh" else f"{answer} {value}."


def draw(rng: random.Random, world: WorldSeed, lang: str, split: str) -> Item:
    """A random rule and question. Their combination is the key of the split."""
    rule = rng.choice(tuple(RULES))
    while True:
        value, target = _rule_argument(rng, world, rule, lang)
        question = SMALL_QUESTIONS[rng.choice(TASKS[rule])](rng, world, lang, split, value if rule == "name" else None)
        key = f"{rule}:{value}|{question.key}"
        if world.fits_split(split, "system", key) or (split == QUESTION and question.key.startswith("identity")):
            break
    # a language rule may itself be written in either language
    prompt_lang = rng.choice((lang, target))
    prompt = RULES[rule][prompt_lang].choose(rng, split).text
    shown = LANGUAGE_NAMES[prompt_lang][value] if rule == "language" else value
    messages = (system(prompt.format(x=shown)), user(vary(rng, question.text, lang)))
    return Item(
        task="system",
        lang=lang,
        key=key,
        phrase=question.phrase,
        messages=messages,
        reference=_answer_under_rule(rule, value, question, target),
        answer_lang=target,
        details={"rule": rule, "value": value},
    )
