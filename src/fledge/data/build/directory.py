"""The directory of a build: the files of each phase, and the functions that begin, continue, replace and remove a build.

```
build_plan.json            what was requested, the files, the shards
evaluation.safetensors     n-grams of what must not be trained on
rows/<shard>/              read phase: items.jsonl (until the build is complete), rows.safetensors, events, result.json
keep/<shard>.*             which items stay, and why others do not
tokenizer/                 the tokenizer that the tokens were made with
tokens/<shard>/            tokenize phase: train.tokens, train.weights, validation.…, index.safetensors, events, result.json
data_report.json           counts of the rows: read, used, dropped and changed, by reason
manifest.json              written last: fingerprints and sizes ```

`events` are the events about the shard's rows (`row_events.jsonl`).
"""

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fledge.data.build.phase_output import is_finished
from fledge.data.build.plan import BuildPlan, Shard
from fledge.data.storage import load_arrays
from fledge.errors import FledgeError
from fledge.recipe.diff import changed_leaves
from fledge.run.text_files import write_text

TRAIN, VALIDATION = 1, 2  # in the keep mask of a shard; 0 is dropped
PLAN_FILE, REPORT_FILE, MANIFEST_FILE = "build_plan.json", "data_report.json", "manifest.json"
EVENTS_FILE = "row_events.jsonl"


@dataclass(frozen=True)
class BuildDirectory:
    """A build directory and its plan; gives the paths of each shard's files."""

    folder: Path
    plan: BuildPlan

    @classmethod
    def open(cls, folder: Path) -> "BuildDirectory":
        """Open a build that was begun. Raises FledgeError if the folder has none."""
        return cls(folder, BuildPlan.read(folder / PLAN_FILE))

    @classmethod
    def begin(cls, folder: Path, plan: BuildPlan) -> "BuildDirectory":
        """Begin a build, or continue one that was begun for equal data; a build of other data is removed.

        Raises FledgeError if the folder holds something else than a build."""
        file = folder / PLAN_FILE
        if not file.exists() and folder.exists() and any(folder.iterdir()):
            raise FledgeError(
                "this folder holds something else", where=str(folder), hint="move it away, or choose another folder"
            )
        if file.exists() and not (_holds_same_data(file, plan) and cls(folder, plan).has_items()):
            remove_build(folder)
        for unfinished in (*folder.glob("rows/.*"), *folder.glob("tokens/.*")):
            shutil.rmtree(unfinished, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists() or file.read_bytes() != plan.to_json():
            write_text(file, plan.to_json().decode())
        return cls(folder, plan)

    # -- where things are -------------------------------------------------------------------------------------------

    def rows(self, shard: Shard) -> Path:
        """The output folder of the read phase for a shard."""
        return self.folder / "rows" / shard.folder

    def tokens(self, shard: Shard) -> Path:
        """The output folder of the tokenize phase for a shard."""
        return self.folder / "tokens" / shard.folder

    @property
    def keep(self) -> Path:
        """The folder of the keep masks: for each shard the mask of the kept items, counts and events."""
        return self.folder / "keep"

    @property
    def contamination(self) -> Path:
        """The file with the n-grams of the evaluation texts, which must not be trained on."""
        return self.folder / "evaluation.safetensors"

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer that encodes the items."""
        return self.folder / "tokenizer"

    # -- what is there ----------------------------------------------------------------------------------------------

    def keep_mask(self, shard: Shard) -> np.ndarray:
        """The keep mask of a shard, uint8 [items]: 0 (dropped), TRAIN or VALIDATION."""
        return load_arrays(self.keep / f"{shard.folder}.safetensors")["keep"]

    def kept_items(self, shard: Shard) -> int:
        """Number of items of a shard that stay."""
        return int(np.count_nonzero(self.keep_mask(shard)))

    def event_files(self, shard: Shard) -> tuple[Path, Path, Path]:
        """The files of events about the rows of a shard, in the order of the phases."""
        return (
            self.rows(shard) / EVENTS_FILE,
            self.keep / f"{shard.folder}.{EVENTS_FILE}",
            self.tokens(shard) / EVENTS_FILE,
        )

    def has_items(self) -> bool:
        """Whether the items of all read shards still exist, so that they can be encoded."""
        read = [self.rows(shard) for shard in self.plan.shards if is_finished(self.rows(shard))]
        return all((rows / "items.jsonl").exists() for rows in read)


# -- a whole build ------------------------------------------------------------------------------------------------------


def _holds_same_data(file: Path, plan: BuildPlan) -> bool:
    """Whether the build of this plan file was begun for equal data; false if the file cannot be read."""
    try:
        return BuildPlan.read(file).same_data_as(plan)
    except FledgeError:
        return False


def is_complete(folder: Path) -> bool:
    """Whether a build directory holds all its tokens."""
    return (folder / MANIFEST_FILE).exists() and (folder / REPORT_FILE).exists()


def remove_build(folder: Path) -> None:
    """Remove the files of a build, and its folder if nothing else is in it."""
    if not (folder / PLAN_FILE).exists():
        return
    for name in ("rows", "keep", "tokens", "tokenizer", "jobs"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("evaluation.safetensors", REPORT_FILE, MANIFEST_FILE, PLAN_FILE):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def drop_items(folder: Path) -> None:
    """Remove what only serves to continue an interrupted build, once all stages of a run are complete."""
    for name in ("items.jsonl", "signatures.safetensors"):
        for file in folder.glob(f"rows/*/{name}"):
            file.unlink()


def check_unchanged(folder: Path, plan: BuildPlan) -> None:
    """Raise FledgeError if a complete build was made from other files or with another recipe."""
    before = BuildPlan.read(folder / PLAN_FILE)
    if before.same_data_as(plan):
        return
    files = sorted({path for path, *_ in set(before.stamps) ^ set(plan.stamps)})
    changed = [*differences(before.requested, plan.requested), *(f"{path}: changed since" for path in files)]
    raise FledgeError(
        "this directory was built from other data:\n  " + "\n  ".join(changed or ["sources or installed extras differ"]),
        where=str(folder),
        hint="build into another folder, or remove this one",
    )


def differences(built: dict[str, Any], requested: dict[str, Any]) -> list[str]:
    """One line for each value that the build was made with and that differs from the requested one."""
    changed = changed_leaves(built, requested)
    return [f"{key}: built with {before!r}, requested {after!r}" for key, before, after in changed]
