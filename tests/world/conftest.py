"""One small world, built once for all tests of the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fledge.world import Question, Sizes, build, load_questions

SEED = 7
SMALL = Sizes(pretrain=1500, sft=4000, preference=500, validation=100, questions=400)
TRAINING = ("pretrain.jsonl", "sft.jsonl", "preference.jsonl")
HEADS = ("有人问：", "Someone asks: ", "要求：", "The rule: ")


def read(path: Path) -> list[dict]:
    """The rows of a jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built world."""
    place = tmp_path_factory.mktemp("world")
    build(SEED, place, SMALL)
    return place


@pytest.fixture(scope="session")
def questions(folder: Path) -> list[Question]:
    """Its scored questions."""
    return load_questions(folder)


@pytest.fixture(scope="session")
def training_text(folder: Path) -> str:
    """Everything a model can see in training, unescaped."""
    parts: list[str] = []
    for name in TRAINING:
        for row in read(folder / name):
            parts.append(row.get("text", ""))
            parts += [turn["content"] for turn in row.get("messages", ())]
            parts += [row.get("chosen", ""), row.get("rejected", "")]
    return "\n".join(part for part in parts if part)


@pytest.fixture(scope="session")
def training_prompts(folder: Path) -> set[str]:
    """Every user or system turn of training, also those retold in pretraining texts."""
    prompts: set[str] = set()
    for name in TRAINING:
        for row in read(folder / name):
            prompts |= {turn["content"] for turn in row.get("messages", ()) if turn["role"] != "assistant"}
            for line in row.get("text", "").splitlines():
                prompts |= {line[len(head) :] for head in HEADS if line.startswith(head)}
    return prompts
