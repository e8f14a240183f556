"""The read phase: from the files of one shard to its items, in one pass.

    records -> parsed rows -> cleaned rows -> filtered rows -> items.jsonl

Each step is a function that consumes the output of the step before it. A step that drops or changes a row adds an event to
the log of the shard. The output is a pure function of the plan, the shard and the n-grams of the evaluation texts."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import xxhash
from safetensors.numpy import save_file

from fledge.data.build.directory import EVENTS_FILE, BuildDirectory
from fledge.data.build.phase_output import write_output
from fledge.data.build.plan import BuildPlan, PlannedSource, Shard
from fledge.data.cleaning.cleaning import CleaningSteps, clean_item
from fledge.data.cleaning.contamination import Contamination
from fledge.data.cleaning.duplicates import content_hash, signature_backend, signatures
from fledge.data.cleaning.languages import LANGUAGES, detect_language
from fledge.data.cleaning.ngrams import shingles
from fledge.data.formats import parse_evaluation_row
from fledge.data.parsing.columns import Row, RowError
from fledge.data.parsing.items import Item, own_text, serialize
from fledge.data.parsing.row_statistics import RowStatistics
from fledge.data.parsing.rows import Parsed, read_row
from fledge.data.reading.hub import read_hub
from fledge.data.reading.records import Record, read, row_location
from fledge.data.row_events import RowEvent, RowEventLog
from fledge.run.text_files import give_usual_mode

CHUNK_ROWS = 1000  # rows whose languages, n-grams and signatures are computed together


class RowPosition(NamedTuple):
    """The position of a row in its shard and in its file. A NamedTuple, because one is created for every row.

    `row`: number of the row in the shard. `file`: number of its file in the shard. `number`: its line or index in the file."""

    row: int
    file: int
    number: int
    file_name: str

    @property
    def location(self) -> str:
        """FILE:LINE or FILE#INDEX."""
        return row_location(self.file_name, self.number)


class ParsedRow(NamedTuple):
    """A row that was parsed into an item."""

    position: RowPosition
    item: Item


class FilteredRow(NamedTuple):
    """A cleaned row that passed the filters. `chars`: length of all its texts, joined by line breaks."""

    position: RowPosition
    item: Item
    own_text: str
    chars: int
    language: str


class RowCounter:
    """Counts the rows that were read from a shard, and collects statistics of their columns and answers."""

    def __init__(self) -> None:
        self.rows = 0
        self.statistics = RowStatistics()


def run_read_phase(build: BuildDirectory, shard: Shard) -> None:
    """Read one shard: write its items, the arrays of ShardItems, and the events about dropped and changed rows."""
    forbidden = Contamination.load(build.contamination) if build.contamination.exists() else None
    write_output(build.rows(shard), lambda folder: _read_shard(build.plan, shard, forbidden, folder))


def _read_shard(plan: BuildPlan, shard: Shard, forbidden: Contamination | None, folder: Path) -> dict[str, Any]:
    """Run all rows of a shard through the steps. Writes items.jsonl, rows.safetensors, row_events.jsonl; returns the counts."""
    source, counter = plan.source_of(shard), RowCounter()
    with (folder / EVENTS_FILE).open("wb") as events_file, (folder / "items.jsonl").open("wb") as items_file:
        events = RowEventLog(events_file)
        writer = ItemWriter(items_file, plan.seed, counter.statistics, events, signed=_is_signed(plan, source))
        records = read_records(source, shard)
        parsed = parse_rows(records, plan, source, counter, events)
        cleaned = clean_rows(parsed, plan, events)
        for chunk in _chunks(cleaned, CHUNK_ROWS):
            writer.write(filter_rows(chunk, plan, source, forbidden, events))
    writer.save(folder)
    return {
        "rows": counter.rows,
        "items": len(writer),
        "files": _file_names(source, shard),
        "signatures": signature_backend() if writer.signed else None,
        "row_events": events.as_dict(),
        "statistics": counter.statistics.as_dict(),
    }


def _is_signed(plan: BuildPlan, source: PlannedSource) -> bool:
    """Whether near duplicates are searched among the rows of a source, which needs MinHash signatures."""
    return plan.data.clean.near_duplicates is not None and source.split == "train"


def _file_names(source: PlannedSource, shard: Shard) -> list[str]:
    return [span.file for span in shard.spans] or [source.path]


# -- the steps, in the order of the walk --------------------------------------------------------------------------------


def read_records(source: PlannedSource, shard: Shard) -> Iterator[tuple[RowPosition, Record]]:
    """The records of a shard's files, in order; at most the source's max_samples."""
    if source.source.hub:
        streams: list[Iterator[Record]] = [read_hub(source.source, source.key)]
    else:
        streams = [read(span, source.source) for span in shard.spans]
    names = _file_names(source, shard)
    numbered = ((file, record) for file, stream in enumerate(streams) for record in stream)
    for row, (file, record) in enumerate(islice(numbered, source.source.max_samples)):
        yield RowPosition(row, file, record.number, names[file]), record


def parse_rows(
    records: Iterable[tuple[RowPosition, Record]],
    plan: BuildPlan,
    source: PlannedSource,
    counter: RowCounter,
    events: RowEventLog,
) -> Iterator[ParsedRow]:
    """The rows as items; a row that cannot be parsed is dropped, with an event."""
    for position, record in records:
        counter.rows += 1
        if record.broken:
            events.add(position.row, position.location, RowEvent("dropped", record.broken, record.detail))
            continue
        try:
            row = Row.of(record.value, source.source)
            counter.statistics.add_row(row)
            parsed = _parse(row, plan, source)
        except RowError as error:
            events.add(position.row, position.location, error.event)
            continue
        for event in parsed.events:
            events.add(position.row, position.location, event)
        counter.statistics.add_unread(parsed.unread_columns)
        yield ParsedRow(position, parsed.item)


def _parse(row: Row, plan: BuildPlan, source: PlannedSource) -> Parsed:
    """The item of a row. A row of an evaluation file may have any format, or be a question alone. RowError if it has none."""
    try:
        return read_row(row, source.source, plan.format.parse, plan.data.system)
    except RowError:
        if source.split != "evaluation":
            raise
        return Parsed(parse_evaluation_row(row, source.source), [], [])


def clean_rows(rows: Iterable[ParsedRow], plan: BuildPlan, events: RowEventLog) -> Iterator[ParsedRow]:
    """The rows with cleaned texts; a row without any text after cleaning is dropped, with an event."""
    steps = CleaningSteps.of(plan.data.clean, plan.format.strips_html)
    for row in rows:
        position = row.position
        try:
            item, changes = clean_item(row.item, steps)
        except RowError as error:
            events.add(position.row, position.location, error.event)
            continue
        for change in changes:
            events.add(position.row, position.location, change)
        yield row if item is row.item else ParsedRow(position, item)


def filter_rows(
    rows: Sequence[ParsedRow],
    plan: BuildPlan,
    source: PlannedSource,
    forbidden: Contamination | None,
    events: RowEventLog,
) -> list[FilteredRow]:
    """The rows that pass the filters. Only training rows are dropped for their language or for text shared with `forbidden`."""
    texts, own_texts = [row.item.texts() for row in rows], [own_text(row.item) for row in rows]
    languages = [detect_language(text) for text in own_texts]
    accepted_languages, shared = None, [None] * len(rows)
    if source.split == "train":
        accepted_languages = plan.data.clean.languages
        shared = shared if forbidden is None else forbidden.check_rows(texts)
    kept = []
    for row, row_texts, own, language, shared_text in zip(rows, texts, own_texts, languages, shared, strict=True):
        if accepted_languages is not None and language not in accepted_languages:
            event = RowEvent("dropped", "other language", language)
        elif shared_text is not None:
            event = RowEvent("dropped", "contaminated by the evaluation set", shared_text)
        else:
            chars = sum(map(len, row_texts)) + len(row_texts) - 1
            kept.append(FilteredRow(row.position, row.item, own, chars, language))
            continue
        events.add(row.position.row, row.position.location, event)
    return kept


class ItemWriter:
    """Writes the items of a shard to items.jsonl, and holds their arrays (see ShardItems) until `save`.

    `signed`: whether the MinHash signatures for the search of near duplicates are computed too."""

    def __init__(self, file: IO[bytes], seed: int, statistics: RowStatistics, events: RowEventLog, signed: bool) -> None:
        self._file, self._seed, self._statistics, self._events, self.signed = file, seed, statistics, events, signed
        self._columns: dict[str, array] = {
            "row": array("q"), "file": array("q"), "number": array("q"), "draw": array("Q"), "chars": array("q"),
            "language": array("B"), "start": array("q", [0]), "hash": array("Q"),
        }  # fmt: skip
        self._signatures: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._columns["row"])

    def write(self, rows: Sequence[FilteredRow]) -> None:
        """Append the items of some rows."""
        for row in rows:
            self._write_row(row)
        if self.signed:
            self._signatures.append(signatures(*shingles([row.own_text for row in rows])))

    def _write_row(self, row: FilteredRow) -> None:
        content, column, position = serialize(row.item), self._columns, row.position
        column["start"].append(column["start"][-1] + self._file.write(content + b"\n"))
        column["row"].append(position.row)
        column["file"].append(position.file)
        column["number"].append(position.number)
        column["draw"].append(xxhash.xxh3_64_intdigest(content, self._seed))
        column["chars"].append(row.chars)
        column["language"].append(LANGUAGES.index(row.language))
        column["hash"].extend(content_hash(content))
        for event in self._statistics.add_item(row.item):
            self._events.add(position.row, position.location, event)

    def save(self, folder: Path) -> None:
        """Write rows.safetensors, and signatures.safetensors if `signed`."""
        arrays = {name: np.asarray(column) for name, column in self._columns.items()}
        arrays["hash"] = arrays["hash"].reshape(-1, 2)
        save_file(arrays, folder / "rows.safetensors")
        give_usual_mode(folder / "rows.safetensors")
        if self.signed:
            joined = np.concatenate(self._signatures or [signatures(*shingles([]))])
            save_file({"signatures": joined}, folder / "signatures.safetensors")
            give_usual_mode(folder / "signatures.safetensors")


def _chunks(rows: Iterable[ParsedRow], size: int) -> Iterator[list[ParsedRow]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, size)):
        yield chunk
