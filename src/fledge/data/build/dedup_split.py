"""Which items stay, decided over all shards: exact and near duplicates are dropped, and the validation share is split off.

Works on hashes and signatures; only the texts of suspected near duplicates are read again. The result is one mask a shard: 0
dropped, 1 training, 2 validation.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orjson
from safetensors.numpy import save_file

from fledge.data.build.directory import EVENTS_FILE, TRAIN, VALIDATION, BuildDirectory
from fledge.data.build.plan import Shard
from fledge.data.build.shard_items import ShardItems
from fledge.data.cleaning.duplicates import find_near_duplicates, first_occurrences
from fledge.data.row_events import RowEvent, RowEventLog
from fledge.data.storage import load_arrays
from fledge.errors import FledgeError
from fledge.run.text_files import give_usual_mode

DONE_FILE = "done"


def run_deduplicate_and_split(build: BuildDirectory) -> None:
    """Decide which items of all shards stay, and write `keep/`, unless that is done."""
    if (build.keep / DONE_FILE).exists():
        return
    data = build.plan.data
    train = _JoinedShards(build, build.plan.shards_of("train"))
    held_out = _JoinedShards(build, build.plan.shards_of("validation"))
    if data.clean.exact_duplicates:
        train.drop_exact_duplicates()
        held_out.drop_exact_duplicates()
    if data.clean.near_duplicates is not None:
        train.drop_near_duplicates(data.clean.near_duplicates)
    if isinstance(data.validation, int | float):
        train.split_validation(data.validation)
    held_out.keep[held_out.keep == TRAIN] = VALIDATION
    for joined in (train, held_out):
        joined.write(build.keep)
    (build.keep / DONE_FILE).touch()


class _JoinedShards:
    """The items of several shards as one sequence, and which of them stay: `keep` uint8 [N]."""

    def __init__(self, build: BuildDirectory, shards: Sequence[Shard]) -> None:
        self.items = [ShardItems.of(build, shard) for shard in shards]
        self.starts = np.concatenate(([0], np.cumsum([len(items) for items in self.items]))).astype(np.int64)
        self.keep = np.full(int(self.starts[-1]), TRAIN, np.uint8)
        self.events: dict[int, RowEvent] = {}  # index -> why an item is dropped

    def column(self, name: str) -> np.ndarray:
        """One array over all shards."""
        return np.concatenate([items.arrays[name] for items in self.items]) if self.items else np.zeros(0)

    def locate(self, index: int) -> tuple[ShardItems, int]:
        """The shard of an item, and its index there."""
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.items[number], index - int(self.starts[number])

    def location(self, index: int) -> str:
        """FILE:LINE of an item."""
        items, inside = self.locate(index)
        return items.location(inside)

    def drop(self, index: int, reason: str, detail: str) -> None:
        """Leave an item out for this reason."""
        self.keep[index] = 0
        self.events[index] = RowEvent("dropped", reason, detail)

    def drop_exact_duplicates(self) -> None:
        """Drop items equal to an earlier one."""
        if not len(self.keep):
            return
        first = first_occurrences(self.column("hash"))
        for index in np.flatnonzero(first != np.arange(len(first))).tolist():
            self.drop(index, "exact duplicate", f"of {self.location(int(first[index]))}")

    def drop_near_duplicates(self, threshold: float) -> None:
        """Drop items that share most n-grams with an earlier one (true Jaccard, not its estimate)."""
        left = np.flatnonzero(self.keep)
        if not len(left):
            return
        libraries = {items.signature_library for items in self.items}
        if len(libraries) > 1:
            raise FledgeError(
                f"the shards were made with different signatures: {', '.join(sorted(map(str, libraries)))}",
                where="clean.near_duplicates",
                hint="install the extra `data` on every machine, remove the build directory, and build again",
            )
        files = [items.folder / "signatures.safetensors" for items in self.items]
        signatures = np.concatenate([load_arrays(file)["signatures"] for file in files if file.exists()])[left]

        def text(index: int) -> str:
            items, inside = self.locate(int(left[index]))
            return items.text(inside)

        for index, first, overlap in find_near_duplicates(signatures, threshold, text):
            detail = f"of {self.location(int(left[first]))}, Jaccard {overlap:.2f}"
            self.drop(int(left[index]), "near duplicate", detail)

    def split_validation(self, fraction: float) -> None:
        """Split off validation by a hash of the content, so equal rows always fall on the same side. At least one row."""
        left = np.flatnonzero(self.keep)
        if not fraction or not len(left):
            return
        draws = self.column("draw")[left]
        border = max(int(fraction * 2**64), int(draws.min()))
        self.keep[left[draws <= np.uint64(border)]] = VALIDATION

    def write(self, folder: Path) -> None:
        """For each shard its mask, the events about its dropped items, and their counts."""
        folder.mkdir(parents=True, exist_ok=True)
        for items, start, stop in zip(self.items, self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True):
            name = items.shard.folder
            with (folder / f"{name}.{EVENTS_FILE}").open("wb") as file:
                log = RowEventLog(file)
                for index in (start + np.flatnonzero(self.keep[start:stop] == 0)).tolist():
                    if index in self.events:
                        log.add(items.row(index - start), items.location(index - start), self.events[index])
            (folder / f"{name}.json").write_bytes(orjson.dumps(log.as_dict()))
            file = folder / f"{name}.safetensors"
            save_file({"keep": self.keep[start:stop]}, file)
            give_usual_mode(file)
