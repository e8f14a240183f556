"""Checks of rows: how many are dropped, repeated, trained on and validated on, unfilled, or drawn too often."""

from collections.abc import Iterator

import numpy as np

from fledge.data.analysis.check_context import CheckContext, count_of_rows, first_event, source_finding
from fledge.data.build.directory import TRAIN, VALIDATION
from fledge.data.build.shard_items import ShardItems
from fledge.data.parsing.columns import NOT_READ
from fledge.findings import Finding

DROPPED = 0.1  # share of a source's rows, besides duplicates, where the recipe sets no limit
DUPLICATES = 0.01  # share of a source's rows
DOMINANT, SWAMPING, FEW_OPENINGS = 0.8, 0.5, 0.1  # shares of an epoch's tokens; distinct openings of its answers
PASSES = 10  # through a source in one epoch


def dropped_rows(stage: CheckContext) -> Iterator[Finding]:
    """More rows of a source are dropped than the recipe allows (error), or than is usual (warning)."""
    limit = stage.max_drop_fraction
    for report in stage.reports:
        dropped = report.dropped_rows
        if not dropped:
            continue
        duplicates = report.dropped["exact duplicate"] + report.dropped["near duplicate"]
        too_many = limit is not None and dropped > limit * report.rows
        if too_many or (limit is None and dropped - duplicates > DROPPED * report.rows):
            hint = "`fledge data account` shows each of them; data.max_drop_fraction sets a limit"
            yield source_finding(
                check="dropped",
                severity="error" if too_many else "warning",
                message=f"{count_of_rows(dropped, report.rows)} are dropped: {report.drop_reasons()}",
                source=report.name,
                where=first_event(report, report.dropped.most_common(1)[0][0])[0],
                hint=f"mend the rows, or raise data.max_drop_fraction ({limit:.3g})" if too_many else hint,
            )


def shared_with_validation(stage: CheckContext) -> Iterator[Finding]:
    """Rows of equal content are trained on and validated on."""
    train, shards, inside = _kept_hashes(stage, TRAIN)
    held_out, *_ = _kept_hashes(stage, VALIDATION)
    suspects = np.flatnonzero(np.isin(train[:, 0], held_out[:, 0]))
    known = set(map(tuple, held_out.tolist()))
    shared = [index for index in suspects.tolist() if tuple(train[index].tolist()) in known]
    if shared:
        shard = stage.plan.shards[int(shards[shared[0]])]
        yield source_finding(
            check="validation",
            severity="error",
            message=f"{len(shared):,} rows are trained on and validated on",
            source=stage.plan.source_of(shard).name,
            where=ShardItems.of(stage.build, shard).location(int(inside[shared[0]])),
            hint="set data.clean.decontaminate to true, or take them out of one side",
            patch=stage.patch("data.clean.decontaminate", True),
        )


def _kept_hashes(stage: CheckContext, mark: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Content hashes [N, 2] of the items with this mark, their shards [N], and their indices in the shards [N]."""
    hashes, shards, inside = [np.zeros((0, 2), np.uint64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for shard in stage.plan.encoded_shards():
        chosen = np.flatnonzero(stage.build.keep_mask(shard) == mark)
        hashes.append(ShardItems.of(stage.build, shard).arrays["hash"][chosen])
        shards.append(np.full(len(chosen), shard.number))
        inside.append(chosen)
    return np.concatenate(hashes), np.concatenate(shards), np.concatenate(inside)


def duplicate_rows(stage: CheckContext) -> Iterator[Finding]:
    """More than DUPLICATES of a source's rows equal an earlier row."""
    left_out = stage.plan.data.clean.exact_duplicates
    for source in stage.training_sources:
        duplicates, rows = source.statistics.exact_duplicates, source.statistics.rows
        if duplicates > DUPLICATES * rows:
            location, detail = first_event(source.report, "exact duplicate")
            use = "are left out, being" if left_out else "are trained on although they are"
            yield source_finding(
                check="duplicates",
                severity="warning",
                message=f"{count_of_rows(duplicates, rows)} {use} equal to an earlier one",
                source=source.name,
                where=f"{location} ({detail})" if location else "",
                hint="look where they come from" if left_out else "set data.clean.exact_duplicates to true",
                patch=None if left_out else stage.patch("data.clean.exact_duplicates", True),
            )


def unfilled_placeholders(stage: CheckContext) -> Iterator[Finding]:
    """Rows hold template variables that were not filled in."""
    for source in stage.training_sources:
        count = source.report.noticed["unfilled placeholder"]
        if count:
            location, detail = first_event(source.report, "unfilled placeholder")
            yield source_finding(
                check="placeholders",
                severity="warning",
                message=f"{count_of_rows(count, source.statistics.rows)} hold placeholders such as {detail}",
                source=source.name,
                where=location,
                hint="fill them in before training",
            )


def unread_keys(stage: CheckContext) -> Iterator[Finding]:
    """Turns, parts or tool calls have keys that nothing reads, or rows a column that may be a weight but is not read as one."""
    for source in stage.training_sources:
        for reason, count in source.report.noticed.items():
            if NOT_READ in reason:
                location, detail = first_event(source.report, reason)
                yield source_finding(
                    check="unread keys",
                    severity="warning",
                    message=f"{reason}, in {count_of_rows(count, source.statistics.rows)} ({detail})",
                    source=source.name,
                    where=location,
                    hint="docs/data.md lists the keys that say what is trained; `turns` of the source names others",
                )


def outweighing_sources(stage: CheckContext) -> Iterator[Finding]:
    """A source gives most of an epoch's tokens, or an epoch draws its rows more than PASSES times."""
    entries = stage.statistics.mixture
    for entry, source in zip(entries, stage.training_sources, strict=True):
        share, answers = entry.token_share, source.statistics.answers
        few = answers is not None and answers.distinct_openings < FEW_OPENINGS * answers.count
        if len(entries) > 1 and (share > DOMINANT or (share > SWAMPING and few)):
            alike = f", and its answers begin in few ways ({answers.distinct_openings:,})" if few and answers else ""
            yield source_finding(
                check="mixture",
                severity="warning",
                message=f"it gives {share:.0%} of an epoch's tokens{alike}",
                source=source.name,
                hint="set token_fraction, ratio or max_rows of the source, or repeat the others",
            )
        if entry.passes > PASSES:
            yield source_finding(
                check="mixture",
                severity="warning",
                message=f"an epoch takes each of its rows {entry.passes:.1f} times",
                source=source.name,
                hint="lower its token_fraction or repeat, or give it more rows",
            )
