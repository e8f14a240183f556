"""Writing the files of a task: training, validation and test rows, and a report of what is held out."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from fledge.errors import FledgeError
from fledge.run.text_files import write_text
from fledge.tasks.columns import ColumnsTask
from fledge.tasks.rows import TaskRow
from fledge.tasks.split import COMBINATIONS, GROUPS, SPLITS, TRAIN, Forms, NameSplit
from fledge.tasks.vehicles import VehicleTask

FRACTIONS = {"train": 1.0, "validation": 0.08, "test": 0.15}  # rows of each file, of the rows asked for
MIN_ROWS, MAX_ROWS = 30, 1_000_000
TRIES = 500  # draws of a row that fits; only a lexicon that holds everything out could need as many


class Task(Protocol):
    """A task that makes rows."""

    name: str

    @property
    def name_splits(self) -> tuple[NameSplit, ...]:
        """Its names, divided."""
        ...

    def row(self, rng: random.Random, split: str, group: str) -> TaskRow:
        """A random row of a split and a group."""
        ...


TASKS: dict[str, Callable[[int], Task]] = {"vehicle": VehicleTask, "columns": ColumnsTask}


def make(task_name: str, folder: Path, seed: int, rows: int) -> dict[str, Any]:
    """Write `train.jsonl`, `validation.jsonl`, `test.jsonl` and `report.json` into a folder; returns the report.

    The files are a function of the arguments. Raises FledgeError where the folder has other files of these names.
    """
    if task_name not in TASKS:
        raise FledgeError(f"there is no task '{task_name}'", hint=f"there are {', '.join(TASKS)}")
    if not MIN_ROWS <= rows <= MAX_ROWS:
        raise FledgeError(f"it must be {MIN_ROWS} to {MAX_ROWS:,}, not {rows:,}", where="--rows")
    task = TASKS[task_name](seed)
    splits = {split: list(split_rows(task, seed, split, max(1, round(rows * share)))) for split, share in FRACTIONS.items()}
    report = _report(task, seed, splits)
    files = {f"{split}.jsonl": "".join(_line(row) for row in chosen) for split, chosen in splits.items()}
    files["report.json"] = json.dumps(report, ensure_ascii=False, indent=1) + "\n"
    _check_free(folder, files)
    for name, text in files.items():
        write_text(folder / name, text)
    return report


def split_rows(task: Task, seed: int, split: str, count: int) -> Iterator[TaskRow]:
    """The rows of a split. Held-out splits have the groups in turn; no question appears twice.

    A row is drawn again if its text holds a held-out form by chance, across the borders of its words for instance.
    """
    forbidden = Forms(form for names in task.name_splits for form in names.held_out_from(split))
    groups = (COMBINATIONS,) if split == TRAIN else GROUPS
    seen: set[str] = set()
    for number in range(count):
        rng, group = random.Random(f"{seed}:{task.name}:{split}:{number}"), groups[number % len(groups)]
        for _ in range(TRIES):
            row = task.row(rng, split, group)
            if row.question not in seen and all(forbidden.found_in(turn["content"]) is None for turn in row.messages):
                break
        else:
            raise FledgeError(f"no {count:,} different rows can be made of this task", where="--rows", hint="ask for fewer")
        seen.add(row.question)
        yield row


def _line(row: TaskRow) -> str:
    return json.dumps(row.as_dict(), ensure_ascii=False) + "\n"


def _check_free(folder: Path, files: dict[str, str]) -> None:
    """Raise FledgeError if a file exists with another content."""
    for name, text in files.items():
        file = folder / name
        if file.exists() and (not file.is_file() or file.read_bytes() != text.encode()):
            raise FledgeError("this file exists, with other rows", where=str(file), hint="choose another folder with --out")


def _report(task: Task, seed: int, splits: dict[str, list[TaskRow]]) -> dict[str, Any]:
    """The counts of rows and of variants, and the held-out names in plain text, for a reader to judge."""
    return {
        "task": task.name,
        "seed": seed,
        "rows": {split: len(rows) for split, rows in splits.items()},
        "groups": {split: dict(Counter(row.group for row in rows)) for split, rows in splits.items()},
        "languages": {split: dict(Counter(row.lang for row in rows)) for split, rows in splits.items()},
        "answers": {split: _answer_counts(rows) for split, rows in splits.items()},
        "variants": {names.kind: names.counts() for names in task.name_splits},
        "held_out_names": {
            names.kind: {split: names.held_out_names(split) for split in SPLITS if split != TRAIN} for names in task.name_splits
        },
        "rows_with_held_out_forms": {
            split: _rows_with(rows, Forms(form for names in task.name_splits for form in names.held_out_from(split)))
            for split, rows in splits.items()
        },
    }


def _answer_counts(rows: list[TaskRow]) -> dict[str, int]:
    counts = Counter(value or "null" for row in rows for value in row.answer.values())
    return dict(sorted(counts.items()))


def _rows_with(rows: list[TaskRow], forms: Forms) -> int:
    """Rows whose texts hold a form: counted in what was written, so that the report proves the split."""
    return sum(forms.found_in(turn["content"]) is not None for row in rows for turn in row.messages)
