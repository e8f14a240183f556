"""What training must not show because the scored questions ask it: phrasings, and terms in some phrasings."""

import re
from functools import cache, lru_cache

from fledge.world import arithmetic as sums
from fledge.world import columns, explain, follow_up, identity, listing, standardise, system_rules, translate, verse
from fledge.world.phrases import ENDINGS
from fledge.world.records import LANGS
from fledge.world.world_seed import WorldSeed

BOOKS = (
    *identity.BOOKS.values(), *follow_up.BOOKS.values(), listing.BOOK, sums.BOOK, translate.INTO, translate.MEANING,
    explain.BOOK, verse.ALONE, verse.TOGETHER, standardise.BOOK, columns.BOOK, *system_rules.ASKS.values(),
)  # fmt: skip
_BLANK = re.compile(r"\{\w+\}")


def _bare(text: str) -> str:
    """The text without its last marks, in small letters."""
    return text.strip().rstrip(ENDINGS + "!！").lower()


@cache
def _phrasings() -> re.Pattern[str]:
    """The held-out phrasings of all tasks, with anything for their blanks, after any greeting."""
    templates = [template for book in BOOKS for lang in LANGS for template in book[lang].held_out]
    parts = ["[^，。？?!]+?".join(map(re.escape, _BLANK.split(_bare(template)))) for template in templates]
    return re.compile(rf"(?:.{{0,10}}[，,！!：:] ?)?(?:{'|'.join(parts)})")


@lru_cache(maxsize=4)
def _explanations(world: WorldSeed) -> frozenset[str]:
    """The requests for definitions whose combination of term and phrasing is held out."""
    return frozenset(
        _bare(template.format(x=term.named(lang)))
        for lang in LANGS
        for term in explain.TERMS
        for template in explain.BOOK[lang].train
        if world.held_out("explain", f"{term.named(lang)}|{template}")
    )


def is_held_out(question: str, world: WorldSeed) -> bool:
    """Whether a question has a held-out phrasing, or asks for a definition in a held-out way."""
    text = _bare(question)
    return text in _explanations(world) or _phrasings().fullmatch(text) is not None
