"""One run of the bench: trained under its condition, examined while the condition is still there, measured without it."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fledge.diagnosis.case import Figure
from fledge.doctor_bench.case_key import CaseKey
from fledge.doctor_bench.condition import Condition, Fault, replaced
from fledge.doctor_bench.conditions import condition_of
from fledge.doctor_bench.group_folder import GroupFolder
from fledge.doctor_bench.groups import GROUPS
from fledge.doctor_bench.ranks import train_together
from fledge.doctor_bench.recipes import healthy_setup
from fledge.doctor_bench.records import CaseRecord
from fledge.doctor_bench.setup import RunSetup
from fledge.doctor_bench.yardstick import Yardstick
from fledge.errors import FledgeError, first_line
from fledge.pipeline import Pipeline
from fledge.recipe import Recipe, load_recipe, recipe_from_dict
from fledge.run import Console, StageDirectory
from fledge.run.events import read_events
from fledge.run.stopping import Interrupted
from fledge.training.stop_poll import StopPoll

PROBE_SECONDS, DATA_SAMPLE = 30.0, 400
STOP_SIGNAL = 15  # SIGTERM: what a resumed run was stopped by


def group_folder(out: Path, name: str) -> GroupFolder:
    """The folder of a group's shared files below the folder of results."""
    return GroupFolder(GROUPS[name], out / "groups" / name)


def run_case(key: CaseKey, out: Path, *, examines: bool = True, keeps: bool = False) -> CaseRecord:
    """Train, measure and examine one case and write its record. An error of the training is part of the case; an error of the
    bench is recorded as its `failure`. `keeps`: models and data stay, for `examine_again`."""
    folder = out / "cases" / key.folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    record = CaseRecord(key=key.text, log=f"run/{key.shape}", is_examined=examines)
    try:
        _run(key, out, folder, record, examines)
    except Exception as error:  # one broken case must not end the bench: it is counted and shown
        record.failure = f"{type(error).__name__}: {first_line(error)}"
    record.write(folder)
    if not keeps:
        _drop_large_files(folder)
    return record


def examine_again(key: CaseKey, out: Path) -> CaseRecord:
    """Measure the effect and the figures of a trained case anew, whose models and data were kept, and write its record."""
    folder = out / "cases" / key.folder
    record, condition = CaseRecord.read(folder), condition_of(key)
    if not list(folder.glob("run/*/checkpoints")) or record.failure is not None:
        return record
    record.figures, record.left_out = {}, {}
    setup = healthy_setup(group_folder(out, key.group), key.shape, key.seed, folder)
    _measure(record, setup, _yardstick(out, key.group, key.shape))
    with condition.patch(setup, condition.levels[key.level]):
        _examine(record, setup, with_start=_is_probed_early(condition))
    record.write(folder)
    return record


def _is_probed_early(condition: Condition) -> bool:
    """Whether the start weights are probed too: of healthy runs, and of faults that are to be told before the first step."""
    return not isinstance(condition, Fault) or condition.is_silent


def _run(key: CaseKey, out: Path, folder: Path, record: CaseRecord, examines: bool) -> None:
    condition = condition_of(key)
    group, amount = group_folder(out, key.group), condition.levels[key.level]
    setup = healthy_setup(group, key.shape, key.seed, folder)
    condition.prepare(setup, amount)
    with _timed(record, "training"), condition.patch(setup, amount):
        record.error = _train(key, setup, condition)
    _measure(record, setup, _yardstick(out, key.group, key.shape))
    condition.finish(setup, amount)
    if examines and setup.stage_directory.exists():
        with condition.patch(setup, amount):
            _examine(record, setup, with_start=_is_probed_early(condition))


@contextmanager
def _timed(record: CaseRecord, name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    record.seconds[name] = round(time.perf_counter() - began, 2)


# -- training -----------------------------------------------------------------------------------------------------------


def _train(key: CaseKey, setup: RunSetup, condition: Condition) -> str | None:
    """Train the run; returns the message of the error that it ended with, if it did."""
    if condition.processes > 1:
        return train_together(key, setup.recipe, condition.processes, setup.folder)
    recipe = recipe_from_dict(setup.recipe)
    try:
        if condition.is_resumed:
            with suppress(Interrupted), _stopping_at(setup.steps // 2):
                Pipeline(recipe, Console(quiet=True)).run()
        Pipeline(recipe, Console(quiet=True)).run()
    except FledgeError as error:
        return error.text()
    except (RuntimeError, IndexError, ValueError) as error:  # what a faulty trainer ends with
        return f"{type(error).__name__}: {first_line(error)}"
    return None


@contextmanager
def _stopping_at(step: int) -> Iterator[None]:
    """A context in which the run is asked to stop before the update with this number."""
    asked = 0

    def requested(self: StopPoll) -> bool:
        nonlocal asked
        asked += 1
        self.signal = STOP_SIGNAL if asked > 2 * step else None
        return self.signal is not None

    with replaced(StopPoll, "__call__", requested):
        yield


# -- measuring ----------------------------------------------------------------------------------------------------------


@cache
def _yardstick(out: Path, group: str, shape: str) -> Yardstick:
    return Yardstick.of(healthy_setup(group_folder(out, group), shape, 1, out / "groups" / group / "yardstick" / shape))


def _measure(record: CaseRecord, setup: RunSetup, yardstick: Yardstick) -> None:
    """What the fault did: clean loss, logged loss, time of a step, memory."""
    directory = StageDirectory(setup.stage_directory)
    paths = [path for path in directory.checkpoint_paths() if (path / "model" / "config.json").exists() or _has_adapter(path)]
    with _timed(record, "clean loss"), suppress(FledgeError, RuntimeError):
        if paths:
            record.clean_loss = yardstick.loss(_chosen_model(paths[-1]))
    events = list(read_events(directory.events)) if directory.events.exists() else []
    logged = [event["eval/loss"] for event in events if event["kind"] == "eval" and event.get("eval/loss") is not None]
    record.logged_loss = float(logged[-1]) if logged else None
    system = [event for event in events if event["kind"] == "system"]
    if system:
        record.step_seconds = float(np.median([event["system/step_seconds"] for event in system]))
        record.memory_bytes = float(system[-1]["system/memory_bytes"] - system[0]["system/memory_bytes"])


def _has_adapter(path: Path) -> bool:
    return (path / "model" / "adapter_config.json").exists()


def _chosen_model(path: Path) -> Path:
    averaged = path / "averaged"
    return averaged if averaged.exists() else path / "model"


# -- examining ----------------------------------------------------------------------------------------------------------


def _examine(record: CaseRecord, setup: RunSetup, with_start: bool) -> None:
    """All figures of the case, by moment."""
    recipe = load_recipe([str(setup.run / "recipe.yaml")])
    directory = StageDirectory(setup.stage_directory)
    _figures(record, "data", lambda: _data_figures(directory, recipe))
    if with_start:
        _figures(record, "start", lambda: _probe_figures(record, setup, "start"))
    if directory.checkpoint_paths():
        _figures(record, "last", lambda: _probe_figures(record, setup, "last"))


def _figures(record: CaseRecord, moment: str, measure: Callable[[], dict[str, Figure]]) -> None:
    with _timed(record, moment):
        try:
            record.figures[moment] = measure()
        except Exception as error:  # what the doctor cannot examine is counted, and must not end the bench
            record.left_out[moment] = f"{type(error).__name__}: {first_line(error)}"


def _data_figures(directory: StageDirectory, recipe: Recipe) -> dict[str, Figure]:
    from fledge.doctor.data_figures import data_figures

    return data_figures(directory, recipe, sample=DATA_SAMPLE)


def _probe_figures(record: CaseRecord, setup: RunSetup, checkpoint: Any) -> dict[str, Figure]:
    from fledge.doctor.probes import probe_run

    report = probe_run(setup.run, setup.stage_name, checkpoint=checkpoint, deadline_seconds=PROBE_SECONDS)
    record.left_out |= {f"{checkpoint} {name}": reason for name, reason in report.left_out.items()}
    return report.figures


def _drop_large_files(folder: Path) -> None:
    """Remove weights and built data: what a log is read from stays, with the model's configuration."""
    for path in folder.glob("run/*/checkpoints/**/*"):
        if path.name != "config.json" and (path.is_file() or path.is_symlink()):
            path.unlink()
    for path in (*folder.glob("run/*/data"), folder / "t5"):
        shutil.rmtree(path, ignore_errors=True)
    for path in (*folder.glob("*.jsonl"), *folder.glob("run/*/reference.*")):
        path.unlink()
