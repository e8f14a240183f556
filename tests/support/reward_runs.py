"""Runs of a few seconds that train a reward model on the pairs of `small_runs`."""

import json
from pathlib import Path
from typing import Any

from fledge.pipeline import Pipeline
from fledge.recipe import recipe_from_dict
from fledge.run import Console
from tests.support import small_runs

QUIET = Console(quiet=True)
QUESTION = "Hello number 7!"


def tree(start: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """The recipe of one reward stage, as plain data."""
    stage = {
        "kind": "reward",
        "init_from": str(start / "model"),
        "data": {"train": str(start / "pairs.jsonl"), "validation": 0.25, "max_seq_len": 64},
        "batch": {"micro_batch_size": 2, "gradient_accumulation_steps": 2},
        "optimizer": {"learning_rate": 3e-3},
        "duration": "6 steps",
        "evaluation": {"every_steps": 3},
        "checkpoint": {"every_steps": 2},
        **changes,
    }
    return {"name": "small", "output": str(output), "seed": 3, "runtime": small_runs.RUNTIME, "stages": {"reward": stage}}


def run(values: dict[str, Any]) -> Path:
    """Run a recipe."""
    return Pipeline(recipe_from_dict(values), QUIET).run()


def model_of(run: Path, stage: str = "reward") -> Path:
    """The model directory of a finished stage."""
    return run / stage / json.loads((run / stage / "result.json").read_text())["model"]


def conversation(answer: str, question: str = QUESTION) -> list[dict[str, str]]:
    """A question with an answer."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def chain(start: Path, output: Path, **grpo: Any) -> dict[str, Any]:
    """A recipe that trains a reward model and then, from the same start, on its rewards."""
    values = tree(start, output)
    values["model"] = {"path": str(start / "model")}
    values["stages"]["reward"].pop("init_from")
    values["stages"]["grpo"] = {
        "data": {"train": str(start / "mixed.jsonl"), "validation": 0.25, "max_seq_len": 64},
        "rewards": [{"model": "reward", "weight": 1.0}],
        "rollout": {"max_new_tokens": 14, "num_generations": 4},
        "batch": {"micro_batch_size": 2, "gradient_accumulation_steps": 2},
        "optimizer": {"learning_rate": 1e-3},
        "duration": "4 steps",
        "evaluation": {"every_steps": 2},
        "checkpoint": {"every_steps": 2},
        **grpo,
    }
    return values
