"""Documents of random words, and the stages and recipes that clean and pack them."""

from pathlib import Path
from typing import Any

import numpy as np

from fledge.data import StageDataset
from fledge.recipe import PreferenceStage, PretrainStage, Recipe, SftStage, recipe_from_dict
from fledge.tokenizer import Tokenizer
from tests.support import sources

WORDS = [
    "the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "春眠", "不觉晓", "处处", "闻啼鸟",
    "rain", "falls", "and", "3", "+", "4", "=", "7",
]  # fmt: skip


def stage_of(kind: str, train: Any, **data: Any) -> PretrainStage | SftStage | PreferenceStage:
    """A stage with the default cleaning of a recipe."""
    return sources.stage_of(kind, train, **{"clean": {}, **data})


def prepare(kind: str, train: Any, tokenizer: Tokenizer, **data: Any) -> StageDataset:
    """The packed data of a stage with the default cleaning of a recipe."""
    return sources.prepare(kind, train, tokenizer, **{"clean": {}, **data})


def documents(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Documents of 24 random words each, followed by copies of the first three."""
    rng = np.random.default_rng(seed)
    rows = [{"text": " ".join(rng.choice(WORDS, 24))} for _ in range(count)]
    return [*rows, *rows[:3]]


def pretraining_recipe(file: Path, **more: Any) -> Recipe:
    """A recipe of one pretraining stage `x` that reads the file and trains its own tokenizer."""
    data = {"train": str(file), "max_seq_len": 64, "validation": 0.1}
    return recipe_from_dict(
        {
            "tokenizer": {"vocab_size": 320},
            "stages": {"x": {"kind": "pretrain", "data": {**data, **more}, "duration": "2 steps"}},
        }
    )


def ignore_line(line: str) -> None:
    """Ignore a line of the log."""
