"""What is done with one shard: a pure function of the plan, the shard and the results of the steps before.

`rows`: read, recognise, clean, hash. `tokens`: encode what was kept. Each writes into a folder of its own that is renamed
when it is complete, so that a worker can die at any moment and another one gets the same bytes.
"""

import os
import shutil
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import xxhash
from safetensors.numpy import save_file

from fledge.data.build.shards import BuildPlan, Shard
from fledge.data.cleaning.cleaning import CleaningSteps, clean_item
from fledge.data.cleaning.contamination import Contamination
from fledge.data.cleaning.duplicates import content_hash, signature_backend, signatures
from fledge.data.cleaning.languages import LANGUAGES, detect_language
from fledge.data.cleaning.ngrams import shingles
from fledge.data.encoding.examples import EncodingConfig, encode_items
from fledge.data.parsing.row_statistics import Facts, own_text, question_and_answer, texts_of
from fledge.data.parsing.rows import Item, RowError, from_bytes, parse_eval_row, parse_row, serialize
from fledge.data.reading.hub import read_hub
from fledge.data.reading.records import Record, read, row_location
from fledge.data.report import RowEventLog
from fledge.data.storage import SequenceWriter, load_arrays, token_type
from fledge.recipe.schema import AugmentConfig
from fledge.tokenizer import Tokenizer, load_tokenizer

CHUNK = 1000  # rows worked on together
TRAIN, VALIDATION = 1, 2  # in keep.safetensors; 0 is left out

CONTAMINATION = "evaluation.safetensors"


@dataclass
class _Chunk:
    """Rows that have been read and recognised, before the steps that work on many at once."""

    items: list[Item] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)


def complete(folder: Path) -> bool:
    """Whether a shard's folder of one phase is there with its result."""
    return (folder / "result.json").exists()


def phase_result(shard: Path) -> dict[str, Any]:
    """What a phase counted of a shard, from the shard's folder."""
    return orjson.loads((shard / "result.json").read_bytes())


def keep_mask(folder: Path, shard: Shard) -> np.ndarray:
    """Of each item of a shard whether it is left out (0), for training or for validation."""
    return load_arrays(folder / "keep" / f"{shard.folder}.safetensors")["keep"]


def _write_shard(target: Path, fill: Callable[[Path], dict[str, Any]]) -> None:
    """Fill a folder beside the target and rename it; a half-filled one of a killed worker is replaced."""
    if complete(target):
        return
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        result = fill(beside)
        (beside / "result.json").write_bytes(orjson.dumps(result))
        if target.exists():
            shutil.rmtree(target)
        beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


# -- phase rows ---------------------------------------------------------------------------------------------------------


def _records(plan: BuildPlan, shard: Shard) -> Iterator[tuple[int, Record]]:
    """(index of the file in the shard, record), no more than the source's first_rows."""
    planned = plan.sources[shard.source]
    limit = planned.source.max_samples
    count = 0
    if planned.source.hub:
        streams: list[Iterator[Record]] = [read_hub(planned.source, planned.key)]
    else:
        streams = [read(span, planned.source) for span in shard.spans]
    for number, stream in enumerate(streams):
        for record in stream:
            if limit is not None and count >= limit:
                return
            yield number, record
            count += 1


class ReadPhase:
    """Reads one shard and writes its items, what is known of each, and what was left out."""

    def __init__(self, plan: BuildPlan, shard: Shard, folder: Path, contamination: Contamination | None) -> None:
        self.plan, self.shard, self.folder = plan, shard, folder
        planned = plan.sources[shard.source]
        self.planned, self.source, self.config = planned, planned.source, plan.stage.data.clean
        self.kind, self.system = plan.stage.kind, plan.stage.data.system
        self.steps = CleaningSteps.of(self.config, self.kind)
        self.contamination = contamination if planned.part == "train" else None
        self.near = self.config.near_duplicates is not None and planned.part == "train"
        self.facts = Facts()
        self.columns: dict[str, array] = {
            "row": array("q"), "file": array("q"), "number": array("q"), "draw": array("Q"), "chars": array("q"),
            "language": array("B"), "start": array("q"),
        }  # fmt: skip
        self.hashes, self.signatures = array("Q"), []
        self._end = 0

    def run(self) -> dict[str, Any]:
        """Write items.jsonl, rows.safetensors, row_events.jsonl; the counts are returned."""
        with (self.folder / "row_events.jsonl").open("wb") as notes_file, (self.folder / "items.jsonl").open("wb") as items:
            self.notes, self.items = RowEventLog(notes_file), items
            chunk, total = _Chunk(), 0
            for file, record in _records(self.plan, self.shard):
                self._process_row(chunk, total, file, record)
                total += 1
                if len(chunk.items) == CHUNK:
                    self._finish(chunk)
                    chunk = _Chunk()
            self._finish(chunk)
        arrays = {name: np.asarray(column) for name, column in self.columns.items()}
        arrays["start"] = np.concatenate((arrays["start"], [self._end])).astype(np.int64)
        arrays["hash"] = np.asarray(self.hashes, dtype=np.uint64).reshape(-1, 2)
        save_file(arrays, self.folder / "rows.safetensors")
        if self.near:
            joined = np.concatenate(self.signatures)
            save_file({"signatures": joined}, self.folder / "signatures.safetensors")
        files = [span.file for span in self.shard.spans] or [self.planned.path]
        made_by = signature_backend() if self.near else None
        return {
            "rows": total,
            "items": len(self.columns["row"]),
            "files": files,
            "signatures": made_by,
            "notes": self.notes.as_dict(),
            "facts": self.facts.as_dict(),
        }

    def where(self, file: int, number: int) -> str:
        """file:line of a row."""
        return row_location(self.shard.spans[file].file if self.shard.spans else self.planned.path, number)

    def _drop(self, row: int, file: int, number: int, reason: str, detail: str) -> None:
        self.notes.add(row, self.where(file, number), "dropped", reason, detail)

    def _process_row(self, chunk: _Chunk, row: int, file: int, record: Record) -> None:
        """Recognise and clean one row."""
        if record.broken:
            self._drop(row, file, record.number, record.broken, record.detail)
            return
        self.facts.row(record.value, self.source)
        try:
            item = self._item(record.value)
            item, changes = clean_item(item, self.steps)
        except RowError as error:
            self._drop(row, file, record.number, error.reason, error.detail)
            return
        for change in changes:
            detail = f"{change.before!r} -> {change.after!r}" if change.before != change.after else ""
            self.notes.add(row, self.where(file, record.number), "changed", change.step, detail)
        chunk.items.append(item)
        chunk.rows.append(row)
        chunk.files.append(file)
        chunk.numbers.append(record.number)

    def _item(self, value: Any) -> Item:
        """What a row means to the stage; a row that must not be trained on may be of any kind, or a question alone."""
        try:
            return parse_row(value, self.source, self.kind, self.system)
        except RowError:
            if self.planned.part != "evaluation":
                raise
            return parse_eval_row(value, self.source)

    def _finish(self, chunk: _Chunk) -> None:
        """Hash, languages, contamination and signatures of many rows at once."""
        texts = [texts_of(item) for item in chunk.items]
        joined = ["\n".join(parts) for parts in texts]
        own = [own_text(item) for item in chunk.items]
        languages = [detect_language(text) for text in own]
        found = self.contamination.check_rows(texts) if self.contamination is not None else [None] * len(texts)
        kept = [
            index for index in range(len(chunk.items)) if self._passes_filters(chunk, index, languages[index], found[index])
        ]
        for index in kept:
            self._keep(chunk, index, joined[index], languages[index])
        if self.near:
            self.signatures.append(signatures(*shingles([own[index] for index in kept])))

    def _passes_filters(self, chunk: _Chunk, index: int, language: str, contaminated: str | None) -> bool:
        """Whether a row stays; if not, it is accounted for."""
        place_ = (chunk.rows[index], chunk.files[index], chunk.numbers[index])
        wanted = self.config.languages if self.planned.part == "train" else None
        if wanted is not None and language not in wanted:
            self._drop(*place_, "other language", language)
            return False
        if contaminated is not None:
            self._drop(*place_, "contaminated by the evaluation set", contaminated)
            return False
        return True

    def _keep(self, chunk: _Chunk, index: int, text: str, language: str) -> None:
        item = chunk.items[index]
        content = serialize(item)
        column = self.columns
        column["start"].append(self._end)
        self._end += self.items.write(content + b"\n")
        for name, value in (("row", chunk.rows), ("file", chunk.files), ("number", chunk.numbers)):
            column[name].append(value[index])
        column["draw"].append(xxhash.xxh3_64_intdigest(content, self.plan.seed))
        column["chars"].append(len(text))
        column["language"].append(LANGUAGES.index(language))
        self.hashes.extend(content_hash(content))
        for reason, detail in self.facts.item(item):
            self.notes.add(chunk.rows[index], self.where(chunk.files[index], chunk.numbers[index]), "noticed", reason, detail)


def run_read_phase(folder: Path, number: int) -> None:
    """Phase rows of one shard."""
    plan = plan_of(folder)
    shard = plan.shards[number]
    file = folder / CONTAMINATION
    contamination = Contamination.load(file) if file.exists() else None
    _write_shard(folder / "rows" / shard.folder, lambda beside: ReadPhase(plan, shard, beside, contamination).run())


def evaluation_texts(plan: BuildPlan, folder: Path) -> Iterator[str]:
    """What must not be trained on: the questions (or documents) of validation and evaluation files."""
    for shard in plan.of_part("validation", "evaluation"):
        for item in iter_items(folder / "rows" / shard.folder):
            yield question_and_answer(item)[0]


def iter_items(folder: Path, keep: np.ndarray | None = None) -> Iterator[Item]:
    """The items of a shard, all or those marked."""
    with (folder / "items.jsonl").open("rb") as lines:
        for index, line in enumerate(lines):
            if keep is None or keep[index]:
                yield from_bytes(line)


# -- phase tokens -------------------------------------------------------------------------------------------------------


def run_tokenize_phase(folder: Path, number: int) -> None:
    """Phase tokens of one shard."""
    plan = plan_of(folder)
    shard = plan.shards[number]
    _write_shard(folder / "tokens" / shard.folder, lambda beside: _encode_shard(plan, shard, folder, beside))


def _encode_shard(plan: BuildPlan, shard: Shard, folder: Path, beside: Path) -> dict[str, Any]:
    """Write the training and the validation sequences of one shard, with the row of each example."""
    tokenizer = tokenizer_of(folder)
    keep = keep_mask(folder, shard)
    rules = EncodingConfig.of(plan.stage, plan.seed)
    unvaried = replace(rules, augment=AugmentConfig())
    arrays: dict[str, np.ndarray] = {}
    parts: dict[str, Any] = {}
    with (beside / "row_events.jsonl").open("wb") as notes_file:
        encoding = _EncodingOfShard(plan, folder / "rows" / shard.folder, beside, tokenizer, RowEventLog(notes_file))
        for name, mark, chosen in (("train", TRAIN, rules), ("validation", VALIDATION, unvaried)):
            parts[name], written = encoding.part(name, keep == mark, chosen)
            arrays.update({f"{name}.{column}": values for column, values in written.items()})
    save_file(arrays, beside / "index.safetensors")
    return {
        "notes": encoding.notes.as_dict(),
        "parts": parts,
        "coder": tokenizer.encoder_backend,
        "coder_reason": tokenizer.encoder_fallback_reason,
    }


class _EncodingOfShard:
    """Encodes the kept items of one shard."""

    def __init__(self, plan: BuildPlan, rows: Path, beside: Path, tokenizer: Tokenizer, notes: RowEventLog) -> None:
        self.rows, self.beside, self.tokenizer, self.notes = rows, beside, tokenizer, notes
        self.weighted = plan.stage.kind != "pretrain"
        self.known = load_arrays(rows / "rows.safetensors")
        self.files = phase_result(rows)["files"]

    def part(self, name: str, chosen: np.ndarray, rules: EncodingConfig) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Counts of a part, and what is known of each of its sequences and examples."""
        writer = SequenceWriter(self.beside, name, token_type(self.tokenizer.vocab_size), self.weighted)
        stops = np.asarray(sorted(self.tokenizer.stop_ids))
        origin: list[int] = []
        used = ended = 0
        encoded = encode_items(iter_items(self.rows, chosen), self.tokenizer, rules)
        for index, made in zip(np.flatnonzero(chosen).tolist(), encoded, strict=True):
            row = int(self.known["row"][index])
            for remark in made.remarks:
                self.notes.add(row, self._where(index), remark.state, remark.reason, remark.detail, remark.amount)
            used += bool(made.examples)
            for example in made.examples:
                origin.append(row)
                for tokens, weights in example:
                    writer.write(tokens, weights)
                    ended += self.weighted and _ends(tokens, weights, stops)
        columns = {"lengths": writer.lengths, "supervised": writer.supervised, "row": origin}
        counts = {
            "used": used, "digest": writer.close(), "sequences": len(writer.lengths), "ended": ended,
            "tokens": sum(writer.lengths), "supervised": sum(writer.supervised),
        }  # fmt: skip
        return counts, {column: np.asarray(values, dtype=np.int64) for column, values in columns.items()}

    def _where(self, index: int) -> str:
        return row_location(self.files[int(self.known["file"][index])], int(self.known["number"][index]))


def _ends(tokens: np.ndarray, weights: np.ndarray, stops: np.ndarray) -> bool:
    """Whether an end token is among the targets with weight."""
    return bool(np.isin(tokens[1:][weights[1:] > 0], stops).any())


# -- what workers load once ---------------------------------------------------------------------------------------------

PHASES: dict[str, Callable[[Path, int], None]] = {"rows": run_read_phase, "tokens": run_tokenize_phase}


def plan_of(folder: Path) -> BuildPlan:
    """The plan of a build directory, read again only when it changed."""
    return _plan(folder, (folder / "build_plan.json").stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _plan(folder: Path, _changed: int) -> BuildPlan:
    return BuildPlan.read(folder / "build_plan.json")


def tokenizer_of(folder: Path) -> Tokenizer:
    """The tokenizer of a build directory."""
    path = folder / "tokenizer"
    return _tokenizer(path, (path / "tokenizer.json").stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _tokenizer(path: Path, _changed: int) -> Tokenizer:
    return load_tokenizer(path)
