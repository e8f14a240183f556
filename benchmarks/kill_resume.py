"""Kill a small pretrain + SFT + DPO run at random moments, resume it, and compare every byte with one never killed.

Each trial starts a run of its own, kills the process with SIGKILL at a moment drawn uniformly over the run (data,
evaluation and saves included), resumes it, and compares final weights, optimizer state and step and eval events.
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from measure import options, report

from fledge.world import Sizes, build

STAGES = ("pretrain", "sft", "dpo")
START_UP = 1.5  # seconds of importing, in which there is nothing to lose


def recipe(world: Path) -> dict:
    """Small, with dropout, accumulation, several checkpoints and evaluations."""

    def stage(rows: str, **more: object) -> dict:
        data = {"train": str(world / f"{rows}.jsonl"), "validation": str(world / f"{rows}.validation.jsonl"), "context": 64}
        return {
            "data": data, "batch": {"micro": 4, "accumulation": 2}, "optimizer": {"lr": 1e-3},
            "evaluation": {"every": 5, "max_rows": 8}, "checkpoint": {"every": 3}, **more,
        }  # fmt: skip

    return {
        "name": "run",
        "seed": 11,
        "tokenizer": {"vocab_size": 600},
        "model": {
            "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 96, "max_position_embeddings": 96, "dropout": 0.1,
        },
        "machine": {"threads": 1, "compile": False, "precision": "fp32", "attention": "blocked"},
        "stages": {
            "pretrain": stage("pretrain", length="80 steps"),
            "sft": stage("sft", length="80 steps", early_stop={"patience": 8}, keep="best"),
            "dpo": stage("preference", length="40 steps", kind="preference"),
        },
        "samples": {"prompts": ["你是谁？"], "texts": ["A cat"], "max_new_tokens": 8},
    }  # fmt: skip


def start(folder: Path, resume: bool = False, cache: Path | None = None) -> subprocess.Popen:
    """Train in a process of its own; with a cache of its own, if it is given."""
    command = [sys.executable, "-m", "fledge.cli", "train", str(folder / "recipe.yaml"), "--output", str(folder), "--quiet"]
    environment = os.environ if cache is None else {**os.environ, "FLEDGE_CACHE": str(cache)}
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen([*command, "--resume"] if resume else command, stdout=log, stderr=log, env=environment)


def finish(folder: Path, resume: bool = False, cache: Path | None = None) -> float:
    """Train to the end; the seconds that took."""
    started = time.monotonic()
    if start(folder, resume, cache).wait() != 0:
        raise SystemExit(f"training failed:\n{(folder / 'log.txt').read_text()}")
    return time.monotonic() - started


def fingerprint(folder: Path) -> dict[str, str]:
    """Hashes of all that must be equal."""
    marks = {}
    for stage in STAGES:
        root = folder / "run" / stage
        last = root / "checkpoints" / "last"
        for file in (last / "model" / "model.safetensors", last / "state" / "optimizer.safetensors"):
            marks[f"{stage}/{file.name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
        lines = (root / "events.jsonl").read_text(encoding="utf-8").splitlines()
        kept = "\n".join(line for line in lines if json.loads(line)["kind"] in ("step", "eval", "stop"))
        marks[f"{stage}/events"] = hashlib.sha256(kept.encode()).hexdigest()
    return marks


def trial(base: Path, number: int, delay: float, expected: dict[str, str]) -> list[str]:
    """One kill; returns what differs."""
    folder = base / f"trial-{number}"
    folder.mkdir()
    shutil.copy(base / "recipe.yaml", folder)
    process = start(folder, resume=False)
    time.sleep(delay)
    process.kill()
    process.wait()
    reached = sorted(str(path.relative_to(folder / "run")) for path in folder.glob("run/*/checkpoints/step-*"))
    finish(folder, resume=(folder / "run" / "recipe.yaml").exists())
    found = fingerprint(folder)
    differs = [name for name in expected if found[name] != expected[name]]
    where = reached[-1] if reached else "before the first checkpoint"
    print(f"kill {number + 1} after {delay:.2f} s ({where}): {differs if differs else 'identical'}", flush=True)
    shutil.rmtree(folder)
    return differs


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--kills", type=int, help="how often (default 10, with --quick 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    chosen = parser.parse_args()
    kills = chosen.kills or (2 if chosen.quick else 10)
    moments = random.Random(chosen.seed)
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        build(5, base / "world", Sizes(pretrain=600, sft=800, preference=200, validation=60, questions=20))
        (base / "recipe.yaml").write_text(yaml.safe_dump(recipe(base / "world"), allow_unicode=True, sort_keys=False))
        whole = base / "whole"
        whole.mkdir()
        shutil.copy(base / "recipe.yaml", whole)
        seconds = finish(whole)
        expected = fingerprint(whole)
        print(f"uninterrupted: {seconds:.1f} s", flush=True)
        bad = [differs for i in range(kills) if (differs := trial(base, i, moments.uniform(START_UP, seconds), expected))]
    report({"kills": kills, "identical": kills - len(bad), "seconds_uninterrupted": round(seconds, 1), "different": bad})
    if bad:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
