"""Where a run keeps what; and how a file is written so that a reader never sees half of it."""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.errors import FledgeError


def write_text(path: Path, text: str) -> None:
    """Write beside, flush to disk, rename."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise FledgeError(f"cannot write: {error.strerror}", where=str(path), hint="free some space or set output") from None


def write_and_verify(path: Path, text: str) -> None:
    """Write a file of something that is made whole elsewhere, and read it back: OSError where the disk has not kept it."""
    path.write_text(text, encoding="utf-8")
    try:
        kept = path.read_bytes() == text.encode("utf-8")
    except FileNotFoundError:
        kept = False
    if not kept:
        raise OSError(f"{path.name} reads back otherwise than it was written")


def write_json(path: Path, value: Any) -> None:
    """JSON, readable, in one piece."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=True) + "\n")


def read_json(path: Path) -> Any:
    """The value of a JSON file; FledgeError where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FledgeError("this file is missing", where=str(path)) from None
    except ValueError as error:
        raise FledgeError(f"damaged: {error}", where=str(path)) from None


@dataclass(frozen=True)
class StageDirectory:
    """`<run>/<stage>/`."""

    root: Path

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def data(self) -> Path:
        """The stage's data as it was built for this run."""
        return self.root / "data"

    @property
    def done(self) -> Path:
        """Written last: the stage's result, and which model goes on."""
        return self.root / "result.json"

    @property
    def evaluations(self) -> Path:
        return self.root / "eval"

    @property
    def regression(self) -> Path:
        """Failing regression prompts, a file for each examination."""
        return self.root / "prompt_tests"

    def result(self) -> dict[str, Any] | None:
        """The stage's result, or None while it is not finished."""
        return read_json(self.done) if self.done.exists() else None


@dataclass(frozen=True)
class RunDirectory:
    """`<output>/<name>/`."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    def stage(self, name: str) -> StageDirectory:
        return StageDirectory(self.root / name)


def _of_checkpoint(path: Path) -> Path:
    """The model to use of a checkpoint: with averaged weights, where the stage averages them."""
    return path / "averaged" if (path / "averaged" / "config.json").exists() else path / "model"


def resolve_model_path(place: str) -> Path:
    """The model directory that a person means by a run, a stage, a checkpoint or a model directory.

    A run means its last finished stage. FledgeError where there is none yet.
    """
    path = Path(place)
    if not path.exists():
        raise FledgeError("there is no such run or model", where=place, hint="`ls runs` shows the runs")
    if (path / "config.json").exists():
        return path
    if (path / "model" / "config.json").exists():
        return _of_checkpoint(path)
    if (path / "result.json").exists():
        return path / read_json(path / "result.json")["model"]
    if (path / "recipe.yaml").exists():
        finished = [stage for stage in path.glob("*/result.json")]
        if finished:
            newest = max(finished, key=lambda file: (read_json(file)["order"], file.name))
            return newest.parent / read_json(newest)["model"]
    for last in [path / "checkpoints" / "last", *sorted(path.glob("*/checkpoints/last"))][::-1]:
        if (last / "model" / "config.json").exists():
            return _of_checkpoint(last)
    raise FledgeError("there is no model here yet", where=place, hint="let its training reach a checkpoint")
