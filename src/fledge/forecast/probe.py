"""A probe: the recipe's own stages for a few steps in a process of their own, and what that says about all of them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from fledge.errors import FledgeError
from fledge.plan import without_warmup
from fledge.plan.time import Range
from fledge.recipe import Recipe, to_yaml
from fledge.recipe.schema import EarlyStoppingConfig, Stage
from fledge.run import Console, RunDirectory, write_text
from fledge.run.events import read_events

PROBE_STEPS = 20
MIN_STEPS = 8
WARM_STEPS = 3  # of a probe, that are not counted: caches, allocator, threads
LAST_LINES = 15  # of the probe's messages, shown where it fails
OTHER_PHASES = ("evaluate", "save")  # of a `system` event, that are not training


@dataclass(frozen=True, kw_only=True)
class ProbedStage:
    """The figures of a probed stage, in seconds. `step`: an update, from the quarter of fastest ones to that of the slowest.
    `evaluation` and `saving`: one of each. `around`: before the first and after the last step: loading, compiling, the
    evaluations before and after the stage. `peak_memory`: bytes, None where an earlier stage needed as much."""

    steps: int
    step: Range
    median_step: float
    evaluation: float
    saving: float
    around: float
    peak_memory: int | None
    tokens_per_second: float

    def as_dict(self) -> dict[str, Any]:
        """The values as JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A probe of a recipe: the seconds before its first stage, and the figures of each stage."""

    start: float
    stages: dict[str, ProbedStage]


def probe_recipe(recipe: Recipe, steps: int, folder: Path, console: Console, micro_steps: Mapping[str, int]) -> Probe:
    """Train each stage of a recipe for `steps` steps into `folder`, in a new process, whose memory is then its own.

    `micro_steps`: micro-batches of each whole stage; the probe compiles where the real run would. Raises FledgeError if `steps`
    are too few, or with the last messages of a probe that fails.
    """
    if steps < MIN_STEPS:
        raise FledgeError(f"{steps} steps are too few to measure a stage", where="--probe", hint=f"take at least {MIN_STEPS}")
    short = shortened(recipe, steps, folder)
    write_text(folder / "probe.yaml", to_yaml(short))
    console.log(f"probing {len(recipe.stages)} stages for {steps} steps each …")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "fledge.forecast.probe_process", str(folder / "probe.yaml"), json.dumps(dict(micro_steps))]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)
    if finished.returncode:
        last = "\n  ".join([*finished.stdout.splitlines(), *finished.stderr.splitlines()][-LAST_LINES:])
        raise FledgeError(f"the probe failed:\n  {last}", where="--probe", hint="mend the recipe, or leave --probe out")
    return _read_probe(RunDirectory(Path(short.output) / short.name), list(recipe.stages), steps)


def shortened(recipe: Recipe, steps: int, folder: Path) -> Recipe:
    """The recipe with `steps` steps a stage, two evaluations and a checkpoint, without warm-up and without stopping early."""
    stages = {name: _shortened_stage(stage, steps) for name, stage in recipe.stages.items()}
    return recipe.model_copy(update={"name": "probe", "output": str(folder / "runs"), "stages": stages})


def _shortened_stage(stage: Stage, steps: int) -> Stage:
    every = steps // 2
    return without_warmup(stage).model_copy(
        update={
            "duration": f"{steps} steps",
            "evaluation": stage.evaluation.model_copy(update={"every_steps": every}),
            "checkpoint": stage.checkpoint.model_copy(update={"every_steps": every}),
            "early_stopping": EarlyStoppingConfig(),
            "select_checkpoint": "last",
        }
    )


def _read_probe(run: RunDirectory, names: list[str], steps: int) -> Probe:
    """The figures of a finished probe, from its events and results."""
    stages, start, highest = {}, 0.0, 0
    for name in names:
        directory = run.stage(name)
        events = list(read_events(directory.events))
        start += sum(_phases_before(event) for event in events if event["kind"] == "startup")
        peak = max(event["system/peak_memory_bytes"] for event in _of(events, "system"))
        stages[name] = _probed(events, directory.result() or {}, steps, peak if peak > highest else None)
        highest = max(peak, highest)
    return Probe(start=start, stages=stages)


def _of(events: Iterable[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["kind"] == kind]


def _phases_before(startup: dict[str, Any]) -> float:
    """Seconds before the first stage of a process: imports and data."""
    return sum(startup.get(f"{phase}_seconds", 0.0) for phase in ("imports", "data"))


def _probed(events: list[dict[str, Any]], result: dict[str, Any], steps: int, peak: int | None) -> ProbedStage:
    systems = _of(events, "system")
    others = {phase: [event["system/phases"].get(phase, 0.0) for event in systems] for phase in OTHER_PHASES}
    training = [
        event["system/step_seconds"] - sum(others[phase][number] for phase in OTHER_PHASES)
        for number, event in enumerate(systems)
    ]
    counted = sorted(training[WARM_STEPS:])
    quarter = max(1, len(counted) // 4)
    tokens = [event["system/step_tokens_per_second"] or 0.0 for event in systems[WARM_STEPS:]]
    return ProbedStage(
        steps=steps,
        step=Range(sum(counted[:quarter]) / quarter, sum(counted[-quarter:]) / quarter),
        median_step=median(counted),
        evaluation=max(others["evaluate"]),
        saving=max(others["save"]),
        around=max(0.0, result["wall_seconds"] - result["seconds"]),
        peak_memory=peak,
        tokens_per_second=median(tokens),
    )


def probed_seconds(probed: ProbedStage, *, micro_batches: float, updates: int, evaluations: int, saves: int) -> float:
    """Seconds of a whole stage from its probe. `micro_batches`: mean number in an update ÷ number in a full one."""
    return (
        probed.around + updates * micro_batches * probed.median_step + evaluations * probed.evaluation + saves * probed.saving
    )
