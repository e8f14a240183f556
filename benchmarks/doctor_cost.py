"""What an examination by the doctor costs: curves of a log of 100,000 steps, and all depths of a run.

The log is made up: a loss that falls with noise, the schedule's rate, gradient norms, and an evaluation every 500 steps. It is
written as JSON lines, as `trainer_state.json`, as CSV and as plain text, and `fledge doctor` reads each in a process of its
own: the seconds are those of the whole command, imports among them, by the clock and by the processor. With `--run`, the
directory of a run of fledge is examined to all depths. What watching costs is measured by guards_overhead.py --only doctor.
"""

import csv
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from measure import options, report

Row = dict[str, float]
PEAK, WARMUP, EVERY = 1e-3, 0.02, 500


def rows(steps: int) -> list[Row]:
    """One row for each step; those with an evaluation have `eval_loss` too."""
    draw, found = random.Random(1), []
    for step in range(1, steps + 1):
        share = step / steps
        loss = 2.5 + 6.5 / (1 + step / 300) ** 0.5 + draw.gauss(0, 0.05)
        rate = PEAK * min(1.0, share / WARMUP) * (0.55 + 0.45 * math.cos(math.pi * share))
        row = {
            "step": step,
            "epoch": share,
            "loss": round(loss, 4),
            "learning_rate": rate,
            "grad_norm": abs(draw.gauss(1, 0.2)),
        }
        if step % EVERY == 0:
            row["eval_loss"] = round(2.6 + 6.5 / (1 + step / 300) ** 0.5 + draw.gauss(0, 0.005), 4)
        found.append(row)
    return found


def as_json_lines(file: Path, log: Sequence[Row]) -> None:
    """One JSON object a line."""
    file.write_text("".join(json.dumps(row) + "\n" for row in log), encoding="utf-8")


def as_trainer_state(file: Path, log: Sequence[Row]) -> None:
    """As the Trainer of Hugging Face saves it."""
    history = [{name: value for name, value in row.items() if name != "eval_loss"} for row in log]
    history += [{name: row[name] for name in ("step", "epoch", "eval_loss")} for row in log if "eval_loss" in row]
    state = {"global_step": len(log), "max_steps": len(log), "log_history": sorted(history, key=lambda row: row["step"])}
    file.write_text(json.dumps(state), encoding="utf-8")


def as_csv(file: Path, log: Sequence[Row]) -> None:
    """A table with a heading."""
    with file.open("w", newline="", encoding="utf-8") as output:
        writer = csv.DictWriter(output, fieldnames=[*log[0], "eval_loss"])
        writer.writeheader()
        writer.writerows(log)


def as_text(file: Path, log: Sequence[Row]) -> None:
    """Lines as a console shows them."""
    with file.open("w", encoding="utf-8") as output:
        for row in log:
            output.write(
                f"step {row['step']:.0f}/{len(log)} | loss {row['loss']:.4f} | lr {row['learning_rate']:.3e} | "
                f"grad_norm {row['grad_norm']:.3f}\n"
            )
            if "eval_loss" in row:
                output.write(f"step {row['step']:.0f}: val loss {row['eval_loss']:.4f}\n")


FORMS: dict[str, Callable[[Path, Sequence[Row]], None]] = {
    "log.jsonl": as_json_lines,
    "trainer_state.json": as_trainer_state,
    "log.csv": as_csv,
    "log.txt": as_text,
}


def examined(*words: str) -> dict[str, Any]:
    """Wall and processor seconds of a `fledge doctor`, with the numbers of its stages and findings."""
    before, began = os.times(), time.perf_counter()
    command = [sys.executable, "-m", "fledge.cli", "doctor", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - began, os.times()
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    told = json.loads(done.stdout)
    used = after.children_user + after.children_system - before.children_user - before.children_system
    counts = {"stages": len(told["logs"]), "findings": len(told["findings"])}
    return {"seconds": round(wall, 2), "processor": round(used, 2), **counts}


def repeated(times: int, *words: str) -> dict[str, Any]:
    """The examination some times: medians and ranges of its seconds."""
    each = [examined(*words) for _ in range(times)]
    walls, used = ([one[name] for one in each] for name in ("seconds", "processor"))
    return {**each[-1], "seconds": median(walls), "range": [min(walls), max(walls)], "processor": median(used)}


def main() -> None:
    """Measure and print the results as one line of JSON."""
    parser = options(__doc__ or "")
    parser.add_argument("--run", type=Path, help="examine this run of fledge to all depths too")
    parser.add_argument("--steps", type=int, default=100_000, help="of the log (default 100,000)")
    parser.add_argument("--times", type=int, default=3, help="how often each is read (default 3)")
    chosen = parser.parse_args()
    log, results = rows(chosen.steps), dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        for name, write in FORMS.items():
            file = Path(folder) / name
            write(file, log)
            results[name] = repeated(1 if chosen.quick else chosen.times, str(file))
            print(f"{name}, {chosen.steps:,} steps: {results[name]}", flush=True)
    if chosen.run is not None:
        results["run"] = repeated(1, str(chosen.run))
        print(f"{chosen.run}: {results['run']}", flush=True)
    report({"steps": chosen.steps, **results})


if __name__ == "__main__":
    main()
