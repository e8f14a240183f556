"""Which rows stay, seen over all shards: exact and near duplicates go, and the validation share is divided off.

Works on hashes and signatures; only the texts of suspected near duplicates are read again. The result is one array a shard:
0 left out, 1 training, 2 validation.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orjson
from safetensors.numpy import save_file

from fledge.data.build.phases import TRAIN, VALIDATION
from fledge.data.build.shard_items import ShardRows
from fledge.data.build.shards import BuildPlan, Shard
from fledge.data.cleaning.duplicates import find_near_duplicates, first_occurrences
from fledge.data.report import RowEventLog
from fledge.data.storage import load_arrays
from fledge.errors import FledgeError


class _Part:
    """The rows of several shards as one sequence."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self.rows = [ShardRows.of(folder, shard) for shard in shards]
        self.starts = np.concatenate(([0], np.cumsum([len(rows) for rows in self.rows]))).astype(np.int64)
        self.keep = np.full(int(self.starts[-1]), TRAIN, np.uint8)
        self.reasons: dict[int, tuple[str, str]] = {}  # index -> (reason, detail) of those left out

    def column(self, name: str) -> np.ndarray:
        """One array over all shards."""
        return np.concatenate([rows.arrays[name] for rows in self.rows]) if self.rows else np.zeros(0)

    def locate(self, index: int) -> tuple[ShardRows, int]:
        """The shard of an item, and its number there."""
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.rows[number], index - int(self.starts[number])

    def where(self, index: int) -> str:
        """file:line of an item."""
        rows, inside = self.locate(index)
        return rows.where(inside)

    def drop(self, index: int, reason: str, detail: str) -> None:
        """Account for an item that is not used."""
        self.keep[index] = 0
        self.reasons[index] = (reason, detail)

    def exact_duplicates(self) -> None:
        """Leave out items equal to an earlier one."""
        if not len(self.keep):
            return
        first = first_occurrences(self.column("hash"))
        for index in np.flatnonzero(first != np.arange(len(first))).tolist():
            self.drop(index, "exact duplicate", f"of {self.where(int(first[index]))}")

    def near_duplicates(self, threshold: float) -> None:
        """Leave out items that share most n-grams with an earlier one (true Jaccard, not its estimate)."""
        left = np.flatnonzero(self.keep)
        files = [rows.folder / "signatures.safetensors" for rows in self.rows]
        if not len(left):
            return
        made_by = {rows.signatures for rows in self.rows}
        if len(made_by) > 1:
            raise FledgeError(
                f"the shards were made with different signatures: {', '.join(sorted(map(str, made_by)))}",
                where="clean.near_duplicates",
                hint="install the extra `data` on every machine, remove the build directory, and build again",
            )
        signatures = np.concatenate([load_arrays(file)["signatures"] for file in files if file.exists()])[left]

        def text(index: int) -> str:
            rows, inside = self.locate(int(left[index]))
            return rows.text(inside)

        for index, first, share in find_near_duplicates(signatures, threshold, text):
            self.drop(int(left[index]), "near duplicate", f"of {self.where(int(left[first]))}, Jaccard {share:.2f}")

    def split_validation(self, share: float) -> None:
        """Validation by a hash of the content: the same row always falls on the same side. At least one row."""
        left = np.flatnonzero(self.keep)
        if not share or not len(left):
            return
        draws = self.column("draw")[left]
        border = max(int(share * 2**64), int(draws.min()))
        self.keep[left[draws <= np.uint64(border)]] = VALIDATION

    def write(self, folder: Path) -> None:
        """One array and one file of notes a shard."""
        folder.mkdir(parents=True, exist_ok=True)
        for rows, start, stop in zip(self.rows, self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True):
            name = rows.shard.folder
            with (folder / f"{name}.row_events.jsonl").open("wb") as file:
                notes = RowEventLog(file)
                for index in (start + np.flatnonzero(self.keep[start:stop] == 0)).tolist():
                    if index in self.reasons:
                        row = int(rows.arrays["row"][index - start])
                        notes.add(row, rows.where(index - start), "dropped", *self.reasons[index])
            (folder / f"{name}.json").write_bytes(orjson.dumps(notes.as_dict()))
            save_file({"keep": self.keep[start:stop]}, folder / f"{name}.safetensors")


def deduplicate_and_split(folder: Path, plan: BuildPlan) -> None:
    """Decide over all shards, and write `keep/`."""
    config, validation = plan.stage.data.clean, plan.stage.data.validation
    train = _Part(folder, plan.of_part("train"))
    held_out = _Part(folder, plan.of_part("validation"))
    if config.exact_duplicates:
        train.exact_duplicates()
        held_out.exact_duplicates()
    if config.near_duplicates is not None:
        train.near_duplicates(config.near_duplicates)
    if isinstance(validation, int | float):
        train.split_validation(validation)
    held_out.keep[held_out.keep == TRAIN] = VALIDATION
    for part in (train, held_out):
        part.write(folder / "keep")
