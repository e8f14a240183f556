"""The trace of one row: read, parsed, cleaned, kept or dropped, truncated, tokenized, packed."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from rich.text import Text

from fledge.data import PackedDataset
from fledge.data.build.directory import TRAIN
from fledge.data.cleaning.cleaning import CleaningSteps, clean_item
from fledge.data.parsing.columns import RowError
from fledge.data.parsing.detection import schema_name
from fledge.data.parsing.rows import parse_row
from fledge.data.reading.records import Record, read
from fledge.errors import FledgeError
from fledge.escaping import escaped_json
from fledge.inspect.builds import Builds, OpenBuild, open_build
from fledge.inspect.row_lookup import LocatedRow, find_rows, parse_row_location, row_events_of
from fledge.inspect.show import examples_of, legend, print_row
from fledge.plan.horizon import compute_steps
from fledge.run.terminal import Terminal

MAX_CHARACTERS = 200  # of a column's value


@dataclass(frozen=True)
class Packing:
    """One example in the first epoch: its packed rows in the order of reading, and the steps (from 1) that train on them.

    Both are empty when the epoch does not draw the example. `tokens` and `target_tokens` (targets with weight) are counts.
    """

    example: int
    tokens: int
    target_tokens: int
    rows: tuple[int, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class RowTrace:
    """One row of one stage, step by step. The fields are the keys of `--json`, named as in the data report."""

    stage: str
    source: str
    split: str
    where: str
    read: dict[str, str] = field(default_factory=dict)  # column -> the beginning of its value
    note: str = ""  # why the file was not read again
    recognized: str = ""
    changed: tuple[dict[str, str], ...] = ()
    dropped: str = ""
    events: tuple[str, ...] = ()  # truncated, shortened, split, noticed
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
        print(escaped_json(orjson.dumps({"rows": [asdict(trace) for trace in traces]}, option=orjson.OPT_INDENT_2).decode()))
        return
    terminal = Terminal()
    for (build, located_row), trace in zip(located, traces, strict=True):
        _print(terminal, trace)
        if trace.side in ("training", "validation"):
            terminal.print(Text(legend(terminal), style="italic"))
            print_row(terminal, build, located_row.shard.number, located_row.row)


def build_trace(build: OpenBuild, row: LocatedRow) -> RowTrace:
    """The trace of one row. Its file is read again, provided that the file has not changed since the build."""
    record, note = _reread(build, row)
    events = [event for event in row_events_of(build.directory, row.shard) if event["row"] == row.row]
    dropped = [_event_text(event) for event in events if event["state"] == "dropped"]
    side = "" if dropped else _side(build, row)
    data = {"training": build.data.train, "validation": build.data.validation}.get(side)
    recognized, changed = _recognized(build, row, record)
    return RowTrace(
        stage=build.name,
        source=row.source.name,
        split=row.source.split,
        where=row.location,
        read=_columns(record) if record is not None else {},
        note=note,
        recognized=recognized,
        changed=changed,
        dropped="; ".join(dropped),
        events=tuple(_event_text(event) for event in events if event["state"] not in ("dropped", "changed")),
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


def _recognized(build: OpenBuild, row: LocatedRow, record: Record | None) -> tuple[str, tuple[dict[str, str], ...]]:
    """The format of the row, and the changes that cleaning made. Both depend on the row alone."""
    if record is None or record.broken:
        return "", ()
    plan, source = build.plan, row.source.source
    schema = schema_name(record.value, source)
    try:
        item = parse_row(record.value, source, plan.format.parse, plan.data.system)
        _, events = clean_item(item, CleaningSteps.of(plan.data.clean, plan.format.strips_html))
    except RowError:
        return schema, ()
    changes = ((event.reason, event.excerpts or ("", "")) for event in events)
    changed = tuple({"step": step, "before": before, "after": after} for step, (before, after) in changes)
    return f"{schema}: {item.description()}", changed


def _side(build: OpenBuild, row: LocatedRow) -> str:
    if row.source.split == "evaluation":
        return "evaluation"
    keep = build.directory.keep_mask(row.shard)
    return "training" if row.item is not None and keep[row.item] == TRAIN else "validation"


def _step_of(build: OpenBuild, stream_row: int) -> int:
    """The step of the first epoch, counted from 1, that trains on a row of the stream of packed rows."""
    batch, train = build.plan.batch, build.data.train
    if batch.warmup is None:
        return stream_row // batch.global_batch_rows(train.packed_length) + 1
    horizon = compute_steps("1 epochs", batch, train.packed_rows_in, train.packed_length)
    return bisect_right(range(horizon.steps), stream_row, key=horizon.first_row)


def _packed(build: OpenBuild, row: LocatedRow, data: PackedDataset) -> tuple[Packing, ...]:
    layout, order = data.epoch(0)
    positions = np.arange(len(order))
    if data is build.data.train:  # validation is read in the order of its rows
        positions[order] = np.arange(len(order))
    packings = []
    for example in examples_of(data.examples, row.shard.number, row.row):
        sequences = data.examples.sequences_of(np.asarray([example]))
        sequence_slots = np.flatnonzero(np.isin(layout.sequence, sequences))
        rows_in_order = np.unique(positions[np.searchsorted(layout.offsets, sequence_slots, side="right") - 1]).tolist()
        tokens = int(np.diff(data.examples.offsets)[sequences].sum())
        target_tokens = int(data.examples.target_tokens[sequences].sum())
        steps = sorted({_step_of(build, position) for position in rows_in_order})
        packings.append(Packing(example, tokens, target_tokens, tuple(rows_in_order), tuple(steps)))
    return tuple(packings)


def _print(terminal: Terminal, trace: RowTrace) -> None:
    terminal.print(Text(f"{trace.stage}: {trace.where}  ({trace.source})", style="bold"))

    def line(label: str, text: str) -> None:
        terminal.print(Text.assemble((f"  {label:<12}", "dim"), text), soft_wrap=True)

    if trace.note:
        line("read", trace.note)
    for name, content in trace.read.items():
        line("read", f"{name} = {content!r}" if name else content)
    if trace.recognized:
        line("recognized", trace.recognized)
    for change in trace.changed:
        line("cleaned", f"{change['step']}: {change['before']!r} → {change['after']!r}")
    if trace.recognized and not trace.changed and not trace.note:
        line("cleaned", "nothing to change")
    if trace.dropped:
        line("dropped", trace.dropped)
    for event in trace.events:
        line("noted", event)
    if trace.side:
        line("kept", f"for {trace.side}")
    for packing in trace.packed:
        line("tokens", f"example {packing.example}: {packing.tokens:,} tokens, {packing.target_tokens:,} supervised")
        line("packed", _packed_text(packing, trace.side))


def _packed_text(packing: Packing, side: str) -> str:
    if not packing.rows:
        return "not drawn in the first epoch"
    rows = ", ".join(f"{row:,}" for row in packing.rows)
    if side == "validation":
        return f"in packed row {rows} of validation"
    return f"in packed row {rows} of the first epoch, read in step {', '.join(f'{step:,}' for step in packing.steps)}"
