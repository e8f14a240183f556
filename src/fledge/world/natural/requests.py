"""Requests for the skills of the world in the words of people, with the answers of the world's tasks."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from fledge.world import arithmetic, columns, explain, identity, listing, standardise, translate, verse
from fledge.world.lexicon import (
    CATEGORIES,
    NUMBERS_EN,
    NUMBERS_ZH,
    WORDS,
    Noun,
    full_stop,
    is_a_sentence,
    other_language,
)
from fledge.world.natural.grammar import as_typed, choose_sentence, fill, full_width
from fledge.world.records import TRAIN, assistant, user
from fledge.world.world_seed import WorldSeed


@dataclass(frozen=True)
class Exchange:
    """A question and its answer. `kind` and `facts` tell what a question after it can refer to."""

    question: str
    answer: str
    lang: str
    kind: str
    facts: dict = field(default_factory=dict)

    @property
    def turns(self) -> tuple[dict[str, str], dict[str, str]]:
        """The exchange as turns of a conversation."""
        return user(self.question), assistant(self.answer)


Draw = Callable[[random.Random, WorldSeed, str], Exchange]
NAMES_OF_KINDS = {  # besides the names of the lexicon
    "zh": {"animal": ("小动物",), "vehicle": ("车",), "colour": ("色彩",), "drink": ("喝的", "饮品"), "vegetable": ("菜",)},
    "en": {
        "colour": ("colors", "color"), "instrument": ("musical instruments",), "drink": ("beverages", "things to drink"),
        "vehicle": ("means of transport", "kinds of transport"), "vegetable": ("veggies",), "pollutant": ("air pollutants",),
        "fruit": ("fruit", "kinds of fruit"),
    },
}  # fmt: skip
NAMES_OF_THEMES = {
    "zh": {
        "月": ("月亮", "明月", "月光"), "雨": ("下雨", "春雨", "雨天"), "雪": ("雪花", "下雪", "大雪"), "风": ("春风", "大风"),
        "花": ("花儿", "鲜花", "花朵"), "山": ("大山", "高山", "青山"), "河": ("河流", "小河", "江河"), "鸟": ("小鸟", "鸟儿"),
        "云": ("白云", "云朵", "云彩"), "星": ("星星", "星空", "繁星"), "树": ("大树", "树木"), "海": ("大海", "海洋"),
        "春": ("春天", "春日"),
    },
    "en": {
        "moon": ("moonlight",), "rain": ("rain drops",), "snow": ("snowflakes",), "wind": ("the wind",), "flower": ("flowers",),
        "hill": ("hills",), "river": ("rivers",), "bird": ("birds",), "cloud": ("clouds",), "star": ("stars",),
        "tree": ("trees",), "sea": ("ocean",), "spring": ("springtime",),
    },
}  # fmt: skip
_SIGNS = {
    ("+", "zh"): ("+", "+", "+", " + ", "＋", "加", "加", "加上", " 加 ", "加个"),
    ("-", "zh"): ("-", "-", " - ", "－", "减", "减", "减去", " 减 ", "减掉"),
    ("+", "en"): ("+", "+", " + ", " + ", " plus ", " plus ", " and ", " added to ", "plus"),
    ("-", "en"): ("-", "-", " - ", " - ", " minus ", " minus ", " take away ", "minus", " less "),
}  # fmt: skip
_TENS_EN = ("", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_TEENS_EN = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_DIGITS_ZH = "零一二三四五六七八九"


def number_in_words(number: int, lang: str) -> str:
    """A number below 100 in words: `二十三`, `twenty-three`."""
    tens, ones = divmod(number, 10)
    if lang == "zh":
        head = ("十" if tens == 1 else _DIGITS_ZH[tens] + "十") if tens else ""
        return head + (_DIGITS_ZH[ones] if ones or not tens else "")
    if tens == 1:
        return _TEENS_EN[ones]
    if not tens:
        return NUMBERS_EN[ones]
    return _TENS_EN[tens] + (f"-{NUMBERS_EN[ones]}" if ones else "")


def _sentence(rng: random.Random, group: str, lang: str, blanks: dict[str, str], keep: str = "") -> str:
    sentence = fill(choose_sentence(rng, f"requests.{lang}.yaml", group), blanks)
    return as_typed(rng, sentence, lang, keep=keep)


def kind_name(rng: random.Random, category: str, lang: str) -> str:
    """A name of a category, mostly that of the lexicon."""
    others = NAMES_OF_KINDS[lang].get(category, ())
    if others and rng.random() < 0.3:
        return rng.choice(others)
    return CATEGORIES[category].zh if lang == "zh" else CATEGORIES[category].plural


def draw_list(rng: random.Random, world: WorldSeed, lang: str) -> Exchange:
    """A request for some members of a category; three where no number is given."""
    category, count = listing.combination(rng, world, TRAIN)
    some = rng.random() < 0.2 and world.fits_split(TRAIN, "listing", f"{category}|3")
    count = 3 if some else count
    words = NUMBERS_ZH if lang == "zh" else NUMBERS_EN
    number = str(count) if rng.random() < 0.4 else words[count]
    blanks = {"n": number, "c": kind_name(rng, category, lang)}
    nouns = listing.consecutive_members(category, rng.randrange(len(CATEGORIES[category].members)), count)
    question = _sentence(rng, "listing_some" if some else "listing", lang, blanks)
    return Exchange(question, listing.list_answer(nouns, lang), lang, "list", {"category": category, "nouns": nouns})


def sum_answer(a: int, op: str, b: int, lang: str) -> str:
    """The answer to a sum or difference: with working where a number has two digits."""
    if a > 9 or b > 9:
        return arithmetic.working(a, op, b, lang)
    return f"{a}{op}{b}={a + b if op == '+' else a - b}{full_stop(lang)}"


def operands(rng: random.Random, world: WorldSeed) -> tuple[int, str, int]:
    """Two numbers below 100 of training, often of one digit, and an operation whose result is not negative."""
    roll = rng.random()
    if roll < 0.4:
        return arithmetic.operands(rng, world, TRAIN)
    while True:
        a = rng.randint(0, 9) if roll < 0.6 else rng.choice((rng.randint(10, 99), rng.randint(1, 10) * 10))
        b = rng.randint(0, 9) if roll < 0.85 else rng.choice((rng.randint(10, 99), rng.randint(1, 9) * 10))
        if rng.random() < 0.3:
            a, b = b, a
        if max(a, b) > 99:
            continue
        if world.fits_split(TRAIN, "arithmetic", arithmetic.pair_key(a, b)) or min(a, b) < 10:
            break
    return (a, "+", b) if rng.random() < 0.55 else (max(a, b), "-", min(a, b))


def draw_sum(rng: random.Random, world: WorldSeed, lang: str) -> Exchange:
    """A request for a sum or a difference, in digits or in words."""
    a, op, b = operands(rng, world)
    in_words = rng.random() < 0.12
    left, right = (number_in_words(n, lang) if in_words else str(n) for n in (a, b))
    if rng.random() < 0.25:
        group, blanks = ("addition" if op == "+" else "subtraction"), {"a": left, "b": right}
    else:
        signs = [s for s in _SIGNS[op, lang] if not in_words or not set(s) & set("+-＋－")]
        group, blanks = "arithmetic", {"s": left + rng.choice(signs) + right}
    question = _sentence(rng, group, lang, blanks)
    if lang == "zh" and rng.random() < 0.05:
        question = full_width(question)
    return Exchange(
        question, sum_answer(a, op, b, lang), lang, "sum", {"a": a, "b": b, "result": a + b if op == "+" else a - b}
    )


def draw_translation(rng: random.Random, world: WorldSeed, lang: str) -> Exchange:
    """A request for a translation of a word, a phrase or a sentence, from or into the language of the question."""
    noun = rng.choice((*WORDS, *translate.GREETING_PAIRS, *translate.GREETING_PAIRS)) if rng.random() < 0.45 else None
    if isinstance(noun, Noun):
        zh, en = noun.zh, noun.en
    elif noun is not None:
        zh, en = noun
    else:
        pair = translate.draw_pair(rng, world, TRAIN)
        zh, en = pair.zh, pair.en
    meaning = rng.random() < 0.4
    source = lang if not meaning else other_language(lang)
    target = other_language(source)
    text = zh if source == "zh" else en
    if source == "en" and rng.random() < 0.3:
        text = text.lower()
    if source == "zh" and rng.random() < 0.06:
        text += rng.choice("。！")
    question = _sentence(rng, "meaning" if meaning else "into", lang, {"x": text}, keep=text)
    answer = (zh if target == "zh" else en) + full_stop(target)
    return Exchange(question, answer, lang, "translate", {"target": target, "noun": noun if isinstance(noun, Noun) else None})


def draw_explanation(rng: random.Random, world: WorldSeed, lang: str) -> Exchange:
    """A request for a definition of a term or of a thing."""
    if rng.random() < 0.45:
        noun = rng.choice(WORDS)
        name = (
            noun.zh if lang == "zh" else rng.choice((noun.with_article(), noun.with_article(), noun.en, noun.plural or noun.en))
        )
        answer, facts = is_a_sentence(noun, lang), {"noun": noun}
    else:
        term = rng.choice(explain.TERMS)
        name, answer, facts = term.named(lang), term.text(lang), {}
        if lang == "en" and rng.random() < 0.35:
            name = name.removeprefix("a ").removeprefix("an ").removeprefix("the ")
    return Exchange(_sentence(rng, "explain", lang, {"x": name}), answer, lang, "explain", facts)


def theme_name(rng: random.Random, theme: str, lang: str) -> str:
    """A name of a theme of verses as people say it."""
    return rng.choice((theme, *NAMES_OF_THEMES[lang][theme]))


def draw_verse(rng: random.Random, world: WorldSeed, lang: str) -> Exchange:
    """A request for a verse: about a theme, about a theme with a companion, or about anything."""
    theme, friend = verse.combination(rng, world, lang, TRAIN)
    roll = rng.random()
    group = "verse_any" if roll < 0.08 else "together" if roll < 0.3 else "verse"
    name = theme if group == "together" else theme_name(rng, theme, lang)
    question = _sentence(rng, group, lang, {"t": name, "f": friend})
    return Exchange(question, verse.compose(rng, theme, friend, lang), lang, "verse", {"theme": theme})


def draw_tidying(rng: random.Random, world: WorldSeed, lang: str) -> Exchange:
    """A request for standard names or for the fields of columns."""
    if rng.random() < 0.5:
        (vehicle, v_name), (pollutant, p_name) = standardise.combination(rng, world, lang, TRAIN)
        blanks = {
            "v": standardise.messy_vehicle(rng, vehicle, lang).strip(),
            "p": standardise.messy_pollutant(rng, pollutant).strip(),
        }
        return Exchange(_sentence(rng, "tidy", lang, blanks), standardise.answer(v_name, p_name), lang, "tidy")
    mapping = columns.combination(rng, world, lang, TRAIN)
    names = columns.SEPARATORS[lang].join(mapping)
    return Exchange(_sentence(rng, "columns", lang, {"cs": names}, keep=names), columns.answer(mapping), lang, "tidy")


def draw_identity(rng: random.Random, world: WorldSeed, lang: str) -> Exchange:
    """A question about the model itself."""
    intent = rng.choice(identity.SCORED)
    return Exchange(_sentence(rng, intent, lang, {}), identity.reply(intent, lang), lang, "identity")


SKILLS: dict[Draw, int] = {
    draw_list: 13,
    draw_sum: 22,
    draw_translation: 17,
    draw_explanation: 13,
    draw_verse: 9,
    draw_tidying: 6,
    draw_identity: 15,
}


def in_question(noun: Noun, lang: str) -> str:
    """A thing as a question names it: `猫`, `a cat`."""
    return noun.zh if lang == "zh" else noun.with_article()
