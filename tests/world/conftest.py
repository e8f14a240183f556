"""One small world, built once for all tests of this folder."""

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
    """The folder of a built world."""
    world_folder = tmp_path_factory.mktemp("world")
    build(SEED, world_folder, SMALL)
    return world_folder


@pytest.fixture(scope="session")
def questions(folder: Path) -> list[Question]:
    """The scored questions of the world."""
    return load_questions(folder)


@pytest.fixture(scope="session")
def training_text(folder: Path) -> str:
    """All text that a model can see in training."""
    texts: list[str] = []
    for name in TRAINING:
        for row in read(folder / name):
            texts.append(row.get("text", ""))
            texts += [turn["content"] for turn in row.get("messages", ())]
            texts += [row.get("chosen", ""), row.get("rejected", "")]
    return "\n".join(text for text in texts if text)


@pytest.fixture(scope="session")
def training_prompts(folder: Path) -> set[str]:
    """Every user or system turn of training, also the turns that pretraining texts retell."""
    prompts: set[str] = set()
    for name in TRAINING:
        for row in read(folder / name):
            prompts |= {turn["content"] for turn in row.get("messages", ()) if turn["role"] != "assistant"}
            for line in row.get("text", "").splitlines():
                prompts |= {line[len(head) :] for head in HEADS if line.startswith(head)}
    return prompts
