"""The data report of a build: sums of the counts that the finished phases wrote for each shard."""

from copy import deepcopy
from pathlib import Path

import numpy as np

from fledge.data.build.directory import BuildDirectory
from fledge.data.build.phase_output import is_finished, read_rows_result, read_tokens_result
from fledge.data.build.plan import Shard
from fledge.data.dataset.packed_dataset import PackedDataset
from fledge.data.reading.records import file_notices
from fledge.data.report import DataReport, SourceReport
from fledge.data.row_events import BUILD_AGAIN, EventCounts, read_row_events
from fledge.run.text_files import read_json


def report_rows(build: BuildDirectory) -> DataReport:
    """The report of the rows read and of the items kept, in shard order. Rows that were not dropped count as used."""
    plan = build.plan
    report = DataReport([SourceReport(name=item.name, path=item.path, split=item.split) for item in plan.sources])
    _add_file_notices(build, report)
    for shard in plan.shards:
        if is_finished(build.rows(shard)):
            _add_rows(build, shard, report.sources[shard.source])
    return report


def report_tokens(rows: DataReport, build: BuildDirectory) -> DataReport:
    """The report `rows` with the counts of the tokenize phase added: a kept row counts as used only if it could be encoded."""
    report = deepcopy(rows)
    for shard in build.plan.encoded_shards():
        if is_finished(build.tokens(shard)):
            _add_tokens(build, shard, report.sources[shard.source])
    return report


def add_split_documents(report: DataReport, train: PackedDataset) -> None:
    """Count the training documents whose tokens lie in more than one packed row."""
    examples = train.examples
    assert examples.source is not None
    pieces = np.bincount(train.layout.sequence, minlength=examples.count)
    sources, counts = np.unique(examples.source[np.flatnonzero(pieces > 1)], return_counts=True)
    for source, count in zip(sources.tolist(), counts.tolist(), strict=True):
        report.sources[source].split_rows += count


def _add_file_notices(build: BuildDirectory, report: DataReport) -> None:
    """Add the notices about whole files, once for each file."""
    for source, planned in zip(report.sources, build.plan.sources, strict=True):
        for file in planned.ignored_files:
            source.add_file_notice("passed over in the folder: not a file of rows", file)
    noticed: set[str] = set()
    for shard in build.plan.shards:
        for span in shard.spans:
            if span.file not in noticed and Path(span.file).exists():
                noticed.add(span.file)
                for notice in file_notices(Path(span.file), build.plan.source_of(shard).source):
                    report.sources[shard.source].add_file_notice(notice, span.file)


def _add_rows(build: BuildDirectory, shard: Shard, source: SourceReport) -> None:
    """Add the counts of the read phase and of the deduplication and split for a shard."""
    rows_events, keep_events, _ = build.event_files(shard)
    result = read_rows_result(build.rows(shard))
    source.rows += result["rows"]
    source.add_counts(result["row_events"])
    source.unread_columns.update(result["statistics"]["unread"])
    source.keep_first_events(read_row_events(rows_events))
    counts = build.keep / f"{shard.folder}.json"
    if not counts.exists():  # an evaluation file, or not yet decided
        source.used_rows += result["items"]
        return
    source.add_counts(read_json(counts, EventCounts, BUILD_AGAIN))
    source.keep_first_events(read_row_events(keep_events))
    source.used_rows += build.kept_items(shard)


def _add_tokens(build: BuildDirectory, shard: Shard, source: SourceReport) -> None:
    """Add the counts of the tokenize phase for a shard."""
    *_, token_events = build.event_files(shard)
    result = read_tokens_result(build.tokens(shard))
    source.add_counts(result["row_events"])
    source.keep_first_events(read_row_events(token_events))
    source.used_rows -= build.kept_items(shard)
    for split, counts in result["splits"].items():
        source.used_rows += counts["used_rows"]
        source.tokens += counts["tokens"]
        source.target_tokens += counts["target_tokens"]
        source.examples += counts["examples"]
        source.validation_rows += counts["used_rows"] if split == "validation" else 0
