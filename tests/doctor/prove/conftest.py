"""A run whose learning rate is a hundredth of what it should be, and the sound rate."""

from pathlib import Path
from typing import Any

import pytest

from fledge.pipeline import Pipeline
from fledge.recipe import recipe_from_dict
from fledge.run import Console
from tests.support import tiny_run

SOUND_RATE = 1e-2


def tree(world: Path, output: Path, **stage: Any) -> dict[str, Any]:
    """A recipe of one stage of 40 updates on conversations."""
    values = tiny_run.tree(world, output)
    rows = {"train": str(world / "sft.jsonl"), "validation": str(world / "sft.validation.jsonl"), "max_seq_len": 96}
    own = {
        "kind": "sft", "data": rows, "batch": {"micro_batch_size": 4}, "optimizer": {"learning_rate": SOUND_RATE / 100},
        "duration": "40 steps", "schedule": {"warmup": 4, "min_lr": "10%"},
    }  # fmt: skip
    model = {**tiny_run.MODEL, "dropout": 0.0}
    return {**values, "name": "slow", "model": model, "generation_samples": {}, "stages": {"talk": {**own, **stage}}}


@pytest.fixture(scope="session")
def proof_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small generated world."""
    folder = tmp_path_factory.mktemp("proof") / "world"
    tiny_run.tree(folder, folder)
    return folder


@pytest.fixture(scope="session")
def slow_run(proof_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run with the rate that is too low."""
    return Pipeline(recipe_from_dict(tree(proof_world, tmp_path_factory.mktemp("runs"))), Console(quiet=True)).run()


@pytest.fixture(scope="session")
def repeated_run(proof_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one epoch whose first conversation stands in its data a hundred times."""
    folder = tmp_path_factory.mktemp("repeated")
    lines = (proof_world / "sft.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "rows.jsonl").write_text("\n".join([*lines, *lines[:1] * 100]) + "\n", encoding="utf-8")
    validation = str(proof_world / "sft.validation.jsonl")
    data = {
        "train": str(folder / "rows.jsonl"),
        "validation": validation,
        "max_seq_len": 96,
        "clean": {"exact_duplicates": False},
    }
    stage = tree(proof_world, folder, data=data, duration="1 epochs")
    return Pipeline(recipe_from_dict(stage), Console(quiet=True)).run()


@pytest.fixture(scope="session")
def two_stages(proof_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two stages, of which the first has three validation documents."""
    folder = tmp_path_factory.mktemp("two")
    lines = (proof_world / "pretrain.validation.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "three.jsonl").write_text("\n".join(lines[:3]) + "\n", encoding="utf-8")
    values = tree(proof_world, folder, duration="20 steps")
    data = {"train": str(proof_world / "pretrain.jsonl"), "validation": str(folder / "three.jsonl"), "max_seq_len": 96}
    texts = {"kind": "pretrain", "data": data, "batch": {"micro_batch_size": 4}, "duration": "4 steps"}
    recipe = recipe_from_dict({**values, "stages": {"texts": texts, **values["stages"]}})
    return Pipeline(recipe, Console(quiet=True)).run()
