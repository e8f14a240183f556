"""The accounts of a build's sources: sums of what the phases counted of each shard, as far as they have come."""

from pathlib import Path

import numpy as np
import orjson

from fledge.data.build.phases import complete, keep_mask, phase_result
from fledge.data.build.shards import BuildPlan, Shard
from fledge.data.reading.records import file_notices
from fledge.data.report import DataReport, SourceReport, read_notes


def account_rows(folder: Path, plan: BuildPlan, encoded: bool = False) -> DataReport:
    """What is read and sifted, and with `encoded` what is encoded, in the order of the shards. What is not dropped counts
    as used."""
    ledger = DataReport([SourceReport(item.name, item.path, item.part) for item in plan.sources])
    _notice_files(plan, ledger)
    for shard in plan.shards:
        if complete(folder / "rows" / shard.folder):
            _add_rows(folder, shard, ledger.sources[shard.source])
    for shard in plan.of_part("train", "validation") if encoded else ():
        if complete(folder / "tokens" / shard.folder):
            _add_tokens(folder, shard, ledger.sources[shard.source], 2 if plan.stage.kind == "preference" else 1)
    return ledger


def _notice_files(plan: BuildPlan, ledger: DataReport) -> None:
    """What is worth a look in the files themselves, once for each."""
    for account, item in zip(ledger.sources, plan.sources, strict=True):
        for path in item.ignored_files:
            account.add_file_notice("passed over in the folder: not a file of rows", path)
    told: set[str] = set()
    for shard in plan.shards:
        for span in shard.spans:
            if span.file not in told and Path(span.file).exists():
                told.add(span.file)
                for said in file_notices(Path(span.file), plan.sources[shard.source].source):
                    ledger.sources[shard.source].add_file_notice(said, span.file)


def _add_rows(folder: Path, shard: Shard, account: SourceReport) -> None:
    """Phases rows and keep of one shard."""
    rows = folder / "rows" / shard.folder
    result = phase_result(rows)
    account.rows += result["rows"]
    account.merge(result["notes"])
    account.keep(read_notes(rows / "row_events.jsonl"))
    sifted = folder / "keep" / f"{shard.folder}.json"
    if not sifted.exists():  # an evaluation file, or not yet
        account.used += result["items"]
        return
    account.merge(orjson.loads(sifted.read_bytes()))
    account.keep(read_notes(sifted.with_name(f"{shard.folder}.row_events.jsonl")))
    account.used += int(np.count_nonzero(keep_mask(folder, shard)))


def _add_tokens(folder: Path, shard: Shard, account: SourceReport, per_example: int) -> None:
    """Phase tokens of one shard: what was kept is used only if it could be encoded."""
    tokens = folder / "tokens" / shard.folder
    result = phase_result(tokens)
    account.merge(result["notes"])
    account.keep(read_notes(tokens / "row_events.jsonl"))
    account.used -= int(np.count_nonzero(keep_mask(folder, shard)))
    for part, counted in result["parts"].items():
        account.used += counted["used"]
        account.tokens += counted["tokens"]
        account.target_tokens += counted["supervised"]
        account.examples += counted["sequences"] // per_example
        account.validation += counted["used"] if part == "validation" else 0
