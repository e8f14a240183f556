"""Answers of models, and written ones, with references and labels; docs/evaluation.md says what the labels mean."""

import json
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@cache
def read(name: str) -> tuple[dict[str, Any], ...]:
    """The rows of a file beside this one."""
    return tuple(json.loads(line) for line in (HERE / f"{name}.jsonl").read_text(encoding="utf-8").splitlines())


def answers_with_references() -> list[tuple[str, str]]:
    """Answers and references that people wrote to the same prompts; the answers are greedy or sampled outputs of models."""
    return [(row["answer"], row["expected"]) for row in read("references")]
