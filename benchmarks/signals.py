"""SIGTERM at random moments: a valid checkpoint soon after, no process left, and an unchanged result after resuming.

A small pretrain + SFT + DPO run, compiled, with a cache of its own for each trial, so that the moments fall into reading
data, compiling, training, evaluating, generating samples and saving. Every second trial sends a second SIGTERM shortly after
the first. A trial counts as saved if the process ends by itself within the grace period with exit code 143, and the newest
checkpoint of its stage verifies and holds the last update of the stage's events (before the first update of a stage there is
nothing to save but the start of the stage). Orphans are processes that the run started and that still exist. Some of the
trials are resumed to the end and compared, byte by byte.
"""

import json
import random
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from kill_resume import STAGES, START_UP, fingerprint, finish, recipe, start
from measure import options, report

from fledge.checkpoint.find import latest_checkpoint
from fledge.world import Sizes, build

GRACE = 10.0  # seconds


def progress(folder: Path) -> tuple[str, bool]:
    """The running stage with its last update, and whether this update is saved."""
    for stage in reversed(STAGES):
        file = folder / "run" / stage / "events.jsonl"
        if not file.exists():
            continue
        steps = [event["step"] for line in file.read_text().splitlines() if (event := json.loads(line))["kind"] == "step"]
        reached = max(steps, default=0)
        newest = latest_checkpoint(folder / "run" / stage / "checkpoints")
        return f"{stage}, update {reached}", newest is not None and newest[1].step == reached
    return "before the first stage", True


def trial(base: Path, number: int, delay: float, twice: bool) -> dict[str, Any] | None:
    """Send SIGTERM to one run; None if the run had finished before."""
    folder = base / f"trial-{number}"
    folder.mkdir()
    shutil.copy(base / "recipe.yaml", folder)
    process = start(folder, cache=folder / "cache")
    with suppress(subprocess.TimeoutExpired):
        process.wait(delay)
    if process.poll() is not None:
        return None
    children = psutil.Process(process.pid).children(recursive=True)
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    if twice:
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
    try:
        code = process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        code = None
    seconds = time.monotonic() - sent
    time.sleep(0.3)
    orphans = [child.pid for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    if code == 0:  # all was done, and the process was about to end
        return None
    position, kept = progress(folder)
    return {"seconds": round(seconds, 2), "code": code, "position": position, "kept": kept, "orphans": len(orphans)}


def undisturbed(base: Path, compiled: bool) -> tuple[dict[str, str], float]:
    """Write the recipe and its data, and train twice without signals: the hashes of the results, and the seconds of a run."""
    build(5, base / "world", Sizes(pretrain=600, sft=800, preference=200, validation=60, questions=20))
    tree = recipe(base / "world")
    if compiled:
        tree["runtime"]["compile"] = True
    (base / "recipe.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True, sort_keys=False))
    uninterrupted = base / "whole"
    uninterrupted.mkdir()
    shutil.copy(base / "recipe.yaml", uninterrupted)
    finish(uninterrupted, cache=uninterrupted / "cache")  # the compiler keeps something of the first run beside the cache
    expected = fingerprint(uninterrupted)
    shutil.rmtree(uninterrupted / "run")
    length = finish(uninterrupted, cache=uninterrupted / "cache again")
    print(f"undisturbed: {length:.1f} s", flush=True)
    return expected, length


def main() -> None:
    """Measure and print the results as one line of JSON."""
    parser = options(__doc__ or "")
    parser.add_argument("--times", type=int, help="how often (default 30, with --quick 4)")
    parser.add_argument("--resumed", type=int, help="how many of them are resumed and compared (default 6, with --quick 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    chosen = parser.parse_args()
    times, resumed = chosen.times or (4 if chosen.quick else 30), chosen.resumed or (1 if chosen.quick else 6)
    moments = random.Random(chosen.seed)
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        expected, length = undisturbed(base, compiled=not chosen.quick)
        results, different = [], 0
        while len(results) < times:
            number = len(results)
            result = trial(base, number, moments.uniform(START_UP, length), twice=number % 2 == 1)
            folder = base / f"trial-{number}"
            if result is None:
                shutil.rmtree(folder)
                continue
            results.append(result)
            if number < resumed:
                finish(folder, cache=folder / "cache")
                result["identical"] = fingerprint(folder) == expected
                different += not result["identical"]
            print(f"signal {number + 1}: {result}", flush=True)
            shutil.rmtree(folder)
    saved = [one for one in results if one["code"] == 128 + signal.SIGTERM and one["kept"]]
    report(
        {
            "signals": times,
            "saved": len(saved),
            "orphans": sum(one["orphans"] for one in results),
            "slowest_seconds": max(one["seconds"] for one in results),
            "resumed": min(resumed, times),
            "different": different,
            "seconds_undisturbed": round(length, 1),
        }
    )
    if len(saved) != times or different or any(one["orphans"] for one in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
