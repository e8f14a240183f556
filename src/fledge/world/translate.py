"""Compositional translation in both directions over the closed vocabulary."""

import random
from dataclasses import dataclass

from fledge.world.lexicon import COLOUR, COUNTABLE, NUMBERS_EN, NUMBERS_ZH, SUBJECTS, VERBS, WORDS, full_stop, other_language
from fledge.world.phrases import phrase_book, vary
from fledge.world.records import TRAIN, Item, user
from fledge.world.world_seed import WorldSeed

INTO = phrase_book(  # the source is in the language of the question
    "translate/into",
    (
        (
            "把“{x}”翻译成英文。",
            "“{x}”用英文怎么说？",
            "翻译成英文：{x}",
            "“{x}”的英文是什么？",
            "请用英文说“{x}”。",
            "{x}，这句英文怎么说？",
        ),
        ("请把“{x}”翻译成英文。", "请翻译成英文：{x}", "“{x}”翻译成英文怎么说？"),
    ),
    (
        (
            'Translate "{x}" into Chinese.',
            'How do you say "{x}" in Chinese?',
            "Into Chinese: {x}",
            'What is "{x}" in Chinese?',
            'Please say "{x}" in Chinese.',
            'What is the Chinese for "{x}"?',
        ),
        ('Please translate "{x}" into Chinese.', 'How do you translate "{x}" into Chinese?', "Translate into Chinese: {x}"),
    ),
)
MEANING = phrase_book(  # the source is in the other language
    "translate/meaning",
    (
        ("“{x}”是什么意思？", "把“{x}”翻译成中文。", "“{x}”用中文怎么说？", "翻译成中文：{x}"),
        ("请把“{x}”翻译成中文。", "请翻译成中文：{x}"),
    ),
    (
        ('What does "{x}" mean?', 'Translate "{x}" into English.', 'How do you say "{x}" in English?', "Into English: {x}"),
        ('Please translate "{x}" into English.', "Translate into English: {x}"),
    ),
)
GREETING_PAIRS = (  # what newcomers try first: trained in natural words, never scored
    ("你好", "Hello"), ("世界", "world"), ("你好，世界", "Hello, world"), ("谢谢", "Thank you"), ("再见", "Goodbye"),
    ("早上好", "Good morning"), ("晚安", "Good night"), ("我爱你", "I love you"),
)  # fmt: skip
WORD_SHARE = 0.15  # single words: trained, never scored, because no combination can be held out
MEANING_SHARE = 0.35


@dataclass(frozen=True)
class Pair:
    """Equal content in both languages, without a final mark."""

    key: str
    zh: str
    en: str

    def side(self, lang: str) -> str:
        """The text in one language."""
        return self.zh if lang == "zh" else self.en


def phrase_pair(number: int, colour: int, noun: int) -> Pair:
    """`三只红色的猫` and `three red cats`."""
    hue, thing = COLOUR[colour], COUNTABLE[noun]
    zh = f"{NUMBERS_ZH[number]}{thing.classifier}{hue.zh}的{thing.zh}"
    en = f"{NUMBERS_EN[number]} {hue.en} {thing.en if number == 1 else thing.plural}"
    return Pair(f"phrase|{number}|{hue.en}|{thing.en}", zh, en)


def sentence_pair(subject: int, verb: int, colour: int, noun: int) -> Pair:
    """`我喜欢红色的苹果` and `I like red apples`."""
    who, (zh_verb, base, third), hue, thing = SUBJECTS[subject], VERBS[verb], COLOUR[colour], COUNTABLE[noun]
    zh = f"{who.zh}{zh_verb}{hue.zh}的{thing.zh}"
    en = f"{who.en} {third if who.third else base} {hue.en} {thing.plural}"
    return Pair(f"sentence|{who.en}|{base}|{hue.en}|{thing.en}", zh, en)


def draw_pair(rng: random.Random, world: WorldSeed, split: str) -> Pair:
    """A random phrase or sentence of the split."""
    while True:
        colour, noun = rng.randrange(len(COLOUR)), rng.randrange(len(COUNTABLE))
        if rng.random() < 0.5:
            pair = phrase_pair(rng.randint(1, 9), colour, noun)
        else:
            pair = sentence_pair(rng.randrange(len(SUBJECTS)), rng.randrange(len(VERBS)), colour, noun)
        if world.fits_split(split, "translate", pair.key):
            return pair


def draw(rng: random.Random, world: WorldSeed, lang: str, split: str) -> Item:
    """A random translation question in `lang`, from this language or into it."""
    if split == TRAIN and rng.random() < WORD_SHARE:
        noun = rng.choice(WORDS)
        pair = Pair(f"word|{noun.en}", noun.zh, noun.en)
    else:
        pair = draw_pair(rng, world, split)
    meaning = rng.random() < MEANING_SHARE
    source, target = (other_language(lang), lang) if meaning else (lang, other_language(lang))
    phrase = (MEANING if meaning else INTO)[lang].choose(rng, split)
    text = vary(rng, phrase.text.format(x=pair.side(source)), lang)
    return Item(
        task="translate",
        lang=lang,
        key=pair.key,
        phrase=phrase,
        messages=(user(text),),
        reference=pair.side(target) + full_stop(target),
        answer_lang=target,
    )
