"""A run in Python: its stages, metrics, samples, report and model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from fledge.errors import FledgeError
from fledge.recipe import Recipe, load_recipe
from fledge.run.directory import RunDirectory, StageDirectory, check_layout
from fledge.run.events import read_events
from fledge.run.file_shapes import Evaluation
from fledge.run.text_files import read_json

if TYPE_CHECKING:
    import pandas

    from fledge.api.model import Model

METRIC_EVENTS = ("step", "system", "eval", "prompt_tests", "sets")  # kinds of events whose numbers are metrics
Moment = Literal["before", "after"]


@dataclass(frozen=True)
class Sample:
    """The model's answer to one fixed prompt before or after a stage.

    `finish_reason` is "stop" if the model ended the answer, "length" if it was cut.
    """

    stage: str
    moment: Moment
    prompt: str
    answer: str
    finish_reason: str


@dataclass(frozen=True)
class RunStage:
    """One stage of a run: `<run>/<name>/`."""

    name: str
    path: Path

    @property
    def result(self) -> dict[str, Any] | None:
        """The content of result.json, or None while the stage is not finished."""
        return StageDirectory(self.path).result()

    @property
    def finished(self) -> bool:
        """Whether the stage is finished."""
        return self.result is not None

    def evaluation(self, moment: Moment) -> dict[str, Any]:
        """The metrics on validation data before or after the stage; empty if they were not measured."""
        return {key: value for key, value in self._evaluation_file(moment).items() if key != "samples"}

    def samples(self) -> list[Sample]:
        """The answers to the recipe's fixed prompts, before and after the stage."""
        moments: tuple[Moment, ...] = ("before", "after")
        return [
            Sample(self.name, moment, sample["prompt"], sample["answer"], sample["finish_reason"])
            for moment in moments
            for sample in self._evaluation_file(moment).get("samples", [])
        ]

    def events(self, *kinds: str) -> Iterator[dict[str, Any]]:
        """The events of the stage, of the given kinds or of all, in the order in which they were written."""
        events = read_events(StageDirectory(self.path).events)
        yield from (event for event in events if not kinds or event["kind"] in kinds)

    def _evaluation_file(self, moment: Moment) -> dict[str, Any]:
        """The content of `eval/before.json` or `eval/after.json`; empty if the file is missing."""
        file = StageDirectory(self.path).evaluations / f"{moment}.json"
        return read_json(file, Evaluation) if file.exists() else {}


@dataclass(frozen=True)
class Run:
    """A run directory, finished or not. Reading it changes nothing.

    >>> import fledge
    >>> run = fledge.Run("runs/mine")
    >>> list(run.stages)
    ['pretrain', 'sft', 'dpo']
    >>> metrics = run.metrics("sft")
    >>> bool(metrics["train/loss"][len(metrics["train/loss"]) - 1] < 10)
    True
    """

    path: Path

    def __init__(self, path: str | Path) -> None:
        """Raises FledgeError if `path` is not a run directory."""
        object.__setattr__(self, "path", Path(path))
        if not self._directory.recipe.exists():
            raise FledgeError("there is no such run: it has no recipe.yaml", where=str(path), hint="`ls runs` shows the runs")
        check_layout(self.path)

    @property
    def _directory(self) -> RunDirectory:
        return RunDirectory(self.path)

    @property
    def name(self) -> str:
        """The name of the run's directory."""
        return self.path.resolve().name

    @property
    def recipe(self) -> Recipe:
        """The recipe of the run, with every key resolved."""
        return load_recipe([str(self._directory.recipe)])

    @property
    def stages(self) -> Mapping[str, RunStage]:
        """The stages by name, in order."""
        return MappingProxyType({name: RunStage(name, self._directory.stage(name).root) for name in self.recipe.stages})

    @overload
    def metrics(self, stage: str | None = None, *, frame: Literal[False]) -> "dict[str, np.ndarray]": ...
    @overload
    def metrics(self, stage: str | None = None, *, frame: Literal[True]) -> "pandas.DataFrame": ...
    @overload
    def metrics(self, stage: str | None = None, *, frame: None = None) -> "pandas.DataFrame | dict[str, np.ndarray]": ...

    def metrics(self, stage: str | None = None, *, frame: bool | None = None) -> Any:
        """All metrics of one stage, or of all stages, as a table: one column per metric, one row per step.

        The columns are `stage`, `step` and the metric names of events.jsonl (`train/loss`, `eval/loss`,
        `system/tokens_per_second`, …). A metric that was not measured at a step is NaN there; columns of lists hold objects.
        Returns a pandas DataFrame where pandas is installed, else a dict of NumPy arrays; `frame` asks for one of the two.
        """
        rows = [row for chosen in self._chosen(stage) for row in metric_rows(chosen)]
        columns = as_columns(rows)
        if frame is None:
            frame = _has_pandas()
        if not frame:
            return columns
        import pandas

        return pandas.DataFrame(columns)

    def samples(self, stage: str | None = None) -> list[Sample]:
        """The answers to the recipe's fixed prompts before and after each stage, or one stage."""
        return [sample for chosen in self._chosen(stage) for sample in chosen.samples()]

    def report(self) -> Path:
        """Write report.html again and return its path: one file that shows the whole run and fetches nothing."""
        from fledge.report import write_report

        return write_report(self.path)

    def model(self, stage: str | None = None) -> "Model":
        """Load the final model of a stage; `stage=None` means the last finished stage."""
        from fledge.api.model import load

        return load(self.path if stage is None else self._chosen(stage)[0].path)

    def _chosen(self, stage: str | None) -> list[RunStage]:
        stages = self.stages
        if stage is None:
            return list(stages.values())
        if stage not in stages:
            raise FledgeError(f"this run has no stage '{stage}'", where=str(self.path), hint=f"it has {', '.join(stages)}")
        return [stages[stage]]


def metric_rows(stage: RunStage) -> list[dict[str, Any]]:
    """One row per step with the metrics of all its events. A mapping becomes one column per key."""
    rows: dict[int, dict[str, Any]] = {}
    for event in stage.events(*METRIC_EVENTS):
        row = rows.setdefault(event["step"], {"stage": stage.name, "step": event["step"]})
        for key, value in event.items():
            if key in ("kind", "step"):
                continue
            nested = value if isinstance(value, dict) else None
            row |= {key: value} if nested is None else {f"{key}/{name}": item for name, item in nested.items()}
    return [rows[step] for step in sorted(rows)]


def as_columns(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Rows as columns [len(rows)]: float64 if every value is a number or missing (NaN), else objects; `step` is int64."""
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["stage", "step"]
    return {name: _column(name, [row.get(name) for row in rows]) for name in names}


def _column(name: str, values: list[Any]) -> np.ndarray:
    if name == "step":
        return np.array(values, dtype=np.int64)
    if all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values):
        return np.array([np.nan if value is None else float(value) for value in values])
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def _has_pandas() -> bool:
    from importlib.util import find_spec

    return find_spec("pandas") is not None
