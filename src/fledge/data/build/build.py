"""From sources to packed data in a build directory: plan, rows, sift, tokens, index. Interrupted builds go on.

```
build_plan.json                  what was asked, the files, the shards
evaluation.safetensors     n-grams of what must not be trained on
rows/<shard>/              items.jsonl (until the build is complete), what is known of each row, notes
keep/<shard>               which rows stay, and why others do not
tokenizer/                 the tokenizer that the tokens were made with
tokens/<shard>/            train.tokens, train.weights, validation.…, index, notes
data_report.json               the ledger
manifest.json              written last: fingerprint, sizes
```
"""

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fledge.data.build.dedup_split import deduplicate_and_split
from fledge.data.build.executors import Executor, InProcessExecutor, ProcessPoolExecutor
from fledge.data.build.folder import init_build
from fledge.data.build.load import StageDataset, load_dataset
from fledge.data.build.phases import CONTAMINATION, TRAIN, complete, evaluation_texts, iter_items, keep_mask
from fledge.data.build.report import account_rows
from fledge.data.build.shards import AnyStage, BuildPlan, Shard, plan_build
from fledge.data.cleaning.contamination import Contamination
from fledge.data.dataset.batches import PackedDataset
from fledge.data.parsing.row_statistics import texts_of
from fledge.data.parsing.rows import Item
from fledge.data.report import DataReport
from fledge.errors import FledgeError
from fledge.run.environment import cores
from fledge.run.text_files import write_json
from fledge.tokenizer import Tokenizer

MIN_BYTES_FOR_WORKERS = 24 * 2**20  # below this, workers cost more time than they save
TELL_SECONDS = 5.0
PHASE_VERBS = {"rows": "read and cleaned", "tokens": "encoded"}
Progress = Callable[[str], None]


def silent(_line: str) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class CollectedRows:
    """The cleaned, deduplicated and divided rows of a stage, before any token exists."""

    folder: Path
    plan: BuildPlan
    ledger: DataReport
    _temporary: Any = field(default=None, repr=False)  # keeps a temporary folder for as long as this lives

    def items(self, part: int = TRAIN) -> Iterator[Item]:
        """The items of training or validation, in order."""
        for shard in self.plan.of_part("train", "validation"):
            yield from iter_items(self.folder / "rows" / shard.folder, keep_mask(self.folder, shard) == part)


def _executor(plan: BuildPlan, chosen: Executor | None) -> Executor:
    if chosen is not None:
        return chosen
    return InProcessExecutor() if plan.size < MIN_BYTES_FOR_WORKERS else ProcessPoolExecutor(cores())


def _run(plan: BuildPlan, folder: Path, phase: str, shards: Sequence[Shard], executor: Executor, progress: Progress) -> None:
    """A phase on the shards that lack it."""
    missing = [shard.number for shard in shards if not complete(folder / phase / shard.folder)]
    finished, told = len(shards) - len(missing), time.monotonic()

    def done(_number: int) -> None:
        nonlocal finished, told
        finished += 1
        if time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            progress(f"{plan.name}: {finished} of {len(shards)} shards {PHASE_VERBS[phase]}")

    if missing:
        executor.run(folder, phase, missing, done)


# -- collect ------------------------------------------------------------------------------------------------------------


def collect(
    stage: AnyStage,
    name: str,
    seed: int,
    folder: Path | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> CollectedRows:
    """Read, clean, deduplicate and divide every row of a stage, into `folder` (None: a temporary one).

    Another build in `folder` gives way. FledgeError names the recipe key of a source that is missing or wholly unusable."""
    plan = plan_build(stage, name, seed)
    temporary = None
    if folder is None:
        temporary = tempfile.TemporaryDirectory(prefix="fledge-", ignore_cleanup_errors=True)
        folder = Path(temporary.name)
    init_build(folder, plan)
    chosen = _executor(plan, executor)
    if not (folder / "keep" / "done").exists():
        _run(plan, folder, "rows", plan.of_part("validation", "evaluation"), chosen, progress)
        _forbid_evaluation(plan, folder)
        _run(plan, folder, "rows", plan.of_part("train"), chosen, progress)
        _check_not_rewritten(plan)
        deduplicate_and_split(folder, plan)
        (folder / "keep" / "done").touch()
    ledger = account_rows(folder, plan)
    _check_not_empty(plan, ledger)
    ledger.close(f"stages.{name}.data", stage.data.max_drop_fraction)
    return CollectedRows(folder, plan, ledger, temporary)


def _forbid_evaluation(plan: BuildPlan, folder: Path) -> None:
    """Write down what training rows must not hold, for the workers."""
    file = folder / CONTAMINATION
    if not plan.stage.data.clean.decontaminate or file.exists():
        return
    if plan.of_part("validation", "evaluation"):
        beside = file.with_name(f".{file.name}.{os.getpid()}")
        Contamination.of(evaluation_texts(plan, folder)).save(beside)
        beside.replace(file)


def _check_not_empty(plan: BuildPlan, ledger: DataReport) -> None:
    """FledgeError for a source without a row."""
    for account, planned in zip(ledger.sources, plan.sources, strict=True):
        if account.rows == 0:
            raise FledgeError(f"'{account.path}' holds no rows: nothing but blank lines, or a header", where=planned.key)


def _check_not_rewritten(plan: BuildPlan) -> None:
    """FledgeError for a file that changed while it was read."""
    for path, size, changed in plan.stamps:
        state = Path(path).stat() if Path(path).exists() else None
        if state is None or (state.st_size, state.st_mtime_ns) != (size, changed):
            raise FledgeError("this file changed while it was read", where=path, hint="start again when it is written")


def texts(collected: CollectedRows) -> Iterator[str]:
    """All training text of a stage, for the tokenizer to learn from."""
    for item in collected.items():
        yield from texts_of(item)


# -- encode -------------------------------------------------------------------------------------------------------------


def encode(
    collected: CollectedRows,
    stage: AnyStage,
    name: str,
    tokenizer: Tokenizer,
    seed: int,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> StageDataset:
    """Tokens, weights and packed rows. A preference row holds a pair, so it is twice as long as the context."""
    folder, plan, key = collected.folder, collected.plan, f"stages.{name}.data"
    _use_tokenizer(folder, tokenizer)
    shards = plan.of_part("train", "validation")
    _run(plan, folder, "tokens", shards, _executor(plan, executor), progress)
    ledger = account_rows(folder, plan, encoded=True)
    ledger.close(key, stage.data.max_drop_fraction)
    data = load_dataset(folder, plan, ledger, tokenizer, collected._temporary)
    if stage.kind == "pretrain":
        _count_split(data.train, ledger, plan)
    write_json(folder / "data_report.json", ledger.as_dict())
    write_json(folder / "manifest.json", _manifest(data, tokenizer))
    return data


def _use_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Put the tokenizer where workers find it; tokens made with another one go."""
    mark = folder / "tokenizer" / "fingerprint"
    if mark.exists() and mark.read_text() == tokenizer.fingerprint():
        return
    shutil.rmtree(folder / "tokens", ignore_errors=True)
    shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    tokenizer.save(folder / "tokenizer")
    mark.write_text(tokenizer.fingerprint())


def _count_split(train: PackedDataset, ledger: DataReport, plan: BuildPlan) -> None:
    """Documents whose tokens lie in more than one packed row."""
    assert train.examples.source is not None
    parts = np.bincount(train.rows.sequence, minlength=train.examples.count)
    counted = Counter(train.examples.source[np.flatnonzero(parts > 1)].tolist())
    for number, count in counted.items():
        ledger.sources[number].split += count


def _manifest(data: StageDataset, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "tokenizer": tokenizer.fingerprint(),
        "train": data.train.account(),
        "validation": data.validation.account() if data.validation else None,
    }
