"""A recipe small enough to train in a test: three stages, dropout, accumulation, several checkpoints."""

from pathlib import Path
from typing import Any

import yaml

from fledge.recipe import Recipe, recipe_from_dict
from fledge.world import Sizes, build

MODEL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 96, "dropout": 0.1,
}  # fmt: skip


def tree(world: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """The recipe as plain data; `world` is built if the folder does not exist."""
    if not world.exists():
        build(5, world, Sizes(pretrain=120, sft=150, preference=60, validation=24, questions=20))

    def stage(rows: str, length: str, **more: Any) -> dict[str, Any]:
        data = {"train": str(world / f"{rows}.jsonl"), "validation": str(world / f"{rows}.validation.jsonl"), "max_seq_len": 64}
        return {
            "data": data,
            "batch": {"micro_batch_size": 2, "gradient_accumulation_steps": 2},
            "optimizer": {"learning_rate": 1e-3},
            "duration": length,
            "evaluation": {"every_steps": 4, "max_packed_rows": 4},
            "checkpoint": {"every_steps": 3},
            **more,
        }

    return {
        "name": "tiny",
        "output": str(output),
        "seed": 3,
        "tokenizer": {"vocab_size": 400},
        "model": MODEL,
        "runtime": {"threads": 1, "compile": False, "precision": "fp32", "attention": "blocked"},
        "stages": {
            "pretrain": stage("pretrain", "8 steps"),
            "sft": stage("sft", "8 steps"),
            "dpo": stage("preference", "6 steps"),
        },
        "generation_samples": {"prompts": ["你是谁？"], "texts": ["A cat"], "max_new_tokens": 6},
        **changes,
    }


def recipe(world: Path, output: Path, **changes: Any) -> Recipe:
    """The recipe, validated."""
    return recipe_from_dict(tree(world, output, **changes))


def write(path: Path, values: dict[str, Any]) -> Path:
    """Write a recipe file."""
    path.write_text(yaml.safe_dump(values, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path
