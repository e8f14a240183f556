"""Small real files, and the stages that read them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fledge.data import CollectedRows, StageDataset, collect, encode
from fledge.data.parsing.items import Item
from fledge.recipe import PreferenceStage, PretrainStage, SftStage, recipe_from_dict
from fledge.tokenizer import Tokenizer

UNCLEANED = {
    "exact_duplicates": False,
    "min_tokens": 0,
    "unicode": False,
    "whitespace": False,
    "mojibake": False,
    "html": False,
    "decontaminate": False,
}


def jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """Rows as lines; a row of bytes is written as it is."""
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def row(question: str, answer: str) -> dict[str, str]:
    """A row of one question and its answer."""
    return {"prompt": question, "response": answer}


def stage_of(kind: str, train: Any, **data: Any) -> PretrainStage | SftStage | PreferenceStage:
    """A stage that reads `train` (a path, or sources as in a recipe) without cleaning and, by default, without validation."""
    train = str(train) if isinstance(train, Path) else train
    data = {"train": train, "validation": 0, "max_seq_len": 64, "clean": UNCLEANED, **data}
    tree = {"model": {"max_position_embeddings": 65536}, "stages": {"x": {"kind": kind, "data": data}}}
    return recipe_from_dict(tree).stages["x"]


def read(kind: str, train: Any, **data: Any) -> CollectedRows:
    """The collected rows of a stage."""
    return collect(stage_of(kind, train, **data), "x", 1)


def items(kind: str, train: Any, **data: Any) -> list[Item]:
    """The training items of a stage."""
    return list(read(kind, train, **data).items())


def prepare(kind: str, train: Any, tokenizer: Tokenizer, seed: int = 1, **data: Any) -> StageDataset:
    """A stage's packed data."""
    return encode(collect(stage_of(kind, train, **data), "x", seed), tokenizer)
