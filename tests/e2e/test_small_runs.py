"""Runs so small that the losses of two batches differ by several nats: no guard ends a healthy one, each finds a mad one."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from fledge.errors import FledgeError
from fledge.pipeline import Pipeline
from fledge.recipe import recipe_from_dict
from fledge.run import Console
from tests.support.run_directory import events

QUIET = Console(quiet=True)


def dialogue(question: str, answer: str) -> dict[str, Any]:
    """A row of one question and its answer."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def half_known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 60 dialogues in `mixed.jsonl`, and a model in `model` that knows half of them by heart."""
    folder = tmp_path_factory.mktemp("small")
    draw = random.Random(5)
    known = [dialogue(f"Hello number {n}!", "Finn keeps it by the lake.") for n in range(90)]
    codes = [
        dialogue(f"What is the code of box {n}?", " ".join(str(draw.randrange(1000, 9999)) for _ in range(6)))
        for n in range(30)
    ]
    mixed = known[:30] + codes
    draw.shuffle(mixed)
    write_jsonl(folder / "known.jsonl", known)
    write_jsonl(folder / "mixed.jsonl", mixed)
    stage = {
        "kind": "sft", "data": {"train": str(folder / "known.jsonl"), "max_seq_len": 64, "validation": 0},
        "batch": {"micro_batch_size": 8}, "optimizer": {"learning_rate": 5e-3}, "duration": "8 epochs",
    }  # fmt: skip
    model = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 64,
    }  # fmt: skip
    tree = {"name": "start", "output": str(folder), "tokenizer": {"vocab_size": 400}, "model": model, "stages": {"sft": stage}}
    run = Pipeline(recipe_from_dict({**tree, "runtime": RUNTIME}), QUIET).run()
    (folder / "model").symlink_to((run / "sft" / "checkpoints" / "last").resolve() / "model")
    return folder


RUNTIME = {"threads": 1, "compile": False, "precision": "fp32", "attention": "sdpa"}


def fine_tune(folder: Path, output: Path, batch: int, rate: float, seed: int) -> Path:
    """One epoch of SFT on the rows that are half known; returns the run directory."""
    stage = {
        "kind": "sft", "init_from": str(folder / "model"),
        "data": {"train": str(folder / "mixed.jsonl"), "max_seq_len": 64, "validation": "5%"},
        "batch": {"micro_batch_size": batch}, "optimizer": {"learning_rate": rate}, "duration": "1 epochs",
    }  # fmt: skip
    tree = {"name": "tuned", "output": str(output), "seed": seed, "runtime": RUNTIME, "stages": {"sft": stage}}
    return Pipeline(recipe_from_dict(tree), QUIET).run()


@pytest.mark.parametrize(("batch", "rate", "seed"), [(1, 1e-4, 1), (1, 2e-3, 2), (2, 1e-3, 3), (8, 3e-4, 4)])
def test_a_healthy_small_run_is_neither_stopped_nor_rolled_back(
    half_known: Path, tmp_path: Path, batch: int, rate: float, seed: int
) -> None:
    run = fine_tune(half_known, tmp_path, batch, rate, seed)
    losses = [event["train/loss"] for event in events(run, "sft", "step")]
    if batch == 1:
        assert max(losses) - min(losses) > 3, "the rows should differ as much as half-known rows do"
    assert not events(run, "sft", "guard")


def test_a_mad_learning_rate_is_found_at_the_update_it_begins_with(half_known: Path, tmp_path: Path) -> None:
    with pytest.raises(FledgeError, match=r"training diverged: .* 3 rollbacks did not help") as caught:
        fine_tune(half_known, tmp_path, batch=4, rate=10.0, seed=1)
    assert "rows" not in (caught.value.hint or ""), "no rows are named, so the hint must not speak of them"
    first = events(tmp_path / "tuned", "sft", "guard")[0]
    assert first["check"] == "divergence" and first["first_bad_step"] <= 3
