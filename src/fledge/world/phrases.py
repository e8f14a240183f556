"""Question templates: for training, and held-out ones that are made of words from the training templates."""

import random
from dataclasses import dataclass

from fledge.world.records import QUESTION, Phrase

OPENERS = {"zh": ("", "你好！", "嗨！"), "en": ("", "Hi! ", "Hello! ")}
OPENER_WEIGHTS = (0.76, 0.12, 0.12)
BARE_SHARE = 0.25
ENDINGS = "？。?."


@dataclass(frozen=True)
class Phrases:
    """The templates of one kind of question in one language."""

    group: str
    lang: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]

    def choose(self, rng: random.Random, split: str) -> Phrase:
        """A random template of the split."""
        held_out = split == QUESTION
        pool = self.held_out if held_out else self.train
        index = rng.randrange(len(pool))
        return Phrase(group=self.group, lang=self.lang, index=index, size=len(pool), text=pool[index], held_out=held_out)

    def phrase(self, index: int) -> Phrase:
        """The training template with this index."""
        return Phrase(
            group=self.group, lang=self.lang, index=index, size=len(self.train), text=self.train[index], held_out=False
        )


def vary(rng: random.Random, text: str, lang: str) -> str:
    """The text sometimes with a greeting, and sometimes without its final mark, as people write.

    The mark after '=' stays, because it alone tells the language of a bare sum.
    """
    opener = rng.choices(OPENERS[lang], OPENER_WEIGHTS)[0]
    if rng.random() < BARE_SHARE and text[-1] in ENDINGS and text[-2] != "=":
        text = text[:-1]
    return opener + text


def phrase_book(group: str, zh: tuple[tuple[str, ...], tuple[str, ...]], en: tuple[tuple[str, ...], tuple[str, ...]]):
    """The templates of a group in both languages, each given as (training templates, held-out templates)."""
    return {"zh": Phrases(group, "zh", train=zh[0], held_out=zh[1]), "en": Phrases(group, "en", train=en[0], held_out=en[1])}
