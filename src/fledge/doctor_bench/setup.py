"""A run of the bench before it begins: its recipe, which conditions may change, and its rows."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(kw_only=True)
class RunSetup:
    """The recipe of one run as plain data, and where things are.

    `recipe`: the whole tree; `stage_name`: of its only stage. `shape`: name of the shape of the stage. `folder`: of the run's
    own files (changed rows, the run directory). `tokenizer`: folder of the group's tokenizer. `seed`: of the run. `steps`,
    `rate`: updates and learning rate of the healthy run.
    """

    recipe: dict[str, Any]
    stage_name: str
    shape: str
    folder: Path
    tokenizer: Path
    seed: int
    steps: int
    rate: float

    @property
    def stage(self) -> dict[str, Any]:
        """The stage of the recipe."""
        return self.recipe["stages"][self.stage_name]

    @property
    def run(self) -> Path:
        """The run directory."""
        return Path(self.recipe["output"]) / self.recipe["name"]

    @property
    def stage_directory(self) -> Path:
        """The directory of the stage."""
        return self.run / self.stage_name

    def rows(self, split: str = "train") -> list[Row]:
        """The rows of a split's file."""
        return read_rows(Path(self.stage["data"][split]))

    def set_rows(self, rows: Sequence[Row], split: str = "train") -> None:
        """Train on (or validate with) these rows."""
        file = self.folder / f"{split}.jsonl"
        write_rows(file, rows)
        self.stage["data"][split] = str(file)

    def change_rows(self, change: Callable[[list[Row]], list[Row]], *splits: str) -> None:
        """Replace the rows of splits by what `change` makes of them."""
        for split in splits or ("train",):
            self.set_rows(change(self.rows(split)), split)

    def set(self, section: str, **values: Any) -> None:
        """Set keys of a section of the stage, such as `optimizer`."""
        self.stage[section] = {**self.stage.get(section, {}), **values}


def read_rows(file: Path) -> list[Row]:
    """The objects of a JSONL file."""
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_rows(file: Path, rows: Sequence[Row]) -> None:
    """Write objects as JSONL."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
