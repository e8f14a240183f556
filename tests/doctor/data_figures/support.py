"""Built data with planted faults."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fledge.data import PackedDataset, StageDataset
from fledge.data.storage import Examples
from fledge.diagnosis.case import Figure

WORDS = [
    "fox",
    "dog",
    "rain",
    "falls",
    "quick",
    "brown",
    "lazy",
    "hello",
    "world",
    "poem",
    "answer",
    "question",
    "friend",
    "plus",
]
Change = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def sentence(draw: np.random.Generator, fewest: int = 4, most: int = 12) -> str:
    """Some random words."""
    return " ".join(draw.choice(WORDS, int(draw.integers(fewest, most))).tolist())


def dialogues(count: int, rounds: int = 1, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of conversations of random words."""
    draw = np.random.default_rng(seed)
    turns = [("user", "assistant")[place % 2] for place in range(2 * rounds)]
    return [{"messages": [{"role": role, "content": sentence(draw)} for role in turns]} for _ in range(count)]


def with_train(data: StageDataset, examples: Examples, **more: Any) -> StageDataset:
    """The data with other training examples, packed as before."""
    before = data.train
    settings = {"packs": before.packs, "mixture": None, "sources": before.sources, "halves_rows": before.halves_rows, **more}
    train = PackedDataset(examples, before.packed_length, before.pad, before.seed, before.split_documents, **settings)
    return replace(data, train=train)


def changed(data: StageDataset, change: Change) -> StageDataset:
    """The data with `change` (tokens, weights → tokens, weights) applied to every training sequence."""
    examples = data.train.examples
    pairs = [examples.sequence(number) for number in range(len(examples.offsets) - 1)]
    made = [change(np.array(tokens), np.array(weights)) for tokens, weights in pairs]
    return with_train(data, examples_of(examples, made))


def examples_of(examples: Examples, made: list[tuple[np.ndarray, np.ndarray]], **more: Any) -> Examples:
    """The examples with these sequences."""
    offsets = np.concatenate(([0], np.cumsum([len(tokens) for tokens, _ in made]))).astype(np.int64)
    tokens, weights = (np.concatenate(parts) for parts in zip(*made, strict=True))
    arrays = {"tokens": tokens, "weights": weights.astype(np.float32), "offsets": offsets}
    return replace(examples, digest=None, counted_target_tokens=None, **arrays, **more)


def values(figures: Mapping[str, Figure]) -> dict[str, Any]:
    """The values of figures, by name without the first part."""
    return {name.removeprefix("data/"): figure.value for name, figure in figures.items()}
