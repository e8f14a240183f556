"""Guards in small healthy runs: how many are stopped or rolled back, and how many mad ones are caught.

A tiny model first learns 150 dialogues by heart. Then it is trained on data of which it knows a half already, so that the
losses of small batches jump between 0 and 8 nats: SFT, pretraining and DPO with batches of 1 to 16 rows, rates from 1e-4 to
2e-3 and several seeds. None of these runs may be stopped or rolled back. The mad runs are the same with a rate of 0.3 or 1.
`mad_missed`: those that no guard rolled back although their last losses are more than 1 nat above their first ones (many of
them recover). `mad_delay_steps`: the most updates from the lowest smoothed loss to the first trigger.
"""

import itertools
import json
import random
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from measure import options, report

from fledge.errors import FledgeError
from fledge.pipeline import Pipeline
from fledge.recipe import recipe_from_dict
from fledge.run import Console
from fledge.run.events import read_events

MODEL = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 160,
    "max_position_embeddings": 128,
}  # fmt: skip
RUNTIME = {"precision": "fp32", "compile": False, "attention": "sdpa", "threads": 1}
BATCHES, RATES, MAD_RATES = (1, 2, 4, 8, 16), (1e-4, 3e-4, 1e-3, 2e-3), (0.3, 1.0)
SEEDS = {"sft": 4, "pretrain": 3, "preference": 3}
ENDING = ("stop", "rollback")


def _dialogue(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_data(folder: Path, rows: int, seed: int = 7) -> None:
    """Write the known dialogues and, for each kind of stage, rows of which half are known."""
    draw = random.Random(seed)
    known = [(f"Hello number {number}!", "Finn keeps it by the lake.") for number in range(150)]
    codes = [
        (f"What is the code of box {number}?", " ".join(str(draw.randrange(1000, 9999)) for _ in range(6)))
        for number in range(150)
    ]
    half = draw.sample(known, rows // 2) + draw.sample(codes, rows // 2)
    draw.shuffle(half)
    kinds = {
        "known": [_dialogue(*pair) for pair in known],
        "sft": [_dialogue(*pair) for pair in half],
        "pretrain": [{"text": f"{question} {answer}"} for question, answer in half],
        "preference": [
            {"prompt": question, "chosen": answer, "rejected": "I do not say it."} for question, answer in half
        ],
    }  # fmt: skip
    for name, items in kinds.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")


def train_start_model(folder: Path) -> Path:
    """A model that knows the known dialogues by heart; returns its directory."""
    stage = {
        "kind": "sft", "data": {"train": str(folder / "known.jsonl"), "max_seq_len": 64, "validation": 0},
        "batch": {"micro_batch_size": 8}, "optimizer": {"learning_rate": 3e-3}, "duration": "8 epochs",
    }  # fmt: skip
    recipe = {
        "name": "start", "output": str(folder), "seed": 1, "tokenizer": {"vocab_size": 400}, "model": MODEL,
        "runtime": RUNTIME, "stages": {"sft": stage},
    }  # fmt: skip
    return Pipeline(recipe_from_dict(recipe), Console(quiet=True)).run() / "sft" / "checkpoints" / "last" / "model"


def outcome(folder: Path, start: Path, kind: str, batch: int, rate: float, seed: int) -> tuple[str, list[dict[str, Any]]]:
    """Train one run; returns how it ended ("done" or the error) and its events, those of abandoned steps first."""
    stage = {
        "kind": kind, "init_from": str(start),
        "data": {"train": str(folder / f"{kind}.jsonl"), "max_seq_len": 64, "validation": "5%"},
        "batch": {"micro_batch_size": batch}, "optimizer": {"learning_rate": rate}, "duration": "1 epochs",
        "evaluation": {"max_packed_rows": 8},
    }  # fmt: skip
    name = f"{kind}-{batch}-{rate:g}-{seed}"
    recipe = {"name": name, "output": str(folder), "seed": seed, "runtime": RUNTIME, "stages": {"stage": stage}}
    ended = "done"
    try:
        Pipeline(recipe_from_dict(recipe), Console(quiet=True)).run()
    except FledgeError as error:
        ended = error.what
    files = sorted((folder / name / "stage").glob("events.rolled_back.*.jsonl"))
    return ended, [event for file in [*files, folder / name / "stage" / "events.jsonl"] for event in read_events(file)]


def acting(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The guard events that stop a run or roll it back."""
    return [event for event in events if event["kind"] == "guard" and event["action"] in ENDING]


def has_risen(events: list[dict[str, Any]]) -> bool:
    """Whether the last quarter of the losses is more than 1 nat above the first quarter."""
    losses = [event["train/loss"] for event in events if event["kind"] == "step"]
    quarter = max(1, len(losses) // 4)
    return statistics.fmean(losses[-quarter:]) > statistics.fmean(losses[:quarter]) + 1


def main() -> None:
    """Train all runs and print the counts."""
    chosen = options(__doc__ or "").parse_args()
    batches, rates = (BATCHES[::2], RATES[::3]) if chosen.quick else (BATCHES, RATES)
    started, counts, warnings = time.perf_counter(), Counter[str](), Counter[str]()
    ended, missed, delays = list[str](), list[str](), list[int]()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_data(folder, 60 if chosen.quick else 200)
        start = train_start_model(folder)
        for kind, seeds in SEEDS.items():
            for batch, rate, seed in itertools.product(batches, rates, range(1, 2 if chosen.quick else seeds + 1)):
                how, events = outcome(folder, start, kind, batch, rate, seed)
                counts[kind] += 1
                warnings.update(event["check"] for event in events if event["kind"] == "guard" and event["action"] == "warn")
                if how != "done" or acting(events):
                    ended.append(f"{kind}, batch {batch}, rate {rate:g}, seed {seed}: {how}")
        mad = [(kind, batch, rate) for kind in SEEDS for batch in batches for rate in MAD_RATES]
        for kind, batch, rate in mad:
            _, events = outcome(folder, start, kind, batch, rate, 99)
            delays += [event["step"] - event["first_bad_step"] + 1 for event in acting(events)[:1]]
            if not acting(events) and has_risen(events):
                missed.append(f"{kind}, batch {batch}, rate {rate:g}")
    report(
        {
            "benchmark": "healthy_runs",
            "runs": dict(counts),
            "total": sum(counts.values()),
            "stopped_or_rolled_back": len(ended),
            "which": ended,
            "warnings": dict(warnings),
            "mad_runs": len(mad),
            "mad_caught": len(delays),
            "mad_missed": missed,
            "mad_delay_steps": max(delays, default=None),
            "seconds": round(time.perf_counter() - started, 1),
        }
    )


if __name__ == "__main__":
    main()
