"""Building the data of a stage, in one direction: plan, read, deduplicate and split, tokenize, load.

    collect: files -> items that stay          encode: items -> tokens -> packed data

Each step writes into the build directory (see `directory.py`), so an interrupted build continues where it ended.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fledge.data.build.dedup_split import run_deduplicate_and_split
from fledge.data.build.directory import MANIFEST_FILE, REPORT_FILE, TRAIN, VALIDATION, BuildDirectory
from fledge.data.build.executors import Executor, InProcessExecutor, ProcessPoolExecutor
from fledge.data.build.load import StageDataset, load_dataset
from fledge.data.build.phase_output import is_finished
from fledge.data.build.plan import BuildPlan, Shard, plan_build
from fledge.data.build.report import add_split_documents, report_rows, report_tokens
from fledge.data.build.shard_items import ShardItems
from fledge.data.cleaning.contamination import Contamination
from fledge.data.formats import DataStage
from fledge.data.parsing.items import Item
from fledge.data.report import DataReport
from fledge.errors import FledgeError
from fledge.run.environment import cores
from fledge.run.text_files import write_json
from fledge.tokenizer import Tokenizer

MIN_BYTES_FOR_WORKERS = 24 * 2**20  # below this, workers cost more time than they save
PROGRESS_SECONDS = 5.0
PHASE_VERBS = {"rows": "read and cleaned", "tokens": "encoded"}
Progress = Callable[[str], None]


def silent(_line: str) -> None:
    """Progress that is not shown."""


@dataclass(frozen=True)
class CollectedRows:
    """The cleaned, deduplicated and split rows of a stage, before any token exists."""

    build: BuildDirectory
    report: DataReport
    _temporary: Any = field(default=None, repr=False)  # keeps a temporary folder for as long as this lives

    @property
    def plan(self) -> BuildPlan:
        """The plan of the build."""
        return self.build.plan

    def items(self, mark: int = TRAIN) -> Iterator[Item]:
        """The items of training or validation (TRAIN, VALIDATION), in order."""
        for shard in self.plan.encoded_shards():
            yield from ShardItems.of(self.build, shard).read(self.build.keep_mask(shard) == mark)

    def tokenizer_texts(self) -> Iterator[str]:
        """All training text of the stage, for a tokenizer to learn from."""
        for item in self.items():
            yield from self.plan.format.tokenizer_texts(item)


def collect(
    stage: DataStage,
    name: str,
    seed: int,
    folder: Path | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> CollectedRows:
    """Read, clean, deduplicate and split every row of a stage, into `folder` (None: a temporary one).

    A build of other data in `folder` is removed. FledgeError names the recipe key of a source that is missing or wholly
    unusable."""
    plan = plan_build(stage, name, seed)
    temporary = None
    if folder is None:
        temporary = tempfile.TemporaryDirectory(prefix="fledge-", ignore_cleanup_errors=True)
        folder = Path(temporary.name)
    build = BuildDirectory.begin(folder, plan)
    _run_phase(build, "rows", plan.shards_of("validation", "evaluation"), executor, progress)
    _write_contamination(build)
    _run_phase(build, "rows", plan.shards_of("train"), executor, progress)
    _check_not_rewritten(build)
    run_deduplicate_and_split(build)
    report = report_rows(build)
    _check_not_empty(plan, report)
    report.check(plan.key, plan.data.max_drop_fraction)
    _check_training_rows(build)
    return CollectedRows(build, report, temporary)


def encode(
    collected: CollectedRows, tokenizer: Tokenizer, executor: Executor | None = None, progress: Progress = silent
) -> StageDataset:
    """Turn the collected rows of a stage into tokens and loss weights, and load them as packed data."""
    build, plan = collected.build, collected.plan
    _use_tokenizer(build, tokenizer)
    _run_phase(build, "tokens", plan.encoded_shards(), executor, progress)
    report = report_tokens(collected.report, build)
    report.check(plan.key, plan.data.max_drop_fraction)
    dataset = load_dataset(build, report, tokenizer, collected._temporary)
    if plan.format.splits_documents:
        add_split_documents(report, dataset.train)
    write_json(build.folder / REPORT_FILE, report.as_dict())
    write_json(build.folder / MANIFEST_FILE, _manifest(dataset, tokenizer))
    return dataset


def _run_phase(
    build: BuildDirectory, phase: str, shards: Sequence[Shard], executor: Executor | None, progress: Progress
) -> None:
    """Run a phase on the shards that lack it, with workers where that saves time."""
    missing = [shard.number for shard in shards if not is_finished(build.folder / phase / shard.folder)]
    finished, reported = len(shards) - len(missing), time.monotonic()

    def done(_number: int) -> None:
        nonlocal finished, reported
        finished += 1
        if time.monotonic() - reported > PROGRESS_SECONDS:
            reported = time.monotonic()
            progress(f"{build.plan.name}: {finished} of {len(shards)} shards {PHASE_VERBS[phase]}")

    if executor is None:
        executor = InProcessExecutor() if build.plan.size < MIN_BYTES_FOR_WORKERS else ProcessPoolExecutor(cores())
    if missing:
        executor.run(build, phase, missing, done)


def _write_contamination(build: BuildDirectory) -> None:
    """Write the n-grams of what training rows must not hold, for the workers: of validation and evaluation files."""
    shards = build.plan.shards_of("validation", "evaluation")
    file = build.contamination
    if not build.plan.data.clean.decontaminate or file.exists() or not shards:
        return
    questions = (item.question for shard in shards for item in ShardItems.of(build, shard).read())
    tmp_path = file.with_name(f".{file.name}.{os.getpid()}")
    Contamination.of(questions).save(tmp_path)
    tmp_path.replace(file)


def _check_not_rewritten(build: BuildDirectory) -> None:
    """FledgeError for a file that changed while it was read."""
    for path, size, changed in build.plan.stamps:
        state = Path(path).stat() if Path(path).exists() else None
        if state is None or (state.st_size, state.st_mtime_ns) != (size, changed):
            raise FledgeError("this file changed while it was read", where=path, hint="start again when it is written")


def _check_not_empty(plan: BuildPlan, report: DataReport) -> None:
    """FledgeError for a source without a row."""
    for source, planned in zip(report.sources, plan.sources, strict=True):
        if source.rows == 0:
            raise FledgeError(f"'{source.path}' holds no rows{_emptiness(source.path)}", where=planned.key)


def _emptiness(path: str | None) -> str:
    """How a source is empty, for an error."""
    file = Path(path or "")
    if not file.is_file():
        return ": its files are empty, or have only blank lines or a header"
    if file.stat().st_size == 0:
        return ": it is empty (0 bytes)"
    return {".json": ": it is an empty array", ".csv": ": it has only a header", ".tsv": ": it has only a header"}.get(
        file.suffix.lower(), ": it has only blank lines"
    )


def _check_training_rows(build: BuildDirectory) -> None:
    """FledgeError if the share for validation takes every row."""
    shards = build.plan.shards_of("train")
    counts = sum(
        (np.bincount(build.keep_mask(shard), minlength=VALIDATION + 1) for shard in shards), np.zeros(VALIDATION + 1, int)
    )
    if counts[VALIDATION] and not counts[TRAIN]:
        rows = f"all {counts[VALIDATION]:,} usable rows" if counts[VALIDATION] > 1 else "the only usable row"
        raise FledgeError(
            f"{rows} went to validation; none is left to train on",
            where=f"{build.plan.key}.validation",
            hint="write validation: 0, or add rows",
        )


def _use_tokenizer(build: BuildDirectory, tokenizer: Tokenizer) -> None:
    """Put the tokenizer where workers find it; tokens made with another one are removed."""
    mark = build.tokenizer / "fingerprint"
    if mark.exists() and mark.read_text() == tokenizer.fingerprint():
        return
    shutil.rmtree(build.folder / "tokens", ignore_errors=True)
    shutil.rmtree(build.tokenizer, ignore_errors=True)
    tokenizer.save(build.tokenizer)
    mark.write_text(tokenizer.fingerprint())


def _manifest(dataset: StageDataset, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "tokenizer": tokenizer.fingerprint(),
        "train": dataset.train.summary(),
        "validation": dataset.validation.summary() if dataset.validation else None,
    }
