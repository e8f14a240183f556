"""The layout of a run directory, and the model folder of a path to a run, stage or checkpoint."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.errors import FledgeError
from fledge.run.events import read_events
from fledge.run.file_kinds import model_file_hint
from fledge.run.input_files import hub_name_error
from fledge.run.text_files import read_json

RESULT_HINT = "remove this file and run the same command again: the stage goes on from its last checkpoint"
READABLE_HINT = "make it readable again (permissions, a mounted disk), then run the same command again; nothing is lost"


def checkpoint_paths(folder: Path) -> list[Path]:
    """All checkpoints in a folder, whole or not, oldest first. Raises FledgeError if the folder cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.name.startswith("step-"))
    except FileNotFoundError:
        if not folder.is_symlink():
            return []
        problem = "this folder of checkpoints is a link to a place that does not exist now"
    except OSError as error:
        problem = f"this folder of checkpoints cannot be read: {error.strerror}"
    raise FledgeError(problem, where=str(folder), hint=READABLE_HINT)


def _read_result(file: Path) -> dict[str, Any]:
    """A result.json. Raises FledgeError if it is damaged."""
    from fledge.run.file_shapes import StageResult  # here: it loads pydantic, which `fledge --help` does not need

    return read_json(file, StageResult, RESULT_HINT)


@dataclass(frozen=True)
class StageDirectory:
    """The files of one stage: `<run>/<stage>/`."""

    root: Path

    @property
    def events(self) -> Path:
        """The events of the stage, one JSON object per line."""
        return self.root / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.root / "checkpoints"

    @property
    def data(self) -> Path:
        """The stage's data as it was built for this run."""
        return self.root / "data"

    @property
    def result_file(self) -> Path:
        """The result of the finished stage and the path of its model. This file is written last."""
        return self.root / "result.json"

    @property
    def evaluations(self) -> Path:
        """The folder of evaluations before and after the stage."""
        return self.root / "eval"

    def set_results(self, moment: str) -> Path:
        """The folder of the results of evaluation sets at a moment: `before`, `after` or `step-XXXXXXXX`."""
        return self.evaluations / moment

    @property
    def prompt_tests(self) -> Path:
        """The folder of failing prompt tests: one file for each time that the tests ran."""
        return self.root / "prompt_tests"

    @property
    def prompt_test_cases(self) -> Path:
        """The prompt tests of the stage, as it was begun."""
        return self.prompt_tests / "cases.yaml"

    @property
    def data_report(self) -> Path:
        """The counts and the fingerprints of the data that the stage trains on."""
        return self.root / "data_report.json"

    @property
    def plan(self) -> Path:
        """The plan of the stage, as it was begun."""
        return self.root / "plan.json"

    @property
    def prediction(self) -> Path:
        """What the stage was predicted to take, and what it took."""
        return self.root / "prediction.json"

    def checkpoint_paths(self) -> list[Path]:
        """The checkpoints of the stage, whole or not, oldest first. Raises FledgeError if their folder cannot be read."""
        return checkpoint_paths(self.checkpoints)

    def has_begun(self) -> bool:
        """Whether the stage has saved a checkpoint, trained a step or finished. Raises FledgeError if that cannot be read."""
        if self.result_file.exists() or self.checkpoint_paths():
            return True
        return any(event["step"] > 0 for event in read_events(self.events))

    def newest_model(self) -> Path | None:
        """The newest model directory that the stage has saved, by its name; None if there is none."""
        models = (path / "model" for path in reversed(self.checkpoint_paths()))
        return next((model for model in models if (model / "config.json").exists()), None)

    def forget_preparation(self) -> None:
        """Remove what was chosen and measured for a stage that has not begun, so that it is chosen and measured again."""
        for file in (
            self.plan,
            self.root / "compute.json",
            self.data_report,
            self.prediction,
            self.evaluations / "before.json",
        ):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.set_results("before"), ignore_errors=True)

    def metrics(self, moment: str) -> dict[str, Any]:
        """The metrics on validation data that are one number, `before` or `after` the stage; empty where they are not there."""
        from fledge.run.file_shapes import Evaluation  # here: it loads pydantic, which `fledge --help` does not need

        file = self.evaluations / f"{moment}.json"
        found = read_json(file, Evaluation) if file.exists() else {}
        return {name: value for name, value in found.items() if isinstance(value, int | float)}

    def result(self) -> dict[str, Any] | None:
        """The stage's result, or None while the stage is not finished."""
        return _read_result(self.result_file) if self.result_file.exists() else None


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run: `<output>/<name>/`."""

    root: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.root / "recipe.yaml"

    @property
    def tokenizer(self) -> Path:
        """The folder of the run's tokenizer."""
        return self.root / "tokenizer"

    @property
    def models(self) -> Path:
        """The commits of the models of the hub that the run began with."""
        return self.root / "models.json"

    @property
    def summary(self) -> Path:
        """The summary of the run."""
        return self.root / "summary.json"

    def stage(self, name: str) -> StageDirectory:
        """The directory of one stage."""
        return StageDirectory(self.root / name)


EARLIER_FILES = ("done.json", "machine.json", "account.json")  # now result.json, compute.json, data_report.json


def check_layout(root: Path) -> None:
    """Raise FledgeError for a run, a stage or a built dataset that an earlier version wrote, under other names of files."""
    for folder in (root, root / "data", *sorted(root.glob("*/")), *sorted(root.glob("*/data"))):
        for name in EARLIER_FILES:
            if (folder / name).exists():
                models = sorted(root.glob("**/checkpoints/last/model"), key=lambda model: model.stat().st_mtime)
                hint = "train again under another name" + (
                    f"; its models can be loaded as before: {models[-1]}" if models else ""
                )
                raise FledgeError(
                    f"an earlier version of fledge wrote this: it has {folder / name}", where=str(root), hint=hint
                )


def _checkpoint_model(path: Path) -> Path:
    """The model folder of a checkpoint: the averaged weights when the stage averages weights, else the trained weights."""
    return path / "averaged" if (path / "averaged" / "config.json").exists() else path / "model"


def resolve_model_path(location: str) -> Path:
    """The model folder of a path to a run, a stage, a checkpoint or a model folder.

    A run resolves to its last finished stage, or else to its last checkpoint. Raises FledgeError when nothing exists at
    the location, when no model has been saved there yet, or when an earlier version wrote it.
    """
    path = Path(location).expanduser()
    if not path.exists():
        missing = FledgeError("there is no such run or model", where=location, hint="`ls runs` shows the runs")
        raise hub_name_error(path) or missing
    if not path.is_dir():
        raise FledgeError("this is a file, and a model is a folder", where=location, hint=model_file_hint(path))
    if (path / "config.json").exists():
        return path
    if (path / "model" / "config.json").exists():
        return _checkpoint_model(path)
    check_layout(path)
    if (path / "result.json").exists():
        return path / _read_result(path / "result.json")["model"]
    if (path / "recipe.yaml").exists():
        finished = {file: _read_result(file) for file in path.glob("*/result.json")}
        if finished:
            newest = max(finished, key=lambda file: (finished[file]["order"], file.name))
            return newest.parent / finished[newest]["model"]
    for last in [path / "checkpoints" / "last", *sorted(path.glob("*/checkpoints/last"))][::-1]:
        if (last / "model" / "config.json").exists():
            return _checkpoint_model(last)
    if (path / "adapter_config.json").exists():
        return path
    if not (path / "recipe.yaml").exists() and not (path / "plan.json").exists():
        names = ", ".join(sorted(item.name for item in path.iterdir())[:5]) or "nothing"
        hint = f"name a folder with config.json and model.safetensors; this one holds {names}"
        if gguf := sorted(path.glob("*.gguf")):
            hint = f"name the file: {gguf[0]}"
        raise FledgeError("this is neither a run nor a model: there is no config.json", where=location, hint=hint)
    raise FledgeError("there is no model here yet", where=location, hint="let its training reach a checkpoint")
