"""Kill a small pretrain + SFT + DPO run at random moments, resume it, and compare every byte with one never killed.

Each trial starts a run of its own, kills the process with SIGKILL at a moment drawn uniformly over the run (data,
evaluation and saves included), resumes it, and compares final weights, optimizer state and step and eval events.

With `--processes N` the run is trained by N processes. One of them, drawn at random, is killed, and nobody resumes the run:
the launcher must restart all of them, and the results must equal those of N processes without a kill.
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

import psutil
import yaml
from measure import options, report

from fledge.world import Sizes, build

STAGES = ("pretrain", "sft", "dpo")
START_UP = 1.5  # seconds of importing, in which there is nothing to lose
WORKERS_UP = 4.0  # seconds of importing with several processes, which a launcher starts


def recipe(world: Path) -> dict:
    """A small recipe with dropout, accumulation, several checkpoints and evaluations."""

    def stage(rows: str, **more: object) -> dict:
        data = {"train": str(world / f"{rows}.jsonl"), "validation": str(world / f"{rows}.validation.jsonl"), "max_seq_len": 64}
        return {
            "data": data,
            "batch": {"micro_batch_size": 4, "gradient_accumulation_steps": 2},
            "optimizer": {"learning_rate": 1e-3},
            "evaluation": {"every_steps": 5, "max_packed_rows": 8},
            "checkpoint": {"every_steps": 3},
            **more,
        }

    return {
        "name": "run",
        "seed": 11,
        "tokenizer": {"vocab_size": 600},
        "model": {
            "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 96, "max_position_embeddings": 96, "dropout": 0.1,
        },
        "runtime": {"threads": 1, "compile": False, "precision": "fp32", "attention": "blocked"},
        "stages": {
            "pretrain": stage("pretrain", duration="80 steps"),
            "sft": stage("sft", duration="80 steps", early_stopping={"patience": 8}, select_checkpoint="best"),
            "dpo": stage("preference", duration="40 steps", kind="preference"),
        },
        "generation_samples": {"prompts": ["你是谁？"], "texts": ["A cat"], "max_new_tokens": 8},
    }  # fmt: skip


def start(folder: Path, resume: bool = False, cache: Path | None = None, processes: int = 1) -> subprocess.Popen:
    """Start training in one process or several, with its own cache if one is given."""
    command = [sys.executable, "-m", "fledge.cli", "train", str(folder / "recipe.yaml"), "--output", str(folder), "--quiet"]
    command += ["--processes", str(processes)]
    environment = os.environ if cache is None else {**os.environ, "FLEDGE_CACHE": str(cache)}
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen([*command, "--resume"] if resume else command, stdout=log, stderr=log, env=environment)


def finish(folder: Path, resume: bool = False, cache: Path | None = None, processes: int = 1) -> float:
    """Train to the end and return the seconds."""
    started = time.monotonic()
    if start(folder, resume, cache, processes).wait() != 0:
        raise SystemExit(f"training failed:\n{(folder / 'log.txt').read_text()}")
    return time.monotonic() - started


def fingerprint(folder: Path) -> dict[str, str]:
    """Hashes of all results that must be equal."""
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


def trial(base: Path, number: int, delay: float, expected: dict[str, str], compiled: bool) -> list[str]:
    """Kill a run and resume it: the names of differing results."""
    folder = base / f"trial-{number}"
    folder.mkdir()
    shutil.copy(base / "recipe.yaml", folder)
    cache = folder / "cache" if compiled else None
    process = start(folder, cache=cache)
    time.sleep(delay)
    process.kill()
    process.wait()
    last_checkpoint = reached(folder)
    finish(folder, resume=(folder / "run" / "recipe.yaml").exists(), cache=cache)
    return compared(folder, number, f"after {delay:.2f} s ({last_checkpoint})", expected)


def trial_of_one(
    base: Path, number: int, delay: float, *, victim: int, processes: int, expected: dict[str, str]
) -> list[str] | None:
    """Kill one of several processes and wait for the run: the names of differing results; None if no process was there to
    kill."""
    folder = base / f"trial-{number}"
    folder.mkdir()
    shutil.copy(base / "recipe.yaml", folder)
    starter = start(folder, processes=processes)
    time.sleep(delay)
    workers = sorted(psutil.Process(starter.pid).children(), key=lambda process: process.pid)
    last_checkpoint = reached(folder)
    if len(workers) == processes:
        workers[victim].kill()
    code = starter.wait()
    if len(workers) != processes:
        shutil.rmtree(folder)
        return None
    if code != 0:
        return [f"exit code {code}: {(folder / 'log.txt').read_text()[-500:]}"]
    return compared(folder, number, f"of process {victim} after {delay:.2f} s ({last_checkpoint})", expected)


def reached(folder: Path) -> str:
    """The path of the newest checkpoint."""
    checkpoints = sorted(str(path.relative_to(folder / "run")) for path in folder.glob("run/*/checkpoints/step-*"))
    return checkpoints[-1] if checkpoints else "before the first checkpoint"


def compared(folder: Path, number: int, what: str, expected: dict[str, str]) -> list[str]:
    """The names of differing results; the folder is removed."""
    actual = fingerprint(folder)
    differs = [name for name in expected if actual[name] != expected[name]]
    print(f"kill {number + 1} {what}: {differs if differs else 'identical'}", flush=True)
    shutil.rmtree(folder)
    return differs


def main() -> None:
    """Measure and print the results as one line of JSON."""
    parser = options(__doc__ or "")
    parser.add_argument("--kills", type=int, help="how often (default 10, with --quick 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--compiled", action="store_true", help="compile, in each trial anew, so that kills come in between")
    parser.add_argument("--processes", type=int, default=1, help="that train; above 1, one of them is killed")
    chosen = parser.parse_args()
    kills = chosen.kills or (2 if chosen.quick else 10)
    moments = random.Random(chosen.seed)
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        build(5, base / "world", Sizes(pretrain=600, sft=800, preference=200, validation=60, questions=20))
        tree = recipe(base / "world")
        tree["runtime"]["compile"] = chosen.compiled
        (base / "recipe.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True, sort_keys=False))
        uninterrupted = base / "whole"
        uninterrupted.mkdir()
        shutil.copy(base / "recipe.yaml", uninterrupted)
        seconds = finish(uninterrupted, cache=uninterrupted / "cache" if chosen.compiled else None, processes=chosen.processes)
        expected = fingerprint(uninterrupted)
        print(f"uninterrupted: {seconds:.1f} s", flush=True)
        differences: list[list[str]] = []
        while len(differences) < kills:
            if chosen.processes == 1:
                differences.append(trial(base, len(differences), moments.uniform(START_UP, seconds), expected, chosen.compiled))
                continue
            delay, victim = moments.uniform(WORKERS_UP, seconds), moments.randrange(chosen.processes)
            differs = trial_of_one(base, len(differences), delay, victim=victim, processes=chosen.processes, expected=expected)
            if differs is not None:
                differences.append(differs)
    bad = [differs for differs in differences if differs]
    values = {"kills": kills, "identical": kills - len(bad), "seconds_uninterrupted": round(seconds, 1), "different": bad}
    report({"processes": chosen.processes, "compiled": chosen.compiled, **values})
    if bad:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
