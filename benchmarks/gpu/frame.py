"""The frame of the checks: one JSON line a check, a time limit for all, and a fresh start after an error that ends CUDA."""

import argparse
import gc
import json
import math
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fledge.autotune.compile import reset_compiler
from fledge.autotune.compute_config import use_float32
from fledge.autotune.determinism import use_deterministic

Found = dict[str, Any]
STARTED = float(os.environ.setdefault("ON_GPU_STARTED", str(time.time())))
WORK = Path(os.environ.setdefault("ON_GPU_WORK", tempfile.mkdtemp(prefix="on-gpu-")))
os.environ.setdefault("FLEDGE_CACHE", str(WORK / "cache"))
LONGEST_SMOKE = 300  # seconds of one check on a CPU


def options() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description="fledge on one GPU: what is right, then what is fast. One JSON line a check.")
    parser.add_argument(
        "--cpu-smoke", action="store_true", help="the same program on a CPU, at tiny sizes: does it run at all?"
    )
    parser.add_argument("--seconds", type=float, default=475.0, help="no check begins that would not fit into these")
    parser.add_argument("--only", default="", help="names of checks, with commas")
    parser.add_argument("--skip", default="", help="names of checks, with commas")
    parser.add_argument("--list", action="store_true", help="print the checks and about how long each takes")
    return parser.parse_args()


OPTIONS = options()
SMOKE = OPTIONS.cpu_smoke
CUDA = torch.cuda.is_available() and not SMOKE
DEVICE = torch.device("cuda" if CUDA else "cpu")
CAPABILITY = torch.cuda.get_device_capability() if CUDA else (0, 0)
HALF = "bf16" if CAPABILITY >= (8, 0) or not CUDA else "fp16"
CHECKS: dict[str, tuple[float, Callable[[], Found]]] = {}


class TooSlow(Exception):
    """A check took far too long."""


class Skipped(Exception):
    """A check cannot be made here; the message says why."""


def check(seconds: float) -> Callable[[Callable[[], Found]], Callable[[], Found]]:
    """Register a check, which takes about so many seconds on an H100. Checks of speed have names with `speed_`."""

    def register(function: Callable[[], Found]) -> Callable[[], Found]:
        CHECKS[function.__name__] = (0.0 if SMOKE else seconds, function)
        return function

    return register


def sync() -> None:
    """Wait for the device."""
    if CUDA:
        torch.cuda.synchronize()


def peak_gib() -> float | None:
    """The peak of allocated memory since the last fresh start; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if CUDA else None


def fresh_start() -> None:
    """Forget compiled code, switches and memory of the check before."""
    gc.collect()
    reset_compiler()
    use_float32("fp32")
    use_deterministic(False, DEVICE.type)
    if CUDA:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


class Judge:
    """Collects distances, each with its bound, and conditions; `result` is `ok` if all hold."""

    def __init__(self) -> None:
        self.worst: dict[str, float] = {}
        self.failed: dict[str, Any] = {}

    def near(self, name: str, got: torch.Tensor, expected: torch.Tensor, bound: float) -> None:
        """The relative distance of two tensors."""
        a, b = got.detach().double().cpu(), expected.detach().double().cpu()
        self.value(name, float((a - b).norm() / b.norm().clamp(min=1e-30)) if a.shape == b.shape else math.inf, bound)

    def value(self, name: str, distance: float, bound: float) -> None:
        """A number that must not be above its bound; NaN is."""
        self.worst[name] = max(self.worst.get(name, 0.0), distance)
        if not distance <= bound:
            self.failed[name] = {"got": distance, "bound": bound}

    def true(self, name: str, condition: Any, detail: Any = None) -> None:
        """A condition."""
        if not condition:
            self.failed[name] = detail

    def result(self, **more: Any) -> Found:
        """What the check returns."""
        return {"ok": not self.failed, "failed": self.failed, "worst": self.worst, **more}


def _plain(value: Any) -> Any:
    """What JSON can hold, with five digits."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else str(value)
    return value if isinstance(value, int | str | None) else str(value)


def say(line: Found) -> None:
    """Print a line; also into $OUT/on_gpu.jsonl, where OUT is set."""
    text = json.dumps(_plain(line), ensure_ascii=False)
    print(text, flush=True)
    if folder := os.environ.get("OUT"):
        with open(Path(folder) / "on_gpu.jsonl", "a", encoding="utf-8") as file:
            file.write(text + "\n")


def _run(name: str, seconds: float, function: Callable[[], Found]) -> Found:
    """One check within its time; every error is part of the line."""
    began, line = time.time(), Found(check=name)
    signal.alarm(LONGEST_SMOKE if SMOKE else int(max(60, 4 * seconds)))
    try:
        fresh_start()
        found = function()
        line |= {"ok": found.pop("ok", True), **found}
    except Skipped as reason:
        line |= {"ok": None, "skipped": str(reason)}
    except Exception as error:
        line |= {"ok": False, "error": f"{type(error).__name__}: {error}"[:600], "traceback": traceback.format_exc()[-2500:]}
    finally:
        signal.alarm(0)
    return line | {"seconds": round(time.time() - began, 1), "at": round(time.time() - STARTED, 1)}


def _start_again_behind(name: str, error: Exception) -> None:
    """An error that ends CUDA's context ends it for the process: go on in a new one."""
    names = list(CHECKS)
    say(
        {"check": name, "ok": False, "error": f"CUDA's context has ended: {str(error)[:300]}; starting again behind this check"}
    )
    os.environ |= {"ON_GPU_DONE": ",".join(names[: names.index(name) + 1]), "ON_GPU_FAILED": "1"}
    os.execv(sys.executable, [sys.executable, *sys.argv])


def main() -> int:
    """Run the checks, those of speed last; returns 1 if one failed."""
    for name in [name for name in CHECKS if name.startswith("speed_")]:
        CHECKS[name] = CHECKS.pop(name)
    if OPTIONS.list:
        for name, (seconds, function) in CHECKS.items():
            print(f"{name:14s} {seconds:4.0f} s  {(function.__doc__ or '').splitlines()[0]}")
        return 0
    if not CUDA and not SMOKE:
        say({"check": "start", "ok": False, "error": "no CUDA device; --cpu-smoke runs the program on a CPU"})
        return 1
    only, skip, done = (
        set(filter(None, text.split(","))) for text in (OPTIONS.only, OPTIONS.skip, os.environ.get("ON_GPU_DONE", ""))
    )
    if unknown := (only | skip) - set(CHECKS):
        say({"check": "start", "ok": False, "error": f"no such check: {', '.join(sorted(unknown))}"})
        return 1

    def too_slow(number: int, frame: Any) -> None:
        raise TooSlow("it took four times as long as it should")

    signal.signal(signal.SIGALRM, too_slow)
    failed = "ON_GPU_FAILED" in os.environ
    for name, (seconds, function) in CHECKS.items():
        if name in done | skip or (only and name not in only):
            continue
        left = OPTIONS.seconds - (time.time() - STARTED)
        if not SMOKE and seconds > left:
            say({"check": name, "ok": None, "skipped": f"needs about {seconds:.0f} s, {left:.0f} s are left"})
            continue
        line = _run(name, seconds, function)
        failed |= line["ok"] is False
        say(line)
        try:
            sync()
        except Exception as error:
            _start_again_behind(name, error)
    say({"check": "end", "ok": not failed, "at": round(time.time() - STARTED, 1)})
    return int(failed)
