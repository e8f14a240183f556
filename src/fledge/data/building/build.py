"""From sources to packed data in a build directory: plan, rows, sift, tokens, index. Interrupted builds go on.

```
plan.json                  what was asked, the files, the shards
evaluation.safetensors     n-grams of what must not be trained on
rows/<shard>/              items.jsonl (until the build is complete), what is known of each row, notes
keep/<shard>               which rows stay, and why others do not
tokenizer/                 the tokenizer that the tokens were made with
tokens/<shard>/            train.tokens, train.weights, validation.…, index, notes
account.json               the ledger
manifest.json              written last: fingerprint, sizes
```
"""

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import xxhash

from fledge.data.batches import PackedData
from fledge.data.building.executors import Executor, Here, Processes, cores
from fledge.data.building.shards import AnyStage, BuildPlan, Shard, plan_build
from fledge.data.building.sift import sift
from fledge.data.building.work import CONTAMINATION, TRAIN, VALIDATION, complete, evaluation_texts, items_of
from fledge.data.cleaning.contamination import Contamination
from fledge.data.ledger import Ledger, SourceAccount, read_notes
from fledge.data.mixing import Mixture, Quota
from fledge.data.reading.records import remarks
from fledge.data.rows.facts import texts_of
from fledge.data.rows.items import Item
from fledge.data.storage import Examples, Joined, Ones, arrays_of, digest_of, mapped, token_type
from fledge.errors import FledgeError
from fledge.tokenizer import Tokenizer

ALONE_BYTES = 24 * 2**20  # below this, workers cost more time than they save
TELL_SECONDS = 5.0
DOING = {"rows": "read and cleaned", "tokens": "encoded"}
Progress = Callable[[str], None]


def silent(_line: str) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Collected:
    """The cleaned, deduplicated and divided rows of a stage, before any token exists."""

    folder: Path
    plan: BuildPlan
    ledger: Ledger
    _temporary: Any = field(default=None, repr=False)  # keeps a temporary folder for as long as this lives

    def items(self, part: int = TRAIN) -> Iterator[Item]:
        """The items of training or validation, in order."""
        for shard in self.plan.of_part("train", "validation"):
            keep = arrays_of(self.folder / "keep" / f"{shard.folder}.safetensors")["keep"]
            yield from items_of(self.folder / "rows" / shard.folder, keep == part)


@dataclass(frozen=True)
class StageData:
    """What a stage trains on and is validated on."""

    folder: Path
    train: PackedData
    validation: PackedData | None
    ledger: Ledger
    _temporary: Any = field(default=None, repr=False)

    def account(self) -> dict[str, Any]:
        """data.json."""
        validation = self.validation.account() if self.validation else None
        mixture = self.train.mixture
        made = {**self.ledger.as_dict(), "train": self.train.account(), "validation": validation}
        return {**made, "mixture": mixture.account(0) if mixture else None}


def _executor(plan: BuildPlan, chosen: Executor | None) -> Executor:
    if chosen is not None:
        return chosen
    return Here() if plan.size < ALONE_BYTES else Processes(cores())


def _run(plan: BuildPlan, folder: Path, phase: str, shards: Sequence[Shard], executor: Executor, progress: Progress) -> None:
    """A phase on the shards that lack it."""
    missing = [shard.number for shard in shards if not complete(folder / phase / shard.folder)]
    finished, told = len(shards) - len(missing), time.monotonic()

    def done(_number: int) -> None:
        nonlocal finished, told
        finished += 1
        if time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            progress(f"{plan.name}: {finished} of {len(shards)} shards {DOING[phase]}")

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
) -> Collected:
    """Read, clean, deduplicate and divide every row of a stage, into `folder` (None: a temporary one).

    Another build in `folder` gives way. FledgeError names the recipe key of a source that is missing or wholly unusable."""
    plan = plan_build(stage, name, seed)
    temporary = None
    if folder is None:
        temporary = tempfile.TemporaryDirectory(prefix="fledge-", ignore_cleanup_errors=True)
        folder = Path(temporary.name)
    _begin(folder, plan)
    chosen = _executor(plan, executor)
    if not (folder / "keep" / "done").exists():
        _run(plan, folder, "rows", plan.of_part("validation", "evaluation"), chosen, progress)
        _forbid_evaluation(plan, folder)
        _run(plan, folder, "rows", plan.of_part("train"), chosen, progress)
        _refuse_rewritten(plan)
        sift(folder, plan)
        (folder / "keep" / "done").touch()
    ledger = _collect_ledger(plan, folder)
    ledger.refuse_unusable(f"stages.{name}.data", stage.data.max_dropped)
    return Collected(folder, plan, ledger, temporary)


def _begin(folder: Path, plan: BuildPlan) -> None:
    """A new build, or the same one again; another one's leavings go. FledgeError where the folder holds something else."""
    file = folder / "plan.json"
    if not file.exists() and folder.exists() and any(folder.iterdir()):
        raise FledgeError("this folder holds something else", where=str(folder), hint="move it away, or choose another folder")
    if file.exists() and (file.read_bytes() != plan.encoded() or not _has_items(folder, plan)):
        remove_build(folder)
    for half in (*folder.glob("rows/.*"), *folder.glob("tokens/.*")):
        shutil.rmtree(half, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        _write(file, plan.encoded())


def _has_items(folder: Path, plan: BuildPlan) -> bool:
    """Whether the rows that were read are still there to be encoded."""
    read = [folder / "rows" / shard.folder for shard in plan.shards if complete(folder / "rows" / shard.folder)]
    return all((rows / "items.jsonl").exists() for rows in read)


def remove_build(folder: Path) -> None:
    """Remove what a build wrote into a folder, and the folder if nothing else is in it."""
    if not (folder / "plan.json").exists():
        return
    for name in ("rows", "keep", "tokens", "tokenizer", "jobs"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (CONTAMINATION, "account.json", "manifest.json", "plan.json"):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def drop_items(folder: Path) -> None:
    """Remove what only serves to go on with an interrupted build, once all stages of a run are complete."""
    for name in ("items.jsonl", "signatures.safetensors"):
        for file in folder.glob(f"rows/*/{name}"):
            file.unlink()


def refuse_changed(folder: Path, plan: BuildPlan) -> None:
    """FledgeError where a complete build was made from other files or with another recipe."""
    before = BuildPlan.read(folder / "plan.json")
    if before.encoded() == plan.encoded():
        return
    files = sorted({path for path, *_ in set(before.stamps) ^ set(plan.stamps)})
    changed = [*_differences(before.asked, plan.asked), *(f"{path}: changed since" for path in files)]
    raise FledgeError(
        "this directory was built from other data:\n  " + "\n  ".join(changed or ["sources or installed extras differ"]),
        where=str(folder),
        hint="build into another folder, or remove this one",
    )


def _write(file: Path, content: bytes) -> None:
    """In one piece: beside, then renamed."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    beside.write_bytes(content)
    beside.replace(file)


def _forbid_evaluation(plan: BuildPlan, folder: Path) -> None:
    """Write down what training rows must not hold, for the workers."""
    file = folder / CONTAMINATION
    if not plan.stage.data.clean.contamination or file.exists():
        return
    if plan.of_part("validation", "evaluation"):
        beside = file.with_name(f".{file.name}.{os.getpid()}")
        Contamination.of(evaluation_texts(plan, folder)).save(beside)
        beside.replace(file)


def _refuse_rewritten(plan: BuildPlan) -> None:
    """FledgeError for a file that changed while it was read."""
    for path, size, changed in plan.stamps:
        state = Path(path).stat() if Path(path).exists() else None
        if state is None or (state.st_size, state.st_mtime_ns) != (size, changed):
            raise FledgeError("this file changed while it was read", where=path, hint="start again when it is written")


def _collect_ledger(plan: BuildPlan, folder: Path) -> Ledger:
    """The accounts after collecting: what is not dropped counts as used."""
    ledger = Ledger([SourceAccount(item.name, item.path, item.part) for item in plan.sources])
    for account, item in zip(ledger.sources, plan.sources, strict=True):
        for path in item.passed_over:
            account.notice("passed over in the folder: not a file of rows", path)
    told: set[str] = set()
    for shard in plan.shards:
        account = ledger.sources[shard.source]
        rows = folder / "rows" / shard.folder
        result = orjson.loads((rows / "done.json").read_bytes())
        for span in shard.spans:
            if span.file not in told:
                told.add(span.file)
                for said in remarks(Path(span.file), plan.sources[shard.source].source):
                    account.notice(said, span.file)
        account.rows += result["rows"]
        account.merge(result["notes"])
        account.keep(read_notes(rows / "notes.jsonl"))
        keep = folder / "keep" / f"{shard.folder}.json"
        if keep.exists():
            account.merge(orjson.loads(keep.read_bytes()))
            account.keep(read_notes(keep.with_name(f"{shard.folder}.notes.jsonl")))
            account.used += int(np.count_nonzero(arrays_of(keep.with_suffix(".safetensors"))["keep"]))
        else:
            account.used += result["items"]
    for account, planned in zip(ledger.sources, plan.sources, strict=True):
        account.check()
        if account.rows == 0:
            raise FledgeError(f"'{account.path}' holds no rows: the file is empty", where=planned.key)
    return ledger


def texts(collected: Collected) -> Iterator[str]:
    """All training text of a stage, for the tokenizer to learn from."""
    for item in collected.items():
        yield from texts_of(item)


# -- encode -------------------------------------------------------------------------------------------------------------


def encode(
    collected: Collected,
    stage: AnyStage,
    name: str,
    tokenizer: Tokenizer,
    seed: int,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> StageData:
    """Tokens, weights and packed rows. A preference row holds a pair, so it is twice as long as the context."""
    folder, plan, key = collected.folder, collected.plan, f"stages.{name}.data"
    _use_tokenizer(folder, tokenizer)
    shards = plan.of_part("train", "validation")
    _run(plan, folder, "tokens", shards, _executor(plan, executor), progress)
    ledger = _encode_ledger(plan, folder, collected.ledger)
    ledger.close(key, stage.data.max_dropped)
    data = _open(folder, plan, ledger, tokenizer, collected._temporary)
    if stage.kind == "pretrain":
        _count_split(data.train, ledger, plan)
    _write(folder / "account.json", orjson.dumps(ledger.as_dict(), option=orjson.OPT_INDENT_2))
    _write(folder / "manifest.json", orjson.dumps(_manifest(plan, data, tokenizer), option=orjson.OPT_INDENT_2))
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


def _encode_ledger(plan: BuildPlan, folder: Path, ledger: Ledger) -> Ledger:
    """Add to the accounts what encoding counted, and count anew what is used."""
    for account in ledger.sources:
        account.used = 0 if account.part != "evaluation" else account.used
    for shard in plan.of_part("train", "validation"):
        account = ledger.sources[shard.source]
        tokens = folder / "tokens" / shard.folder
        result = orjson.loads((tokens / "done.json").read_bytes())
        account.merge(result["notes"])
        account.keep(read_notes(tokens / "notes.jsonl"))
        for part, counted in result["parts"].items():
            account.used += counted["used"]
            account.tokens += counted["tokens"]
            account.supervised_tokens += counted["supervised"]
            account.examples += counted["sequences"] // (2 if plan.stage.kind == "preference" else 1)
            account.validation += counted["used"] if part == "validation" else 0
    return ledger


def _examples(folder: Path, plan: BuildPlan, part: str, kind: np.dtype) -> Examples:
    """The memory-mapped sequences of a part, over all shards."""
    per, weighted = (2 if plan.stage.kind == "preference" else 1), plan.stage.kind != "pretrain"
    tokens, weights, lengths, supervised, source, shards, rows = [], [], [], [], [], [], []
    digest = xxhash.xxh3_64()
    for shard in plan.of_part("train", "validation"):
        at = folder / "tokens" / shard.folder
        index = arrays_of(at / "index.safetensors")
        if not len(index[f"{part}.lengths"]):
            continue
        count = int(index[f"{part}.lengths"].sum())
        tokens.append(_mapped(at / f"{part}.tokens", kind, count))
        if weighted:
            weights.append(_mapped(at / f"{part}.weights", np.dtype(np.float32), count))
        lengths.append(index[f"{part}.lengths"])
        supervised.append(index[f"{part}.supervised"])
        rows.append(index[f"{part}.row"])
        source.append(np.full(len(index[f"{part}.row"]), shard.source, np.int32))
        shards.append(np.full(len(index[f"{part}.row"]), shard.number, np.int32))
        digest.update(orjson.loads((at / "done.json").read_bytes())["parts"][part]["digest"].encode())
    join = lambda arrays, type_: np.concatenate(arrays) if arrays else np.zeros(0, type_)  # noqa: E731
    offsets = np.concatenate(([0], np.cumsum(join(lengths, np.int64)))).astype(np.int64)
    joined = Joined(tuple(tokens))
    return Examples(
        joined, Joined(tuple(weights)) if weighted else Ones(len(joined)), offsets, per, digest.hexdigest(),
        join(source, np.int32), join(shards, np.int32), join(rows, np.int64), join(supervised, np.int64),
    )  # fmt: skip


def _mapped(file: Path, kind: np.dtype, count: int) -> np.ndarray:
    """A memory-mapped file of so many numbers; FledgeError where it has another size."""
    if not file.exists() or file.stat().st_size != count * kind.itemsize:
        raise FledgeError("damaged: this file has not the size it was written with", where=str(file), hint="build it again")
    return mapped(file, kind)


def _open(folder: Path, plan: BuildPlan, ledger: Ledger, tokenizer: Tokenizer, temporary: Any = None) -> StageData:
    """Map the tokens of a complete build."""
    stage, key = plan.stage, f"stages.{plan.name}.data"
    kind, split = token_type(tokenizer.vocab_size), stage.kind == "pretrain"
    length = stage.data.context * (2 if stage.kind == "preference" else 1)
    train, validation = (_examples(folder, plan, part, kind) for part in ("train", "validation"))
    if not train.count:
        raise FledgeError("no training example is left", where=key, hint="lower data.validation or add rows")
    wanted = _divided(folder, plan)
    if not validation.count and wanted:
        raise FledgeError(
            f"no validation example is left: none of its {wanted:,} rows fits the context",
            where=f"{key}.validation",
            hint="take more rows for validation, lengthen data.context, or set validation to 0",
        )
    packed = PackedData(train, length, tokenizer.pad, plan.seed, split, _mixture(plan, train))
    held_out = PackedData(validation, length, tokenizer.pad, plan.seed, split) if validation.count else None
    return StageData(folder, packed, held_out, ledger, temporary)


def _divided(folder: Path, plan: BuildPlan) -> int:
    """How many rows were meant for validation."""
    keeps = (folder / "keep" / f"{shard.folder}.safetensors" for shard in plan.of_part("train", "validation"))
    return sum(int((arrays_of(keep)["keep"] == VALIDATION).sum()) for keep in keeps)


def _mixture(plan: BuildPlan, train: Examples) -> Mixture | None:
    """How epochs draw from the sources, if the recipe says anything about it."""
    planned = [item for item in plan.sources if item.part == "train"]
    if not any(item.source.mixed for item in planned):
        return None
    assert train.source is not None
    quotas = tuple(Quota.of(item.source, item.name) for item in planned)
    return Mixture(train.source, train.tokens_per_example(), quotas, plan.seed, train.row_numbers())


def _count_split(train: PackedData, ledger: Ledger, plan: BuildPlan) -> None:
    """Documents whose tokens lie in more than one packed row."""
    assert train.examples.source is not None
    parts = np.bincount(train.rows.sequence, minlength=train.examples.count)
    counted = Counter(train.examples.source[np.flatnonzero(parts > 1)].tolist())
    for number, count in counted.items():
        ledger.sources[number].split += count


def _manifest(plan: BuildPlan, data: StageData, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "asked": plan.asked,
        "key": plan.key(),
        "tokenizer": tokenizer.fingerprint(),
        "train": data.train.account(),
        "validation": data.validation.account() if data.validation else None,
    }


# -- a complete build ---------------------------------------------------------------------------------------------------


def is_complete(folder: Path) -> bool:
    """Whether a build directory holds all its tokens."""
    return (folder / "manifest.json").exists()


def open_built(folder: Path, stage: AnyStage, name: str, tokenizer: Tokenizer, seed: int) -> StageData:
    """The data of a complete build; FledgeError where it was built for something else or is damaged."""
    plan = BuildPlan.read(folder / "plan.json")
    manifest = _read_json(folder / "manifest.json")
    wanted = BuildPlan(stage, name, seed, (), (), 0, (), {}).asked
    changed = list(_differences(plan.asked, wanted))
    if changed:
        raise FledgeError(
            "this directory was built for something else:\n  " + "\n  ".join(changed),
            where=str(folder),
            hint="build it again with `fledge data build`",
        )
    if manifest["tokenizer"] != tokenizer.fingerprint():
        raise FledgeError("this directory was built with another tokenizer", where=str(folder), hint="build it again")
    ledger = Ledger([_account(saved) for saved in _read_json(folder / "account.json")["sources"]])
    data = _open(folder, plan, ledger, tokenizer)
    for part, packed in (("train", data.train), ("validation", data.validation)):
        if packed is not None and packed.fingerprint() != manifest[part]["fingerprint"]:
            raise FledgeError(f"the {part} tokens are not those that were built", where=str(folder), hint="build it again")
    _verify(folder, plan)
    return data


def _verify(folder: Path, plan: BuildPlan) -> None:
    """FledgeError where a file's content is not what was written."""
    for shard in plan.of_part("train", "validation"):
        at = folder / "tokens" / shard.folder
        for part, counted in _read_json(at / "done.json")["parts"].items():
            if digest_of(at, part) != counted["digest"]:
                raise FledgeError(f"damaged: the {part} tokens are not those that were written", where=str(at),
                                  hint="build it again")  # fmt: skip


def _account(saved: dict[str, Any]) -> SourceAccount:
    account = SourceAccount(saved["name"], saved["path"], saved["part"])
    for key in ("rows", "used", "validation", "truncated", "shortened", "split", "tokens", "supervised_tokens", "tokens_lost"):
        setattr(account, key, saved[key])
    account.examples = saved["training_examples"]
    for state in ("dropped", "changed", "noticed", "cut"):
        setattr(account, state, Counter(saved[state]))
    account.keep(saved["examples"])
    return account


def _read_json(file: Path) -> Any:
    try:
        return orjson.loads(file.read_bytes())
    except FileNotFoundError:
        raise FledgeError("this build is not complete", where=str(file), hint="run `fledge data build` again") from None
    except ValueError as error:
        raise FledgeError(f"damaged: {error}", where=str(file)) from None


def _differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """One line for each value that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield f"{key}: built with {old!r}, asked for {new!r}"
