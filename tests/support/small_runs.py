"""Runs of a few seconds on dialogues of which a tiny model knows a half by heart."""

import atexit
import json
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from fledge.pipeline import Pipeline
from fledge.recipe import recipe_from_dict
from fledge.run import Console

RUNTIME = {"threads": 1, "compile": False, "precision": "fp32", "attention": "sdpa"}
MODEL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 64,
}  # fmt: skip
KNOWN_ANSWER = "Finn keeps it by the lake."


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def dialogue(question: str, answer: str) -> dict[str, Any]:
    """A row of one question and its answer."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_rows(folder: Path) -> None:
    """Write `known.jsonl` (90 greetings with one answer), `codes.jsonl` (60 questions for four random numbers), `mixed.jsonl`
    (30 of each), `few.jsonl` and `others.jsonl` (8 codes, and the others), `pairs.jsonl` (60 preferences for that answer)."""
    draw = random.Random(5)
    known = [dialogue(f"Hello number {n}!", KNOWN_ANSWER) for n in range(90)]
    codes = [
        dialogue(f"What is the code of box {n}?", " ".join(str(draw.randrange(1000, 9999)) for _ in range(4)))
        for n in range(60)
    ]
    mixed = known[:30] + codes[:30]
    draw.shuffle(mixed)
    pairs = [{"prompt": f"Hello number {n}!", "chosen": KNOWN_ANSWER, "rejected": f"It is box {n}."} for n in range(60)]
    files = {"known": known, "codes": codes, "few": codes[:8], "others": codes[8:], "mixed": mixed, "pairs": pairs}
    for name, rows in files.items():
        write_jsonl(folder / f"{name}.jsonl", rows)


def train(output: Path, stage: dict[str, Any], console: Console | None = None, **more: Any) -> Path:
    """Train one stage, named as its kind; returns the run directory. `more`: keys of the recipe."""
    data = {"max_seq_len": 64, **stage["data"]}
    tree = {"name": "small", "output": str(output), "seed": 3, "runtime": RUNTIME, **more}
    recipe = recipe_from_dict({**tree, "stages": {stage["kind"]: {**stage, "data": data}}})
    return Pipeline(recipe, console or Console(quiet=True)).run()


def start_model(folder: Path) -> Path:
    """Write the rows, and give the directory of a model that is trained on the known dialogues: by the first call, for all."""
    write_rows(folder)
    return _start_model()


@cache
def _start_model() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fledge-start-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_rows(folder)
    stage = {
        "kind": "sft", "data": {"train": str(folder / "known.jsonl"), "validation": 0},
        "batch": {"micro_batch_size": 8}, "optimizer": {"learning_rate": 5e-3}, "duration": "8 epochs",
    }  # fmt: skip
    run = train(folder, stage, name="start", tokenizer={"vocab_size": 400}, model=MODEL)
    return (run / "sft" / "checkpoints" / "last").resolve() / "model"
