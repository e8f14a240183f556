"""Question templates: a training set and a held-out set made of the same words."""

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
    held: tuple[str, ...]

    def choose(self, rng: random.Random, part: str) -> Phrase:
        """A template of the right side of the split."""
        held = part == QUESTION
        pool = self.held if held else self.train
        index = rng.randrange(len(pool))
        return Phrase(self.group, self.lang, index, len(pool), pool[index], held)

    def phrase(self, index: int) -> Phrase:
        """A training template by its place."""
        return Phrase(self.group, self.lang, index, len(self.train), self.train[index], False)


def dress(rng: random.Random, text: str, lang: str) -> str:
    """Greet sometimes and drop the final mark sometimes, as people do.

    After '=' the mark stays: it is all that tells the language of a bare sum.
    """
    opener = rng.choices(OPENERS[lang], OPENER_WEIGHTS)[0]
    if rng.random() < BARE_SHARE and text[-1] in ENDINGS and text[-2] != "=":
        text = text[:-1]
    return opener + text


def book(group: str, zh: tuple[tuple[str, ...], tuple[str, ...]], en: tuple[tuple[str, ...], tuple[str, ...]]):
    """The templates of a group in both languages, each given as (training, held out)."""
    return {"zh": Phrases(group, "zh", *zh), "en": Phrases(group, "en", *en)}
