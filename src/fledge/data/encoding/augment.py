"""Augmentation of conversations: earlier ends and typing errors. A pure function of the seed and the content."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import xxhash

from fledge.recipe.schema import AugmentConfig
from fledge.tokenizer import Message

Round = tuple[Message, ...]


def _draws(rounds: Sequence[Round], seed: int) -> Iterator[Callable[[], float]]:
    """Two independent streams of uniform numbers in [0, 1), a pure function of the conversation's text and the seed."""
    text = "\0".join(field for turns in rounds for message in turns for field in (message.role, message.content))
    digest = xxhash.xxh3_64_intdigest(text.encode(errors="surrogatepass"), seed)
    for stream in range(2):
        yield random.Random(2 * digest + stream).random


def _mistype(text: str, rate: float, draw: Callable[[], float]) -> tuple[str, int]:
    """The text with about a fraction `rate` of its letters swapped with the next, dropped or doubled, and their number.

    Digits and punctuation stay, so the question keeps its meaning. A text of which nothing would be left is not changed.
    """
    pieces, changed, i = [], 0, 0
    while i < len(text):
        letter, following = text[i], text[i + 1 : i + 2]
        step, written = 1, letter
        if letter.isalpha() and draw() < rate:
            kind = int(3 * draw())
            if kind == 0 and following.isalpha() and following != letter:
                step, written = 2, following + letter
            else:
                written = "" if kind == 1 else 2 * letter
            changed += 1
        pieces.append(written)
        i += step
    result = "".join(pieces)
    return (result, changed) if result.strip() else (text, 0)


def augment(rounds: Sequence[Round], config: AugmentConfig, seed: int, may_end: bool = True) -> tuple[list[Round], int, int]:
    """Augment a dialogue: (rounds to train, number of rounds left out at the end, number of letters changed in user turns).

    At least one round is kept. `may_end` is false if an answer follows the last round: then no round is left out.
    """
    tail, noise = _draws(rounds, seed)
    kept = list(rounds)
    if may_end and len(kept) > 1 and tail() < config.drop_last_turns:
        kept = kept[: 1 + int(tail() * (len(kept) - 1))]
    changed = 0
    if noise() < config.noise:
        for number, turns in enumerate(kept):
            messages = []
            for message in turns:
                if message.role == "user":
                    text, count = _mistype(message.content, config.noise_rate, noise)
                    message, changed = replace(message, content=text), changed + count
                messages.append(message)
            kept[number] = tuple(messages)
    return kept, len(rounds) - len(kept), changed
