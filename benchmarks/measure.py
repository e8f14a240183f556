"""Shared by the benchmarks: options, interleaved timing, and the line of JSON at the end."""

import argparse
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path


def options(description: str) -> argparse.ArgumentParser:
    """A parser with the option --quick."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a smaller run of at most 50 s on two cores")
    return parser


def data_folder() -> Path:
    """The folder of real data, which may not exist."""
    return Path(os.environ.get("FLEDGE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def interleave(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender; contenders take turns, so that a busy moment of the machine affects all."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, run in contenders.items():
            seconds[name].append(run())
            print(f"round {number + 1}/{rounds} {name}: {seconds[name][-1]:.3f} s", flush=True)
    return seconds


def ratios(slow: list[float], fast: list[float]) -> dict[str, float]:
    """The ratios of two contenders, round by round: median and range."""
    each = [a / b for a, b in zip(slow, fast, strict=True)]
    return {"median": round(statistics.median(each), 3), "low": round(min(each), 3), "high": round(max(each), 3)}


def report(values: dict) -> None:
    """Print the results as one line of JSON."""
    print(json.dumps(values))
