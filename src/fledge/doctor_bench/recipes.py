"""The recipe of a healthy run of a shape in a group."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fledge.doctor_bench.group_folder import GroupFolder
from fledge.doctor_bench.setup import RunSetup
from fledge.doctor_bench.shapes import CONTEXT, SHAPES, T5_SIZES, Shape

RUNTIME: dict[str, Any] = {"threads": 1, "compile": False, "precision": "fp32", "attention": "sdpa"}
NO_CLEANING: dict[str, Any] = {"exact_duplicates": False, "decontaminate": False, "min_tokens": 0}
"""The rows of a group are clean. What a condition spoils in them is not to be mended."""

EVALUATIONS, CHECKPOINTS, KEEP = 5, 2, 1000  # of a stage, besides the start; all checkpoints are kept
VALIDATION_PACKED_ROWS = 32


def healthy_setup(group: GroupFolder, shape_name: str, seed: int, folder: Path) -> RunSetup:
    """The setup of a healthy run; `folder` gets the run directory and the run's own files."""
    shape = replace(SHAPES[shape_name], steps=group.group.steps.get(shape_name, SHAPES[shape_name].steps))
    recipe = {
        "name": "run",
        "output": str(folder),
        "seed": seed,
        "tokenizer": {"path": str(group.tokenizer(shape.is_encoder_decoder))},
        "runtime": RUNTIME,
        "logging": {"every_steps": 5},
        "stages": {shape_name: _stage(group, shape)},
        **_model(group, shape, folder),
    }
    return RunSetup(
        recipe=recipe,
        stage_name=shape_name,
        shape=shape_name,
        folder=folder,
        tokenizer=group.tokenizer(shape.is_encoder_decoder),
        seed=seed,
        steps=shape.steps,
        rate=group.rate(shape_name),
    )


def _model(group: GroupFolder, shape: Shape, folder: Path) -> dict[str, Any]:
    """The section `model` of the recipe: sizes, a start model, or the sizes of an encoder–decoder."""
    if shape.start is not None:
        return {"model": {"path": str(group.start(shape.start))}}
    if not shape.is_encoder_decoder:
        return {"model": {**group.group.model, **shape.model}}
    config = folder / "t5"
    config.mkdir(parents=True, exist_ok=True)
    (config / "config.json").write_text(json.dumps(T5_SIZES), encoding="utf-8")
    return {"model": {"config": str(config)}}


def _stage(group: GroupFolder, shape: Shape) -> dict[str, Any]:
    stage: dict[str, Any] = {
        "kind": shape.kind,
        "data": {
            "train": str(group.rows(shape.rows)),
            "validation": str(group.rows(shape.rows, "validation")),
            "max_seq_len": CONTEXT,
            "clean": dict(NO_CLEANING),
        },
        "batch": {"micro_batch_size": shape.micro_batch_rows, "gradient_accumulation_steps": shape.accumulation},
        "optimizer": {"name": "adamw", "learning_rate": shape.rate},
        "schedule": {"name": "cosine", "warmup": 0.1, "min_lr": "10%"},
        "duration": f"{shape.steps} steps",
        "evaluation": {
            "every_steps": max(4, shape.steps // EVALUATIONS),
            "max_packed_rows": VALIDATION_PACKED_ROWS,
            "verdict": {"roll_back": False},
        },
        "checkpoint": {"every_steps": shape.steps // CHECKPOINTS, "keep_last": KEEP},
    }
    more = {key: _copied(value) for key, value in shape.stage.items()}
    return {**stage, **more}


def _copied(value: Any) -> Any:
    return json.loads(json.dumps(value)) if isinstance(value, Mapping | list) else value
