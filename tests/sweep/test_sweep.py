"""Whole sweeps, as a person runs them: tiny models, real processes, real kills."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from fledge.recipe import load_recipe
from tests.support import tiny_run
from tests.support.command import COMMAND, assert_error, fledge

RATE = "stages.pretrain.optimizer.learning_rate"
GRID = ["--search", f"{RATE}=3e-3,1e-2,1e-3,6e-3,1e-6,4e-3", "--sampler", "grid"]


def tiny_recipe(folder: Path) -> str:
    """A recipe of one stage of 20 steps with ten evaluations."""
    tree = tiny_run.tree(folder / "world", folder / "runs")
    stage = {**tree["stages"]["pretrain"], "duration": "20 steps", "evaluation": {"max_packed_rows": 64}, "checkpoint": {}}
    return str(tiny_run.write(folder / "tiny.yaml", {**tree, "stages": {"pretrain": stage}, "generation_samples": {}}))


def stop_when(command: list[Any], happens: Callable[[], bool], number: int = signal.SIGKILL) -> int:
    """Start the command, and send it a signal when something happens; returns its exit code. Its runs must end with it."""
    process = subprocess.Popen([*COMMAND, *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not happens():
        assert process.poll() is None and time.monotonic() < deadline, "the sweep ended before it was killed"
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, number)
    code = process.wait()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    return code


def steps_of(run: Path) -> int:
    """The steps that a run has recorded."""
    events = run / "pretrain" / "events.jsonl"
    return events.read_text(encoding="utf-8").count('"step"') if events.exists() else 0


def results(folder: Path) -> dict[str, Any]:
    """The table and the other results without what is measured in seconds or names the folder."""
    found = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    for trial in found["trials"]:
        trial.pop("seconds")
    return {**found, "table": (folder / "sweep.md").read_text(encoding="utf-8")}


@pytest.mark.slow
def test_a_sweep_that_is_killed_and_resumed_gives_the_same_table(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = fledge("sweep", recipe, *GRID, "--out", whole)
    assert done.returncode == 0, done.stderr
    command = ["sweep", recipe, *GRID, "--out", killed]
    stop_when(command, lambda: steps_of(killed / "trials/0002/seed1") > 4)  # while a trial trains
    code = stop_when(command, lambda: steps_of(killed / "trials/0003/seed1") > 4, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    journal = killed / "journal.log"
    stop_when(command, lambda: journal.read_text(encoding="utf-8").count("\n") >= 5)  # right after one was recorded
    stop_when(command, lambda: (killed / "trials/0005/documents-1.json").exists())  # after a look, before its trial ended
    done = fledge(*command)
    assert done.returncode == 0, done.stderr
    assert results(killed) == results(whole)

    trials = {trial["number"]: trial for trial in results(whole)["trials"]}
    assert trials[5]["state"] == "pruned" and "nats/token" in trials[5]["reason"] and not trials[5]["seed_values"]
    complete = [trial for trial in trials.values() if trial["state"] == "complete"]
    best = min(complete, key=lambda trial: trial["value"])
    assert (
        len(complete) >= 4
        and load_recipe([str(whole / "best.yaml")]).stages["pretrain"].optimizer.learning_rate == (best["values"][RATE])
    )
    assert [path.parts[-3] for path in whole.glob("trials/*/*/pretrain/checkpoints")] == ["seed1"]  # the best one's alone
    assert (whole / "trials-pretrain-optimizer-learning_rate.svg").exists()

    other = fledge(*command, "--seeds", "2")
    assert_error(other, "begun with other settings", "seeds: 1 -> 2")


@pytest.mark.slow
def test_seeds_are_units_and_several_trials_run_at_a_time(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    search = ["--search", f"{RATE}=log:1e-3..1e-2", "--trials", "2", "--seeds", "2", "--processes", "2"]
    done = fledge("sweep", recipe, *search, "--out", tmp_path / "sweep")
    assert done.returncode == 0, done.stderr
    trials = results(tmp_path / "sweep")["trials"]
    for trial in trials:
        assert len(trial["seed_values"]) == 2 and trial["seed_values"][0] != trial["seed_values"][1]
        assert trial["value"] == pytest.approx(sum(trial["seed_values"]) / 2) and trial["spread"] > 0
    first = next(trial for trial in trials if trial["number"] == 1)
    assert first["values"][RATE] == 1e-3  # the recipe itself
    behind = next(trial["behind"] for trial in trials if trial["behind"] is not None)
    assert behind["documents"] >= 20 and behind["interval"][0] <= behind["difference"] <= behind["interval"][1]
    runs = [yaml.safe_load((tmp_path / f"sweep/trials/0001/seed{seed}/recipe.yaml").read_text()) for seed in (1, 2)]
    assert [run["seed"] for run in runs] == [3, 4]
    assert runs[0]["tokenizer"]["path"] is None and runs[1]["tokenizer"]["path"].endswith("seed1/tokenizer")


@pytest.mark.slow
def test_a_budget_is_checked_before_anything_is_trained(tmp_path: Path) -> None:
    recipe, out = tiny_recipe(tmp_path), tmp_path / "sweep"
    short = fledge("sweep", recipe, *GRID, "--out", out, "--minutes", "0.1")
    assert_error(short, "--minutes", "not enough for two trials")
    many = fledge("sweep", recipe, *GRID, "--out", out, "--minutes", "0.6", "--trials", "6")
    assert_error(many, "--trials", "trials fit")
    assert not (out / "trials").exists()
    unknown = fledge("sweep", recipe, "--search", "stages.pretrain.optimizer.rate=1,2", "--out", out)
    assert_error(unknown, "--search stages.pretrain.optimizer.rate=1,2", "unknown key")
    metric = fledge("sweep", recipe, *GRID, "--out", out, "--metric", "length")
    assert_error(metric, "--metric", "is no metric of which one way is better")
