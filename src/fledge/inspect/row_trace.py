"""The trace of one row: read, parsed, cleaned, kept or dropped, truncated, tokenized, packed."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from rich.console import Console
from rich.text import Text

from fledge.data.build.phases import TRAIN, keep_mask
from fledge.data.cleaning.cleaning import CleaningSteps, clean_item
from fledge.data.dataset.batches import PackedDataset
from fledge.data.parsing.rows import Conversation, Document, Item, RowError, format_name, parse_row
from fledge.data.reading.records import Record, read
from fledge.errors import FledgeError
from fledge.inspect.builds import Builds, OpenBuild, open_build
from fledge.inspect.row_lookup import LocatedRow, find_rows, parse_row_location, row_events_of
from fledge.inspect.show import examples_of, legend, print_row
from fledge.plan.horizon import compute_steps

MAX_CHARACTERS = 200  # of a column's value


@dataclass(frozen=True)
class Packing:
    """One example in the first epoch: its packed rows in the order of reading, and the steps (from 1) that train on them.

    Both are empty when the epoch does not draw the example. `tokens` and `supervised` are token counts.
    """

    example: int
    tokens: int
    supervised: int
    rows: tuple[int, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class RowTrace:
    """One row of one stage, step by step. The fields are the keys of `--json`, named as in the data report."""

    stage: str
    source: str
    part: str
    where: str
    read: dict[str, str] = field(default_factory=dict)  # column -> the beginning of its value
    note: str = ""  # why the file was not read again
    recognised: str = ""
    changed: tuple[dict[str, str], ...] = ()
    dropped: str = ""
    remarks: tuple[str, ...] = ()
    side: str = ""  # training, validation or evaluation; empty for a dropped row
    packed: tuple[Packing, ...] = ()


def trace_row(builds: Builds, row: str, as_json: bool) -> None:
    """Print the trace of a row through every stage that reads it, with its tokens. Raises FledgeError when no stage does."""
    location = parse_row_location(row)
    opened = [open_build(name, folder) for name, folder in builds.folders.items()]
    located = [(build, located_row) for build in opened for located_row in find_rows(build, location)]
    if not located:
        raise FledgeError("no source has this row", where=f"--row {row}", hint="lines are counted from 1, indices from 0")
    traces = [build_trace(build, located_row) for build, located_row in located]
    if as_json:
        print(orjson.dumps({"rows": [asdict(trace) for trace in traces]}, option=orjson.OPT_INDENT_2).decode())
        return
    terminal = Console(highlight=False)
    for (build, located_row), trace in zip(located, traces, strict=True):
        _print(terminal, trace)
        if trace.side in ("training", "validation"):
            terminal.print(Text(legend(terminal), style="italic"))
            print_row(terminal, build, located_row.shard.number, located_row.row)


def build_trace(build: OpenBuild, row: LocatedRow) -> RowTrace:
    """The trace of one row. Its file is read again, provided that the file has not changed since the build."""
    record, note = _reread(build, row)
    events = [event for event in row_events_of(build.folder, row.shard.folder) if event["row"] == row.row]
    dropped = [_event_text(event) for event in events if event["state"] == "dropped"]
    side = "" if dropped else _side(build, row)
    data = {"training": build.data.train, "validation": build.data.validation}.get(side)
    recognised, changed = _recognised(build, row, record)
    return RowTrace(
        stage=build.name,
        source=row.source.name,
        part=row.source.part,
        where=row.location,
        read=_columns(record) if record is not None else {},
        note=note,
        recognised=recognised,
        changed=changed,
        dropped="; ".join(dropped),
        remarks=tuple(_event_text(event) for event in events if event["state"] not in ("dropped", "changed")),
        side=side,
        packed=_packed(build, row, data) if data is not None else (),
    )


def _event_text(event: Mapping[str, Any]) -> str:
    return f"{event['reason']} ({event['detail']})" if event["detail"] else event["reason"]


def _reread(build: OpenBuild, row: LocatedRow) -> tuple[Record | None, str]:
    """The row as its file holds it, or the reason why the file was not read again."""
    if not row.shard.spans:
        return None, "not read again: it comes from a hub"
    span = row.shard.spans[row.file]
    try:
        state = Path(span.file).stat()
    except OSError:
        return None, "not read again: the file is no longer there"
    if (span.file, state.st_size, state.st_mtime_ns) not in build.plan.stamps:
        return None, "not read again: the file has changed since the build"
    record = next((record for record in read(span, row.source.source) if record.number == row.number), None)
    return record, ""


def _columns(record: Record) -> dict[str, str]:
    value = record.value
    if not isinstance(value, Mapping):
        return {"": record.broken or repr(value)[:MAX_CHARACTERS]}
    return {str(name): _shortened(content) for name, content in value.items()}


def _shortened(content: Any) -> str:
    text = content if isinstance(content, str) else repr(content)
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} … ({len(text):,} characters)"


def _recognised(build: OpenBuild, row: LocatedRow, record: Record | None) -> tuple[str, tuple[dict[str, str], ...]]:
    """The format of the row, and the changes that cleaning made. Both depend on the row alone."""
    if record is None or record.broken:
        return "", ()
    stage, source = build.plan.stage, row.source.source
    try:
        item = parse_row(record.value, source, stage.kind, stage.data.system)
        _, changes = clean_item(item, CleaningSteps.of(stage.data.clean, stage.kind))
    except RowError:
        return format_name(record.value, source), ()
    name = f"{format_name(record.value, source)}: {_shape(item)}"
    return name, tuple({"step": change.step, "before": change.before, "after": change.after} for change in changes)


def _shape(item: Item) -> str:
    """The kind of the item in words."""
    if isinstance(item, Document):
        return f"a document of {len(item.text):,} characters"
    turns = item.messages if isinstance(item, Conversation) else item.prompt
    return f"a {type(item).__name__.lower()} with turns {', '.join(turn.role for turn in turns)}"


def _side(build: OpenBuild, row: LocatedRow) -> str:
    if row.source.part == "evaluation":
        return "evaluation"
    keep = keep_mask(build.folder, row.shard)
    return "training" if row.item is not None and keep[row.item] == TRAIN else "validation"


def _step_of(build: OpenBuild, stream_row: int) -> int:
    """The step, counted from 1, that trains on a row of the stream of packed rows."""
    stage, train = build.plan.stage, build.data.train
    if stage.batch.warmup is None:
        return stream_row // stage.batch.global_batch_rows(train.row_length) + 1
    steps = compute_steps(stage.duration, stage.batch, train.rows_in, train.row_length)
    return bisect_right(range(steps.steps), stream_row, key=steps.first_row)


def _packed(build: OpenBuild, row: LocatedRow, data: PackedDataset) -> tuple[Packing, ...]:
    packed_rows, order = data.epoch(0)
    positions = np.arange(len(order))
    if data is build.data.train:  # validation is read in the order of its rows
        positions[order] = np.arange(len(order))
    packings = []
    for example in examples_of(data.examples, row.shard.number, row.row):
        sequences = np.arange(data.examples.per_example) + example * data.examples.per_example
        sequence_slots = np.flatnonzero(np.isin(packed_rows.sequence, sequences))
        rows_in_order = np.unique(positions[np.searchsorted(packed_rows.offsets, sequence_slots, side="right") - 1]).tolist()
        tokens = int(np.diff(data.examples.offsets)[sequences].sum())
        supervised = int(data.examples.supervised[sequences].sum())
        steps = sorted({_step_of(build, position) for position in rows_in_order})
        packings.append(Packing(example, tokens, supervised, tuple(rows_in_order), tuple(steps)))
    return tuple(packings)


def _print(terminal: Console, trace: RowTrace) -> None:
    terminal.print(Text(f"{trace.stage}: {trace.where}  ({trace.source})", style="bold"))

    def line(label: str, text: str) -> None:
        terminal.print(Text.assemble((f"  {label:<12}", "dim"), text), soft_wrap=True)

    if trace.note:
        line("read", trace.note)
    for name, content in trace.read.items():
        line("read", f"{name} = {content!r}" if name else content)
    if trace.recognised:
        line("recognised", trace.recognised)
    for change in trace.changed:
        line("cleaned", f"{change['step']}: {change['before']!r} → {change['after']!r}")
    if trace.recognised and not trace.changed and not trace.note:
        line("cleaned", "nothing to change")
    if trace.dropped:
        line("dropped", trace.dropped)
    for remark in trace.remarks:
        line("noted", remark)
    if trace.side:
        line("kept", f"for {trace.side}")
    for packing in trace.packed:
        line("tokens", f"example {packing.example}: {packing.tokens:,} tokens, {packing.supervised:,} supervised")
        line("packed", _packed_text(packing, trace.side))


def _packed_text(packing: Packing, side: str) -> str:
    if not packing.rows:
        return "not drawn in the first epoch"
    rows = ", ".join(f"{row:,}" for row in packing.rows)
    if side == "validation":
        return f"in packed row {rows} of validation"
    return f"in packed row {rows} of the first epoch, read in step {', '.join(f'{step:,}' for step in packing.steps)}"
