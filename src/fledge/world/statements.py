"""Plain text about the world for pretraining: facts, worked sums, verses, small dialogues."""

import random
from collections.abc import Callable, Iterable, Mapping

from fledge.world import arithmetic, columns, explain, identity, listing, standardise, translate, verse
from fledge.world.lexicon import CATEGORIES, NUMBERS_EN, NUMBERS_ZH, ORDINALS, SUBJECTS, VERBS, WORDS, full_stop, is_a_sentence
from fledge.world.natural.dialogue import draw_dialogue
from fledge.world.records import LANGS, TRAIN, Item, assistant
from fledge.world.tasks import draw_any
from fledge.world.world_seed import WorldSeed

StatementMaker = Callable[[random.Random, WorldSeed, str, str], str]
TARGET_TOKENS = 48
MOST_STATEMENTS = 5


def dictionary(zh: str, en: str, lang: str) -> str:
    """`苹果的英文是apple。` / `The Chinese for apple is 苹果.`"""
    return f"{zh}的英文是{en}。" if lang == "zh" else f"The Chinese for {en} is {zh}."


def alias_fact(alias: str, standard: str, lang: str) -> str:
    """An alias with its standard name."""
    return f"{alias}的标准名是{standard}。" if lang == "zh" else f"The standard name of {alias} is {standard}."


def column_fact(name: str, target: str, lang: str) -> str:
    """A column name with its standard field."""
    return f"列名{name}对应字段{target}。" if lang == "zh" else f"The column {name} is the field {target}."


def word_pairs() -> list[tuple[str, str]]:
    """The word pairs of the dictionary that are not nouns: categories, numbers, persons, verbs."""
    kinds = [(kind.zh, kind.en) for kind in CATEGORIES.values()]
    numbers = list(zip(NUMBERS_ZH[1:], NUMBERS_EN[1:], strict=True))
    return kinds + numbers + [(who.zh, who.en) for who in SUBJECTS] + [(zh, en) for zh, en, _ in VERBS]


def primer(lang: str) -> list[str]:
    """Every single fact once, so that no fact depends on the luck of the draw."""
    facts = [is_a_sentence(noun, lang) for noun in WORDS] + [dictionary(noun.zh, noun.en, lang) for noun in WORDS]
    facts += [dictionary(zh, en, lang) for zh, en in word_pairs()]
    facts += [term.text(lang) for term in explain.TERMS]
    for table in (standardise.VEHICLES, standardise.POLLUTANTS):
        facts += [alias_fact(alias, standard, lang) for alias, standard in standardise.aliases(table, lang)]
    facts += [column_fact(name, field, lang) for field, names in columns.FIELDS.items() for name in names[lang]]
    return facts + [identity.reply(intent, lang) for intent in identity.SCORED]


_FACTS = {lang: tuple(primer(lang)) for lang in LANGS}


def _fact(rng: random.Random, world: WorldSeed, lang: str, split: str) -> str:
    return rng.choice(_FACTS[lang])


def _messy(rng: random.Random, world: WorldSeed, lang: str, split: str) -> str:
    """An alias in one of its messy forms."""
    if rng.random() < 0.5:
        alias, standard = rng.choice(standardise.aliases(standardise.VEHICLES, lang))
        return alias_fact(standardise.messy_vehicle(rng, alias, lang).strip(), standard, lang)
    alias, standard = rng.choice(standardise.aliases(standardise.POLLUTANTS, lang))
    return alias_fact(standardise.messy_pollutant(rng, alias).strip(), standard, lang)


def _pair(rng: random.Random, world: WorldSeed, lang: str, split: str) -> str:
    pair = translate.draw_pair(rng, world, split)
    if rng.random() < 0.5:
        return f"{pair.zh} = {pair.en}{full_stop(lang)}"
    return f"{pair.en} = {pair.zh}{full_stop(lang)}"


def _worked(rng: random.Random, world: WorldSeed, lang: str, split: str) -> str:
    """A two-digit sum or difference with its working."""
    a, op, b = arithmetic.operands(rng, world, split)
    return f"{a}{op}{b}{'：' if lang == 'zh' else ': '}{arithmetic.working(a, op, b, lang)}"


def _digits(rng: random.Random, world: WorldSeed, lang: str, split: str) -> str:
    """Four one-digit facts of the kinds that workings and follow-ups use."""
    facts = []
    for _ in range(4):
        a, b, kind = rng.randint(0, 9), rng.randint(0, 9), rng.randrange(6)
        if kind == 0:
            facts.append(f"{a}+{b}={a + b}")
        elif kind == 1:
            facts.append(f"{a}+{b}+1={a + b + 1}")
        elif kind == 2:
            facts.append(f"{a + b}-{b}={a}")
        elif kind == 3:
            high, low = max(a, b), min(a, b)
            facts.append(f"{high}-{low}-1={high - low - 1}" if high > low else f"{high}-{low}=0")
        else:
            total, step, op = rng.randint(10, 18), rng.randint(1, 9), "+-"[kind - 4]
            facts.append(f"{total}{op}{step}={total + step if op == '+' else total - step}")
    return ("，" if lang == "zh" else ", ").join(facts) + full_stop(lang)


def _list(rng: random.Random, world: WorldSeed, lang: str, split: str) -> str:
    """A list by its count, sometimes with the position of one member."""
    category, count = listing.combination(rng, world, split)
    nouns = listing.consecutive_members(category, rng.randrange(len(CATEGORIES[category].members)), count)
    text, category_words = listing.list_answer(nouns, lang), CATEGORIES[category]
    head = (
        f"{NUMBERS_ZH[count]}种{category_words.zh}："
        if lang == "zh"
        else f"{NUMBERS_EN[count].capitalize()} {category_words.plural}: "
    )
    if rng.random() < 0.5:
        return head + text
    position = rng.randrange(count)
    ordinal, name = ORDINALS[lang][position], nouns[position].named(lang)
    return f"{head}{text}{ordinal}是{name}。" if lang == "zh" else f"{head}{text} The {ordinal} one is {name}."


def _verse(rng: random.Random, world: WorldSeed, lang: str, split: str) -> str:
    return verse.compose(rng, *verse.combination(rng, world, lang, split), lang)


def _standard(rng: random.Random, world: WorldSeed, lang: str, split: str) -> str:
    (vehicle, v_name), (pollutant, p_name) = standardise.combination(rng, world, lang, split)
    names = f"{standardise.messy_vehicle(rng, vehicle, lang)}，{standardise.messy_pollutant(rng, pollutant)}".strip()
    names = names if lang == "zh" else names.replace("，", ", ")
    return f"{names} = {standardise.answer(v_name, p_name)}{full_stop(lang)}"


def _columns(rng: random.Random, world: WorldSeed, lang: str, split: str) -> str:
    mapping = columns.combination(rng, world, lang, split)
    return f"{columns.SEPARATORS[lang].join(mapping)} = {columns.answer(mapping)}{full_stop(lang)}"


HEADS = {  # what stands before a turn that is retold
    "zh": {"system": "要求：", "user": "有人问：", "assistant": "回答："},
    "en": {"system": "The rule: ", "user": "Someone asks: ", "assistant": "The answer: "},
}


def retold(turns: Iterable[Mapping[str, str]], lang: str) -> str:
    """The turns of a conversation as prose, a line each."""
    return "\n".join(HEADS[lang][turn["role"]] + turn["content"] for turn in turns)


def as_prose(item: Item, lang: str) -> str:
    """A conversation retold as prose, always with the clean answer."""
    return retold((*item.messages, assistant(item.reference)), lang)


def _dialogue(rng: random.Random, world: WorldSeed, lang: str, split: str) -> str:
    item = draw_any(rng, world, split)
    return as_prose(item, item.lang)


def _natural(rng: random.Random, world: WorldSeed, lang: str, split: str) -> str:
    """A conversation in natural words, retold as prose; the texts for validation have one in the words of the tasks."""
    if split != TRAIN:
        return _dialogue(rng, world, lang, split)
    exchanges = draw_dialogue(rng, world)[:2]
    return "\n".join(retold(exchange.turns, exchange.lang) for exchange in exchanges)


KINDS: dict[StatementMaker, int] = {
    _fact: 16,
    _messy: 6,
    _pair: 14,
    _worked: 14,
    _digits: 7,
    _list: 4,
    _verse: 4,
    _standard: 5,
    _columns: 5,
    _dialogue: 15,
    _natural: 15,
}


def estimate_tokens(text: str) -> float:
    """A rough number of tokens for packing: Chinese characters, words, digits and marks weigh differently."""
    chinese = sum("\u4e00" <= sign <= "\u9fff" for sign in text)
    digits = sum(sign.isdigit() for sign in text)
    words = len([word for word in text.split() if any("a" <= sign <= "z" for sign in word.lower())])
    marks = sum(sign in '+-=，。：、“”？,.:?"{}' for sign in text)
    return 0.7 * chinese + digits + 1.3 * words + 0.6 * marks


def texts(rng: random.Random, world: WorldSeed, split: str, count: int) -> list[str]:
    """`count` texts of a few statements each, mostly in one language. The facts of the primer are spread over the first
    texts."""
    unused_facts = {lang: rng.sample(_FACTS[lang], len(_FACTS[lang])) for lang in LANGS}
    makers, weights = tuple(KINDS), tuple(KINDS.values())
    result = []
    for _ in range(count):
        lang = rng.choice(LANGS)
        statements: list[str] = []
        while len(statements) < MOST_STATEMENTS and sum(map(estimate_tokens, statements)) < TARGET_TOKENS:
            statement_lang = lang if rng.random() < 0.85 else rng.choice(LANGS)
            if unused_facts[statement_lang] and len(statements) < 2:
                statements.append(unused_facts[statement_lang].pop())
            else:
                statements.append(rng.choices(makers, weights)[0](rng, world, statement_lang, split))
        result.append("\n".join(statements))
    return result
