"""The statistics of a stage as tables for a terminal, readable at 100 columns."""

from collections.abc import Iterator, Mapping, Sequence

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fledge.data import FORMATS
from fledge.data.analysis.lengths import PERCENTILES, Lengths
from fledge.data.analysis.statistics import ContextFit, Opening, SourceStatistics, StageStatistics, TrainingStatistics
from fledge.escaping import escaped_line
from fledge.findings import Finding

NAME_WIDTH = 28  # characters of a source's name
PIPED_WIDTH = 200  # columns when the output is not a terminal
MARKS = {"passed": ("✓", "green"), "info": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}


def tables(statistics: StageStatistics, findings: Sequence[Finding]) -> Iterator[RenderableType]:
    """The output for one stage: the epoch, a table for each subject, notes on each source, and the findings."""
    kind = "" if statistics.kind == statistics.stage else f" ({statistics.kind})"
    yield Text.assemble((f"\n{statistics.stage}", "bold"), kind)
    yield from _epoch(statistics)
    near = f" (near: at least {statistics.near_threshold:g} Jaccard overlap)" if statistics.near_threshold else ""
    yield _title(f"rows, duplicates{near}, share of answers about identity, languages")
    yield _rows_table(statistics)
    for what, unit in (("characters", "characters"), ("tokens", "tokens, before any cut")):
        yield _title(f"length in {unit}")
        yield _lengths_table(statistics, what)
    yield _title("training: supervised tokens, answers with a supervised end token, shares of an epoch")
    yield _training_table(statistics)
    yield _title(f"rows that fit the context of {statistics.context:,} tokens, and what became of the others")
    yield _fit_table(statistics)
    for source in statistics.sources:
        yield from _source_lines(source)
    for finding in findings:
        yield finding_text(finding)


def percent(share: float | None, digits: int = 1) -> str:
    """A fraction as `12.3%`, or a dash when it is not known."""
    return "–" if share is None else f"{share:.{digits}%}"


def _count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def _title(text: str) -> Text:
    return Text(f"\n{text}", style="italic")


def _table(columns: Sequence[str]) -> "Table":
    table = Table(header_style="bold", box=None, pad_edge=False)
    table.add_column(Text(columns[0]), overflow="ellipsis", no_wrap=True, max_width=NAME_WIDTH)
    for column in columns[1:]:
        table.add_column(Text(column), justify="right", no_wrap=True)
    return table


def _epoch(statistics: StageStatistics) -> Iterator[Text]:
    epoch = statistics.epoch
    yield Text(
        f"an epoch: {epoch.examples:,} examples in {epoch.packed_rows:,} packed rows of {epoch.packed_length:,} tokens, "
        f"padding {epoch.padding_share:.1%}; {epoch.tokens:,} tokens, {epoch.target_token_fraction:.1%} of them supervised"
    )
    yield Text(
        f"{epoch.steps:,} optimizer steps an epoch; effective batch {epoch.batch_rows:,} rows ≈ {epoch.batch_tokens:,} tokens"
    )
    if FORMATS[statistics.kind].sequences_per_example > 1:
        yield Text("a prompt counts here with each answer; with share_prompts, training has fewer tokens and steps")


def _label(source: SourceStatistics) -> Text:
    label = Text(source.name)
    return label if source.split == "train" else label.append(f" ({source.split})", style="dim")


def _rows_table(statistics: StageStatistics) -> "Table":
    table = _table(("source", "rows", "used", "dropped", "validation", "exact", "near", "identity"))
    table.add_column("languages", overflow="fold")
    for source in statistics.sources:
        answers = source.answers
        table.add_row(
            _label(source), _count(source.rows), _count(source.used_rows), _count(sum(source.dropped.values())),
            _count(source.validation_rows), _count(source.exact_duplicates), _count(source.near_duplicates),
            percent(answers.identity_share if answers else None), Text(_shares(source.languages)),
        )  # fmt: skip
    return table


def _shares(counts: Mapping[str, int], most: int = 2) -> str:
    """`zh 98%, en 2%`: the most frequent first."""
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    shares = [f"{name} {count / total:.0%}" for name, count in ordered[:most]]
    return ", ".join([*shares, *([f"{len(ordered) - most} more"] if len(ordered) > most else [])])


def _lengths_table(statistics: StageStatistics, what: str) -> "Table":
    table = _table(("source", *(f"p{p}" for p in PERCENTILES), "max", "mean"))
    for source in statistics.sources:
        lengths: Lengths | None = getattr(source, what)
        if lengths is not None:
            table.add_row(_label(source), *map(_count, lengths.percentiles.values()), f"{lengths.mean:,.0f}")
    return table


def _trained(statistics: StageStatistics) -> Iterator[tuple[SourceStatistics, TrainingStatistics, ContextFit]]:
    for source in statistics.sources:
        if source.training is not None and source.fit is not None:
            yield source, source.training, source.fit


def _training_table(statistics: StageStatistics) -> "Table":
    columns = ("source", "examples", "tokens", "supervised", "end token", "rows", "tokens", "passes")
    table = _table(columns)
    for (source, training, _), mixed in zip(_trained(statistics), statistics.mixture, strict=True):
        table.add_row(
            _label(source), _count(training.examples), _count(training.tokens), percent(training.target_token_fraction),
            percent(training.ended_share), percent(mixed.row_share), percent(mixed.token_share), f"{mixed.passes:.3g}",
        )  # fmt: skip
    return table


def _fit_table(statistics: StageStatistics) -> "Table":
    columns = ("source", "fit", "cut", "shortened", "split", "dropped", "tokens lost")
    table = _table(columns)
    for source, _, fit in _trained(statistics):
        table.add_row(
            _label(source), percent(fit.share), _count(fit.truncated_rows), _count(fit.shortened_rows),
            _count(fit.split_rows), _count(fit.dropped_rows), _count(fit.lost_tokens),
        )  # fmt: skip
    return table


def _source_lines(source: SourceStatistics) -> Iterator[RenderableType]:
    """Notes on one source: schemas, columns, reasons, notices, openings of answers."""
    lines = [f"schemas: {_counts(source.schemas)}"] if source.schemas else []
    gaps = [f"{name}: {_counts(counts)}" for name, counts in source.columns.items() if any(counts.values())]
    lines += [f"columns with gaps: {'; '.join(gaps)}"] if gaps else []
    lines += [f"{label}: {_counts(counts)}" for label, counts in
              (("dropped", source.dropped), ("changed", source.changed), ("noticed", source.noticed)) if counts]  # fmt: skip
    if source.near_examples:
        near = (f"{location} ≈ {first} ({overlap:.0%})" for location, first, overlap in source.near_examples)
        lines.append(f"near duplicates: {', '.join(near)}")
    yield Text(f"\n{source.name}", style="bold")
    for line in lines:
        yield Text(f"  {line}")
    if source.answers is not None:
        ways = f"{source.answers.distinct_openings:,} ways"
        frequent = [opening for opening in source.answers.openings if opening.count > 1]
        yield Text(f"  its {source.answers.count:,} answers begin in {ways}" + (", most often so:" if frequent else ""))
        if frequent:
            yield Padding(_openings_table(frequent), (0, 0, 0, 2), expand=False)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


def _openings_table(openings: Sequence[Opening]) -> "Table":
    table = _table(("opening", "answers", "share"))
    for opening in openings:
        table.add_row(Text(escaped_line(opening.text)), _count(opening.count), percent(opening.share))
    return table


def finding_text(finding: Finding) -> Text:
    """`! source: message, first at file:line`; what to do, and the options that do it, on lines of their own."""
    mark, style = MARKS[finding.severity]
    source = f"{finding.evidence['source']}: " if "source" in finding.evidence else ""
    is_key = finding.where.startswith("stages.")
    location = f" ({finding.where})" if is_key else f", first at {finding.where}" if finding.where else ""
    advice = [finding.hint, finding.overrides()]
    lines = "".join(f"\n    → {line}" for line in advice if line)
    sure = "" if finding.confidence is None else f" [{finding.confidence}]"
    return Text.assemble(
        (f"{mark} ", style), (f"{finding.check}: ", "bold"), f"{source}{finding.message}{location}", (f"{sure}{lines}", "dim")
    )
