"""The layout of a run directory, and the model folder of a path to a run, stage or checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.errors import FledgeError
from fledge.run.text_files import read_json


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

    @property
    def prompt_tests(self) -> Path:
        """The folder of failing prompt tests: one file for each time that the tests ran."""
        return self.root / "prompt_tests"

    def result(self) -> dict[str, Any] | None:
        """The stage's result, or None while the stage is not finished."""
        return read_json(self.result_file) if self.result_file.exists() else None


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
    path = Path(location)
    if not path.exists():
        raise FledgeError("there is no such run or model", where=location, hint="`ls runs` shows the runs")
    if (path / "config.json").exists():
        return path
    if (path / "model" / "config.json").exists():
        return _checkpoint_model(path)
    check_layout(path)
    if (path / "result.json").exists():
        return path / read_json(path / "result.json")["model"]
    if (path / "recipe.yaml").exists():
        finished = list(path.glob("*/result.json"))
        if finished:
            newest = max(finished, key=lambda file: (read_json(file)["order"], file.name))
            return newest.parent / read_json(newest)["model"]
    for last in [path / "checkpoints" / "last", *sorted(path.glob("*/checkpoints/last"))][::-1]:
        if (last / "model" / "config.json").exists():
            return _checkpoint_model(last)
    raise FledgeError("there is no model here yet", where=location, hint="let its training reach a checkpoint")
