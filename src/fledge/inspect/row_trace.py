"""The way of one row: read, recognised, cleaned, kept or dropped, cut, made tokens, packed."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from rich.console import Console
from rich.text import Text

from fledge.data import PackedDataset
from fledge.data.build.directory import TRAIN
from fledge.data.cleaning.cleaning import CleaningSteps, clean_item
from fledge.data.parsing.columns import RowError
from fledge.data.parsing.detection import schema_name
from fledge.data.parsing.rows import parse_row
from fledge.data.reading.records import Record, read
from fledge.errors import FledgeError
from fledge.inspect.row_lookup import FoundRow, events_of, find_rows, parse_place
from fledge.inspect.show import examples_of, legend, print_row
from fledge.inspect.target import Builds, OpenBuild, open_build
from fledge.plan.horizon import compute_steps

SHOWN = 200  # characters of what a row holds


@dataclass(frozen=True)
class Packing:
    """Where an example is read in the first epoch: packed rows in the order of reading, and the updates (from 1) that read
    them. None are given for an example that the epoch does not draw."""

    example: int
    tokens: int
    target_tokens: int
    rows: tuple[int, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class RowTrace:
    """One row of one stage, step by step."""

    stage: str
    source: str
    split: str
    where: str
    read: dict[str, str] = field(default_factory=dict)  # column -> the beginning of what it holds
    note: str = ""  # why it was not read again
    recognised: str = ""
    changed: tuple[dict[str, str], ...] = ()
    dropped: str = ""
    events: tuple[str, ...] = ()  # truncated, shortened, split, noticed
    side: str = ""  # training, validation, evaluation; empty where it was dropped
    packed: tuple[Packing, ...] = ()


def trace_row(builds: Builds, row: str, as_json: bool) -> None:
    """Print the way of a row through every stage that reads it, and its tokens. FledgeError where none does."""
    place = parse_place(row)
    opened = [open_build(name, folder) for name, folder in builds.folders.items()]
    found = [(one, known) for one in opened for known in find_rows(one, place)]
    if not found:
        raise FledgeError("no source has this row", where=f"--row {row}", hint="lines are counted from 1, indices from 0")
    trails = [trail(one, known) for one, known in found]
    if as_json:
        print(orjson.dumps({"rows": [asdict(made) for made in trails]}, option=orjson.OPT_INDENT_2).decode())
        return
    terminal = Console(highlight=False)
    for (one, known), made in zip(found, trails, strict=True):
        _print(terminal, made)
        if made.side in ("training", "validation"):
            terminal.print(Text(legend(terminal), style="italic"))
            print_row(terminal, one, known.shard.number, known.row)


def trail(opened: OpenBuild, found: FoundRow) -> RowTrace:
    """What became of a row. The file is read again if it is still as it was."""
    record, note = _read_again(opened, found)
    events = [event for event in events_of(opened.build, found.shard) if event["row"] == found.row]
    drops = [_event_text(event) for event in events if event["state"] == "dropped"]
    side = "" if drops else _side(opened, found)
    data = {"training": opened.data.train, "validation": opened.data.validation}.get(side)
    recognised, changed = _recognised(opened, found, record)
    return RowTrace(
        stage=opened.name,
        source=found.source.name,
        split=found.source.split,
        where=found.where,
        read=_columns(record) if record is not None else {},
        note=note,
        recognised=recognised,
        changed=changed,
        dropped="; ".join(drops),
        events=tuple(_event_text(event) for event in events if event["state"] not in ("dropped", "changed")),
        side=side,
        packed=_packed(opened, found, data) if data is not None else (),
    )


def _event_text(event: Mapping[str, Any]) -> str:
    return f"{event['reason']} ({event['detail']})" if event["detail"] else event["reason"]


def _read_again(opened: OpenBuild, found: FoundRow) -> tuple[Record | None, str]:
    """The row as the file holds it, or why it was not read."""
    if not found.shard.spans:
        return None, "not read again: it comes from a hub"
    span = found.shard.spans[found.file]
    try:
        state = Path(span.file).stat()
    except OSError:
        return None, "not read again: the file is no longer there"
    if (span.file, state.st_size, state.st_mtime_ns) not in opened.plan.stamps:
        return None, "not read again: the file has changed since the build"
    record = next((record for record in read(span, found.source.source) if record.number == found.number), None)
    return record, ""


def _columns(record: Record) -> dict[str, str]:
    value = record.value
    if not isinstance(value, Mapping):
        return {"": record.broken or repr(value)[:SHOWN]}
    return {str(name): _shortened(content) for name, content in value.items()}


def _shortened(content: Any) -> str:
    text = content if isinstance(content, str) else repr(content)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} … ({len(text):,} characters)"


def _recognised(opened: OpenBuild, found: FoundRow, record: Record | None) -> tuple[str, tuple[dict[str, str], ...]]:
    """What the row was taken for, and what was mended in it: both are functions of the row alone."""
    if record is None or record.broken:
        return "", ()
    plan, source = opened.plan, found.source.source
    try:
        item = parse_row(record.value, source, plan.format.parse, plan.data.system)
        _, events = clean_item(item, CleaningSteps.of(plan.data.clean, plan.format.strips_html))
    except RowError:
        return schema_name(record.value, source), ()
    changes = ((event.reason, event.excerpts or ("", "")) for event in events)
    return f"{schema_name(record.value, source)}: {item.description()}", tuple(
        {"step": step, "before": before, "after": after} for step, (before, after) in changes
    )


def _side(opened: OpenBuild, found: FoundRow) -> str:
    if found.source.split == "evaluation":
        return "evaluation"
    keep = opened.build.keep_mask(found.shard)
    return "training" if found.item is not None and keep[found.item] == TRAIN else "validation"


def _step_of(opened: OpenBuild, position: int) -> int:
    """The update of the first epoch, counted from 1, that reads a position of the stream of packed rows."""
    batch, train = opened.plan.batch, opened.data.train
    if batch.warmup is None:
        return position // batch.global_batch_rows(train.packed_length) + 1
    horizon = compute_steps("1 epochs", batch, train.packed_rows_in, train.packed_length)
    return bisect_right(range(horizon.steps), position, key=horizon.first_row)


def _packed(opened: OpenBuild, found: FoundRow, data: PackedDataset) -> tuple[Packing, ...]:
    layout, order = data.epoch(0)
    positions = np.arange(len(order))
    if data is opened.data.train:  # validation is read in the order of its packed rows
        positions[order] = np.arange(len(order))
    packings = []
    for example in examples_of(data.examples, found.shard.number, found.row):
        sequences = data.examples.sequences_of(np.asarray([example]))
        slots = np.flatnonzero(np.isin(layout.sequence, sequences))
        rows = np.unique(positions[np.searchsorted(layout.offsets, slots, side="right") - 1]).tolist()
        tokens = int(np.diff(data.examples.offsets)[sequences].sum())
        target_tokens = int(data.examples.target_tokens[sequences].sum())
        steps = sorted({_step_of(opened, position) for position in rows})
        packings.append(Packing(example, tokens, target_tokens, tuple(rows), tuple(steps)))
    return tuple(packings)


def _print(terminal: Console, made: RowTrace) -> None:
    terminal.print(Text(f"{made.stage}: {made.where}  ({made.source})", style="bold"))

    def line(label: str, text: str) -> None:
        terminal.print(Text.assemble((f"  {label:<12}", "dim"), text), soft_wrap=True)

    if made.note:
        line("read", made.note)
    for name, content in made.read.items():
        line("read", f"{name} = {content!r}" if name else content)
    if made.recognised:
        line("recognised", made.recognised)
    for change in made.changed:
        line("cleaned", f"{change['step']}: {change['before']!r} → {change['after']!r}")
    if made.recognised and not made.changed and not made.note:
        line("cleaned", "nothing to mend")
    if made.dropped:
        line("dropped", made.dropped)
    for event in made.events:
        line("noted", event)
    if made.side:
        line("kept", f"for {made.side}")
    for packing in made.packed:
        line("tokens", f"example {packing.example}: {packing.tokens:,} tokens, {packing.target_tokens:,} supervised")
        line("packed", _where_read(packing, made.side))


def _where_read(packing: Packing, side: str) -> str:
    if not packing.rows:
        return "not drawn in the first epoch"
    rows = ", ".join(f"{row:,}" for row in packing.rows)
    if side == "validation":
        return f"in packed row {rows} of validation"
    return f"in packed row {rows} of the first epoch, read in step {', '.join(f'{step:,}' for step in packing.steps)}"
