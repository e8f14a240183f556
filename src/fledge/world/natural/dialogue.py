"""Conversations of one or several turns in natural words, with follow-ups and changes of topic."""

import random
from collections.abc import Callable, Iterator

from fledge.world import listing, verse
from fledge.world.lexicon import CATEGORIES, ORDINALS, WORDS, full_stop, is_a_sentence, other_language
from fledge.world.natural.grammar import as_typed, expand, read_yaml
from fledge.world.natural.held_out import is_held_out
from fledge.world.natural.outside import draw_outside
from fledge.world.natural.requests import SKILLS, Exchange, in_question, kind_name, sum_answer, theme_name
from fledge.world.natural.talk import draw_talk, name, say, say_unknown
from fledge.world.records import LANGS, TRAIN
from fledge.world.world_seed import WorldSeed

LENGTHS, LENGTH_WEIGHTS = (1, 2, 3, 4, 5), (0.5, 0.2, 0.14, 0.09, 0.07)
MAX_CHARACTERS = {"zh": 260, "en": 520}  # of a whole conversation: it has to fit into one row
OUTSIDE_SHARE, TALK_SHARE = 0.2, 0.27


def _choose(rng: random.Random, group: str, lang: str, **blanks: str) -> str:
    text = expand(rng, f"({read_yaml(f'follow_ups.{lang}.yaml')[group]})")
    for blank, value in blanks.items():
        text = text.replace(f"<{blank}>", value)
    return as_typed(rng, text, lang, may_add=False)


def _after_list(rng: random.Random, world: WorldSeed, before: Exchange) -> Exchange | None:
    """One more, the list in the other language, the second one, or a list of another kind."""
    lang, nouns = before.lang, before.facts["nouns"]
    roll = rng.random()
    if roll < 0.42:
        members = CATEGORIES[before.facts["category"]].members
        rest = [noun for noun in members if noun not in nouns]
        if not rest:
            return None
        one = members[(members.index(nouns[-1]) + 1) % len(members)]
        one = one if one in rest else rest[0]
        facts = {"category": before.facts["category"], "nouns": [*nouns, one]}
        return Exchange(_choose(rng, "one_more", lang), one.named(lang) + full_stop(lang), lang, "list", facts)
    if roll < 0.55:
        target = other_language(lang)
        return Exchange(_choose(rng, "in_other", lang), listing.list_answer(nouns, target), lang, "said")
    if roll < 0.78:
        position = rng.randrange(min(len(nouns), len(ORDINALS[lang])))
        start = CATEGORIES[before.facts["category"]].members.index(nouns[0])
        if world.held_out("follow_up", f"ordinal|{before.facts['category']}|{len(nouns)}|{start}|{position}"):
            return None
        question = _choose(rng, "ordinal", lang, k=ORDINALS[lang][position])
        return Exchange(question, nouns[position].named(lang) + full_stop(lang), lang, "word", {"noun": nouns[position]})
    category = rng.choice(tuple(CATEGORIES))
    count = len(nouns)
    if count > 5 or not world.fits_split(TRAIN, "listing", f"{category}|{count}"):
        return None
    chosen = listing.consecutive_members(category, rng.randrange(len(CATEGORIES[category].members)), count)
    question = _choose(rng, "other_kind", lang, x=kind_name(rng, category, lang))
    facts = {"category": category, "nouns": chosen}
    return Exchange(question, listing.list_answer(chosen, lang), lang, "list", facts)


def _after_sum(rng: random.Random, world: WorldSeed, before: Exchange) -> Exchange | None:
    """A digit more or less."""
    result, lang = before.facts["result"], before.lang
    if result > 89:
        return None
    op = rng.choice("+-") if result > 1 else "+"
    digit = rng.randint(1, min(9, result)) if op == "-" else rng.randint(1, 9)
    total = result + digit if op == "+" else result - digit
    if world.held_out("follow_up", f"sum|{before.facts.get('a')}|{before.facts.get('b')}|{op}{digit}"):
        return None
    question = _choose(rng, "plus" if op == "+" else "minus", lang, c=str(digit))
    answer = f"{result}{op}{digit}={total}{full_stop(lang)}" if result < 19 else sum_answer(result, op, digit, lang)
    return Exchange(question, answer, lang, "sum", {"result": total})


def _after_word(rng: random.Random, world: WorldSeed, before: Exchange) -> Exchange | None:
    """The thing of the answer before, in the other language, or another thing."""
    lang, noun = before.lang, before.facts.get("noun")
    if noun is None:
        return None
    if rng.random() < 0.5 or before.kind == "word":
        target = other_language(lang)
        if any(world.held_out("follow_up", f"back|{noun.en}|{form}") for form in range(2)):
            return None
        return Exchange(_choose(rng, "in_other", lang), noun.named(target) + full_stop(target), lang, "said")
    other = rng.choice(WORDS)
    if not world.fits_split(TRAIN, "follow_up", f"kind|{noun.en}|{other.en}"):
        return None
    question = _choose(rng, "next", lang, x=in_question(other, lang))
    return Exchange(question, is_a_sentence(other, lang), lang, "explain", {"noun": other})


def _after_translation(rng: random.Random, world: WorldSeed, before: Exchange) -> Exchange | None:
    """Another word in the same direction."""
    noun, target, one = rng.choice(WORDS), before.facts["target"], before.facts["noun"]
    if one is None or world.held_out("follow_up", f"word|{one.en}|{noun.en}"):
        return None
    question = _choose(rng, "next", before.lang, x=noun.named(other_language(target)))
    return Exchange(
        question, noun.named(target) + full_stop(target), before.lang, "translate", {"target": target, "noun": noun}
    )


def _after_verse(rng: random.Random, world: WorldSeed, before: Exchange) -> Exchange | None:
    """Another verse about the same, or one about something else."""
    lang, theme = before.lang, before.facts["theme"]
    while True:
        other, friend = verse.combination(rng, world, lang, TRAIN)
        if rng.random() < 0.2 or other == theme:
            break
    if other == theme:
        while (answer := verse.compose(rng, theme, friend, lang)) == before.answer:
            pass
        return Exchange(_choose(rng, "another_verse", lang), answer, lang, "verse", before.facts)
    question = _choose(rng, "about_other", lang, x=theme_name(rng, other, lang))
    return Exchange(question, verse.compose(rng, other, friend, lang), lang, "verse", {"theme": other})


FOLLOW_UPS: dict[str, Callable[[random.Random, WorldSeed, Exchange], Exchange | None]] = {
    "list": _after_list,
    "sum": _after_sum,
    "explain": _after_word,
    "word": _after_word,
    "translate": _after_translation,
    "verse": _after_verse,
}


def _not_held_out(world: WorldSeed, draw: Callable[[], Exchange]) -> Exchange:
    while is_held_out((exchange := draw()).question, world):
        pass
    return exchange


def _single(rng: random.Random, world: WorldSeed, lang: str) -> Exchange:
    return _not_held_out(world, lambda: _any_single(rng, world, lang))


def _any_single(rng: random.Random, world: WorldSeed, lang: str) -> Exchange:
    roll = rng.random()
    if roll < OUTSIDE_SHARE:
        return draw_outside(rng, world, lang)
    if roll < OUTSIDE_SHARE + TALK_SHARE:
        return draw_talk(rng, lang)
    return rng.choices(tuple(SKILLS), tuple(SKILLS.values()))[0](rng, world, lang)


def _exchanges(rng: random.Random, world: WorldSeed, lang: str, length: int) -> Iterator[Exchange]:
    """The exchanges of one conversation: a name is remembered, about half of the turns continue the one before."""
    own_name, before = "", None
    for turn in range(length):
        if own_name and rng.random() < 0.35:
            before = _not_held_out(world, lambda: say(rng, "name_asked", lang, own_name))  # noqa: B023
        elif length > 1 and not own_name and turn < length - 1 and rng.random() < 0.17:
            before = say(rng, "name_given", lang, name(rng, lang))
        elif turn and not own_name and rng.random() < 0.06:
            before = _not_held_out(world, lambda: say_unknown(rng, lang))  # noqa: B023
        else:
            after = None
            if before is not None and rng.random() < 0.62 and (follow := FOLLOW_UPS.get(before.kind)):
                after = follow(rng, world, before)
            if after is None or is_held_out(after.question, world):
                after = _single(rng, world, lang)
                while own_name and after.kind == "name_unknown":
                    after = _single(rng, world, lang)
            before = after
        if before.kind == "name_given":
            own_name = before.facts["name"]
        yield before
        if rng.random() < 0.04:
            lang = other_language(lang)


def draw_dialogue(rng: random.Random, world: WorldSeed) -> list[Exchange]:
    """A conversation of one to five turns, short enough for one row of training."""
    lang = rng.choice(LANGS)
    length = rng.choices(LENGTHS, LENGTH_WEIGHTS)[0]
    result: list[Exchange] = []
    for exchange in _exchanges(rng, world, lang, length):
        size = sum(len(turn.question) + len(turn.answer) for turn in (*result, exchange))
        if result and size > MAX_CHARACTERS[lang]:
            break
        result.append(exchange)
    return result
