"""The cost of guards, of the doctor that watches, and of checkpoints in a healthy run.

Guards: one small model on real text is trained twice for 2,000 steps, with the default guards and with all guards ignored
that can be. The guards must report nothing, and change no byte of weights, optimizer state, step events and eval events.

Doctor: the same model with `doctor: true` and with `doctor: false`. It must change no byte; its share of the time is that of
its phase in the `system` events (what the last look takes comes after them). The 300 steps of --quick are few, and it says so.

Checkpoints: a 26M model is trained with one checkpoint every 20 steps, and with none between the first step and the last, in
turns. The compared time is that between the end of the first update and the end of the last but one, by the clock of the run.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from measure import interleave, options, ratios, report
from real_runs import fledge, real_text

from fledge.run.events import read_events

SMALL = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 160,
    "max_position_embeddings": 128, "dropout": 0.1,
}  # fmt: skip
OFF = ("grad_spike", "loss_spike", "divergence", "validation_increase", "pass_rate", "repetition", "throughput")


def healthy(folder: Path, sources: list[dict[str, Any]], steps: int, guards: dict[str, Any], doctor: bool = True) -> Path:
    """Train a small model and return the directory of its stage."""
    stage = {
        "data": {"train": sources, "validation": "1%", "max_seq_len": 128},
        "batch": {"micro_batch_size": 8},
        "duration": f"{steps} steps",
        "optimizer": {"name": "adamw", "learning_rate": 3e-3},
        "schedule": {"warmup": 0.02},
        "guards": guards,
        "doctor": doctor,
        "evaluation": {"every_steps": 250, "max_packed_rows": 64},
        "checkpoint": {"every_steps": 250},
    }
    recipe = {
        "name": "run", "output": str(folder), "seed": 5, "tokenizer": {"vocab_size": 2048}, "model": SMALL,
        "stages": {"pretrain": stage}, "runtime": {"threads": 2, "compile": False, "precision": "fp32", "attention": "blocked"},
    }  # fmt: skip
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    fledge("train", str(folder / "recipe.yaml"), "--quiet")
    return folder / "run" / "pretrain"


def fingerprint(stage: Path) -> dict[str, str]:
    """Hashes of all that guards must not change."""
    last = stage / "checkpoints" / "last"
    files = (last / "model" / "model.safetensors", last / "state" / "optimizer.safetensors")
    marks = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    lines = [event for event in read_events(stage / "events.jsonl") if event["kind"] in ("step", "eval")]
    return {**marks, "events": hashlib.sha256(json.dumps(lines).encode()).hexdigest()}


def guards(base: Path, quick: bool) -> dict[str, Any]:
    """Train with guards and without: alarms, and whether the results are identical."""
    steps, sources = 200 if quick else 2000, real_text(quick)
    with_them = healthy(base / "with", sources, steps, {})
    without = healthy(base / "without", sources, steps, {name: {"action": "ignore"} for name in OFF})
    reports = [event for event in read_events(with_them / "events.jsonl") if event["kind"] in ("guard", "alert")]
    steps_done = sum(event["kind"] == "step" for event in read_events(with_them / "events.jsonl"))
    return {
        "steps": steps_done,
        "alarms": len(reports),
        "identical": fingerprint(with_them) == fingerprint(without),
        "reports": reports,
    }


def doctor(base: Path, quick: bool) -> dict[str, Any]:
    """Train with the doctor and without: what it found, whether the results are identical, and its share of the time."""
    steps, sources = 300 if quick else 4000, real_text(quick)
    folders: dict[bool, list[Path]] = {True: [], False: []}

    def run(watched: bool) -> float:
        folders[watched].append(healthy(base / f"{watched}-{len(folders[watched])}", sources, steps, {}, watched))
        clock = [e["system/seconds"] for e in read_events(folders[watched][-1] / "events.jsonl") if e["kind"] == "system"]
        return clock[-1]

    seconds = interleave({"watched": lambda: run(True), "not watched": lambda: run(False)}, 1 if quick else 3)
    shares, found = [], []
    for folder in folders[True]:
        events = list(read_events(folder / "events.jsonl"))
        system = [event for event in events if event["kind"] == "system"]
        shares.append(sum(event["system/phases"].get("doctor", 0.0) for event in system) / system[-1]["system/seconds"])
        found += [event for event in events if event["kind"] == "finding"]
    return {
        "steps": steps,
        "share": [round(share, 5) for share in shares],
        "ratio": ratios(seconds["watched"], seconds["not watched"]),
        "findings": [event["cause"] for event in found],
        "identical": fingerprint(folders[True][0]) == fingerprint(folders[False][0]),
    }


def saving(base: Path, quick: bool) -> dict[str, Any]:
    """Train with frequent checkpoints and without: the ratio of their times, and the seconds of each save."""
    steps, every = (8, 4) if quick else (42, 20)
    context = 128 if quick else 512
    stage = {
        "data": {"train": real_text(quick), "max_seq_len": context},
        "batch": {"micro_batch_size": 4 if quick else 16},
        "duration": f"{steps} steps",
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        "evaluation": {"every_steps": 1000},
        "schedule": {"warmup": 2},
    }
    recipe = {
        "name": "run", "seed": 5, "preset": "26m", "tokenizer": {"vocab_size": 6400}, "stages": {"pretrain": stage},
        "logging": {"every_steps": 1000},
    }  # fmt: skip
    file = base / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    fledge("data", "build", str(file), "--out", str(base / "built"))
    written: list[float] = []

    def run(interval: int) -> float:
        output = base / "runs"
        shutil.rmtree(output, ignore_errors=True)
        command = ["train", str(file), "--built_dataset", str(base / "built"), "--output", str(output), "--quiet"]
        command += ["--stages.pretrain.checkpoint.every_steps", str(interval)]
        subprocess.run([sys.executable, "-m", "fledge.cli", *command], check=True, stdout=subprocess.DEVNULL)
        events = list(read_events(output / "run" / "pretrain" / "events.jsonl"))
        clock = {event["step"]: event["system/seconds"] for event in events if event["kind"] == "system"}
        written.extend(event["seconds"] for event in events if event["kind"] == "checkpoint" and 0 < event["step"] < steps)
        return clock[steps - 1] - clock[1]

    seconds = interleave({"saving": lambda: run(every), "not saving": lambda: run(10 * steps)}, 1 if quick else 3)
    return {
        "every": every,
        "ratio": ratios(seconds["saving"], seconds["not saving"]),
        "seconds_of_a_save": [round(s, 2) for s in written],
    }


def main() -> None:
    """Measure and print the results as one line of JSON."""
    parser = options(__doc__ or "")
    parser.add_argument("--only", choices=("guards", "doctor", "saving"), help="one of them")
    chosen = parser.parse_args()
    values: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for measure_costs in (guards, doctor, saving):
            if chosen.only in (None, measure_costs.__name__):
                (Path(name) / measure_costs.__name__).mkdir()
                values[measure_costs.__name__] = measure_costs(Path(name) / measure_costs.__name__, chosen.quick)
                print(json.dumps(values), flush=True)
    report(values)


if __name__ == "__main__":
    main()
