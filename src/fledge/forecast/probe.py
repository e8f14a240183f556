"""A probe: the recipe's own stages for a few steps in a process of their own, and what that says about all of them."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from fledge.errors import FledgeError
from fledge.plan import without_warmup
from fledge.prediction import phase_seconds, system_events, update_seconds
from fledge.recipe import Recipe, to_yaml
from fledge.recipe.schema import EarlyStoppingConfig, Stage
from fledge.recipe.sections.alerts import AlertsConfig
from fledge.recipe.sections.policy import PolicySettings
from fledge.run import Console, RunDirectory, read_json, write_text
from fledge.run.events import read_events

MIN_STEPS = 8
WARM_STEPS = 3  # of a probe, that are not counted: caches, allocator, threads
SLOWEST = 2.0  # times the median: more, of a single update of a probe, says nothing of the next ones
LAST_LINES = 15  # of the probe's messages, shown where it fails


@dataclass(frozen=True, kw_only=True)
class ProbedStage:
    """The figures of a probed stage, in seconds. `step`: an update. `evaluation` and `saving`: one of each. `around`:
    before the first and after the last step: loading, reading compiled code, the evaluations before and after the stage.
    `peak_memory`: bytes, None where an earlier stage needed as much."""

    steps: int
    step: float
    evaluation: float
    saving: float
    around: float
    peak_memory: int | None


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A probe of a recipe: the seconds before its first stage, and the figures of each stage."""

    start: float
    stages: dict[str, ProbedStage]


def probe_recipe(recipe: Recipe, steps: int, folder: Path, console: Console, micro_steps: Mapping[str, int]) -> Probe:
    """Train each stage of a recipe for `steps` steps into `folder`, in a new process, whose memory is then its own. Its batches
    are those of the whole stages (`KnownRecipe.with_planned_batches`).

    `micro_steps`: micro-batches of each whole stage; the probe compiles where the real run would. Where it measures the machine
    for the first time, a second one of MIN_STEPS steps tells what a run after it has to wait for. Raises FledgeError if `steps`
    are too few, or with the last messages of a probe that fails.
    """
    if steps < MIN_STEPS:
        raise FledgeError(f"{steps} steps are too few to measure a stage", where="--probe", hint=f"take at least {MIN_STEPS}")
    console.log(f"probing {len(recipe.stages)} stages for {steps} steps each …")
    probe, is_warm = _run_probe(recipe, steps, folder, micro_steps)
    if is_warm:
        return probe
    console.log("probing once more: the first time the machine was measured and code compiled, which later runs read")
    again, _ = _run_probe(recipe, MIN_STEPS, folder / "again", micro_steps)
    stages = {name: replace(stage, around=again.stages[name].around) for name, stage in probe.stages.items()}
    return Probe(start=again.start, stages=stages)


def _run_probe(recipe: Recipe, steps: int, folder: Path, micro_steps: Mapping[str, int]) -> tuple[Probe, bool]:
    """One probe, and whether all that a machine measures and compiles only once was there before."""
    short = shortened(recipe, steps, folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "probe.yaml", to_yaml(short))
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "fledge.forecast.probe_process", str(folder / "probe.yaml"), json.dumps(dict(micro_steps))]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)
    if finished.returncode:
        last = "\n  ".join([*finished.stdout.splitlines(), *finished.stderr.splitlines()][-LAST_LINES:])
        raise FledgeError(f"the probe failed:\n  {last}", where="--probe", hint="mend the recipe, or leave --probe out")
    run = RunDirectory(Path(short.output) / short.name)
    return _read_probe(run, short.stages), all(_is_warm(run, name) for name in recipe.stages)


def _is_warm(run: RunDirectory, stage: str) -> bool:
    """Whether nothing was measured anew to choose how a stage computes."""
    measured = read_json(run.stage(stage).root / "compute.json")["measurements"].get("measured", "")
    return not measured.startswith(("in this run", "partly"))


def shortened(recipe: Recipe, steps: int, folder: Path) -> Recipe:
    """The recipe with `steps` steps a stage (more where a rollout serves many), two evaluations and a checkpoint, without
    warm-up and without stopping early. It sends nothing: neither alerts nor figures."""
    stages = {name: _shortened_stage(stage, steps) for name, stage in recipe.stages.items()}
    quiet = {"tensorboard": False, "wandb": None, "trackio": None}
    return recipe.model_copy(
        update={
            "name": "probe",
            "output": str(folder / "runs"),
            "stages": stages,
            "alerts": AlertsConfig(),
            "logging": recipe.logging.model_copy(update=quiet),
        }
    )


def _shortened_stage(stage: Stage, steps: int) -> Stage:
    per_rollout = _updates_per_rollout(stage)
    steps = max(steps, _first_counted(per_rollout) + per_rollout)
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


def _updates_per_rollout(stage: Stage) -> int:
    """The updates that share the answers of one rollout; 1 where none are drawn."""
    return stage.rollout.updates_per_rollout if isinstance(stage, PolicySettings) else 1


def _first_counted(per_rollout: int) -> int:
    """The first update of a probe that is counted: that of the first rollout behind the warm steps."""
    return -(-WARM_STEPS // per_rollout) * per_rollout


def seconds_of_update(seconds: Sequence[float], per_rollout: int) -> float:
    """Seconds of an update, from those of all updates of a probe: the mean of those that are counted, of which none counts
    more than SLOWEST times the median. (Over a whole run the mean is 3 % above the median: some updates are delayed.) Where
    a rollout serves several updates, only the first of them draws answers: the mean over whole rollouts."""
    firsts = range(_first_counted(per_rollout), len(seconds) - per_rollout + 1, per_rollout)
    means = [fmean(seconds[first : first + per_rollout]) for first in firsts]
    slowest = SLOWEST * median(means)
    return fmean(min(one, slowest) for one in means)


def _read_probe(run: RunDirectory, shortened_stages: Mapping[str, Stage]) -> Probe:
    """The figures of a finished probe, from its events and results."""
    stages, start, highest = {}, 0.0, 0
    for name, stage in shortened_stages.items():
        directory = run.stage(name)
        start += sum(map(_seconds_before, read_events(directory.events)))
        systems = system_events(directory)
        peak = max(event["system/peak_memory_bytes"] for event in systems)
        update = seconds_of_update(list(map(update_seconds, systems)), _updates_per_rollout(stage))
        stages[name] = _probed(systems, directory.result() or {}, update, peak if peak > highest else None)
        highest = max(peak, highest)
    return Probe(start=start, stages=stages)


def _seconds_before(event: dict[str, Any]) -> float:
    """Seconds before the first stage of a process, imports and data, of a `startup` event; 0 for another event."""
    phases = ("imports", "data") if event["kind"] == "startup" else ()
    return sum(event.get(f"{phase}_seconds", 0.0) for phase in phases)


def _probed(systems: list[dict[str, Any]], result: dict[str, Any], update: float, peak: int | None) -> ProbedStage:
    return ProbedStage(
        steps=len(systems),
        step=update,
        evaluation=max(phase_seconds(event, "evaluate") for event in systems),
        saving=max(phase_seconds(event, "save") for event in systems),
        around=max(0.0, result["wall_seconds"] - result["seconds"]),
        peak_memory=peak,
    )


def probed_seconds(probed: ProbedStage, *, micro_batches: float, updates: int, evaluations: int, saves: int) -> float:
    """Seconds of a whole stage from its probe. `micro_batches`: mean number in an update ÷ number in a full one."""
    return probed.around + updates * micro_batches * probed.step + evaluations * probed.evaluation + saves * probed.saving
