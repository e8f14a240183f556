"""How good the settings are that `fledge tune` finds, on tasks with which its rules were not made.

Learning rate: the stage is trained whole at the rate that `fledge tune --what lr` finds, and at a grid of seven rates, each
twice the one before, around the rate that fledge derives. `error`: the final validation loss of the found rate ÷ the lowest of
the grid − 1; `cost`: optimizer steps of the search ÷ those of the grid. Length: the loss that `fledge tune --what duration`
expects of the whole stage, against the whole stage. Width: where the stage is the first one, the rate is also searched with a
model of half the width (`--width`), and the stage trained whole at what that gives. Losses do not depend on how busy the
machine is. The last line is JSON.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from measure import data_folder, options, report

GRID, SEED = 7, 5
WORLD_ROWS = 60_000  # as in the quickstart, each text is read once
SMALL = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 1}
SMALL |= {"intermediate_size": 256}
MIDDLE = {**SMALL, "hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 344}


def stage(train: str | dict[str, Any], kind: str, steps: int, optimizer: str, validation: str = "5%") -> dict[str, Any]:
    """A stage whose rate fledge derives."""
    return {
        "kind": kind, "data": {"train": train, "validation": validation, "max_seq_len": 256}, "duration": f"{steps} steps",
        "batch": {"micro_batch_size": 8}, "optimizer": {"name": optimizer, "learning_rate": "auto"},
        "schedule": {"min_lr": "5%"}, "checkpoint": {"keep_last": 1}, "evaluation": {"every_steps": steps},
        "select_checkpoint": "last",
    }  # fmt: skip


def tasks(world: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """By name: the model and the stages; the last stage is searched."""
    real = data_folder()
    found = {
        "quickstart world, pretraining with Muon": (
            MIDDLE,
            {"x": stage(str(world / "pretrain.jsonl"), "pretrain", 640, "muon", str(world / "pretrain.validation.jsonl"))},
        ),
    }
    if real.is_dir():
        poems = stage({"path": str(real / "poetry"), "columns": {"text": "paragraphs"}}, "pretrain", 640, "muon")
        answers = {"path": str(real / "chatlm/my_train_dataset_3k.parquet"), "columns": {"text": "response"}}
        base = stage(answers, "pretrain", 300, "adamw")
        found["Tang poems, pretraining with Muon"] = (MIDDLE, {"x": poems})
        found["ChatLM answers, SFT with AdamW"] = (
            SMALL, {"base": base, "x": stage(str(real / "chatlm/my_train_dataset_3k.parquet"), "sft", 480, "adamw")},
        )  # fmt: skip
    return found


def fledge(*arguments: object) -> None:
    """Run a command of fledge; what it says goes to the error stream."""
    command = [sys.executable, "-m", "fledge.cli", *map(str, arguments)]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr.fileno(), stderr=sys.stderr.fileno())


def final_loss(folder: Path, name: str, recipe: Path, stage_name: str, *more: object) -> float:
    """The validation loss of a whole run."""
    fledge("train", recipe, "--name", name, "--output", folder / "runs", "--quiet", *more)
    return json.loads((folder / "runs" / name / stage_name / "eval/after.json").read_text(encoding="utf-8"))["loss"]


def try_task(name: str, folder: Path, world: Path) -> dict[str, Any]:
    """The rate and the length found for a task, and how good they are."""
    model, stages = tasks(world)[name]
    recipe = folder / "task.yaml"
    tree = {"name": "task", "output": str(folder / "runs"), "seed": SEED, "model": model, "stages": stages,
            "tokenizer": {"vocab_size": 2048}, "generation_samples": {}, "runtime": {"compile": False}}  # fmt: skip
    recipe.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    last = list(stages)[-1]
    fledge("tune", recipe, "--what", "lr", "--out", folder / "lr", "--quiet")
    fledge("tune", recipe, "--what", "duration", "--out", folder / "duration", "--quiet")
    found = json.loads((folder / "lr/tune.json").read_text(encoding="utf-8"))["figures"]
    law = json.loads((folder / "duration/tune.json").read_text(encoding="utf-8"))["figures"]
    key = f"--stages.{last}.optimizer.learning_rate"
    plain = final_loss(folder, "plain", recipe, last)
    rate = json.loads((folder / "runs/plain" / last / "plan.json").read_text(encoding="utf-8"))["learning_rate"]
    grid = {}
    for power in range(-(GRID // 2), GRID // 2 + 1):
        one = rate * 2.0**power
        grid[one] = final_loss(folder, f"grid{power}", recipe, last, key, f"{one:.5g}") if power else plain
    best = min(grid.values())
    tuned = final_loss(folder, "tuned", recipe, last, key, f"{found['rate']:.5g}")
    expected = law["predicted"]
    return {
        "task": name, "grid": {f"{one:.3g}": round(loss, 4) for one, loss in grid.items()}, "rate": found["rate"],
        "loss": round(tuned, 4), "error": round(tuned / best - 1, 4),
        "cost": round(found["cost_in_runs"] / GRID, 3),
        "expected": None if expected is None else [round(value, 4) for value in expected],
        "whole": round(plain, 4), "length_error": None if expected is None else round(expected[0] / plain - 1, 4),
        "inside": None if expected is None else expected[1] <= plain <= expected[2],
        **({} if len(stages) > 1 else transferred(folder, recipe, model, last, best)),
    }  # fmt: skip


def transferred(folder: Path, recipe: Path, model: dict[str, Any], last: str, best: float) -> dict[str, Any]:
    """The rate that a model of half the width gives, and how far the whole stage ends above the best of the grid with it."""
    width = model["hidden_size"] // 2
    fledge("tune", recipe, "--what", "lr", "--width", width, "--out", folder / "narrow", "--quiet")
    rate = json.loads((folder / "narrow/tune.json").read_text(encoding="utf-8"))["figures"]["rate"]
    loss = final_loss(folder, "transferred", recipe, last, f"--stages.{last}.optimizer.learning_rate", f"{rate:.5g}")
    return {"narrow": width, "narrow_rate": rate, "narrow_error": round(loss / best - 1, 4)}


def main() -> None:
    """Try the tasks one after another."""
    parser = options(__doc__ or "")
    parser.add_argument("--only", default="", help="part of the name of a task")
    chosen = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as base:
        world = Path(base) / "world"
        fledge("data", "make", "world", "--out", world, "--rows", WORLD_ROWS, "--seed", str(SEED))
        names = [name for name in tasks(world) if chosen.only in name][: 1 if chosen.quick else None]
        for name in names:
            folder = Path(base) / f"task{len(rows)}"
            folder.mkdir()
            rows.append(try_task(name, folder, world))
            print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    errors = [row["error"] for row in rows]
    report({"tasks": len(rows), "worst_error": max(errors), "median_error": round(statistics.median(errors), 4),
            "highest_cost": max(row["cost"] for row in rows)})  # fmt: skip


if __name__ == "__main__":
    main()
