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

from fledge.data.build.phases import TRAIN, keep_mask
from fledge.data.cleaning.cleaning import CleaningSteps, clean_item
from fledge.data.dataset.batches import PackedDataset
from fledge.data.parsing.rows import Conversation, Document, Item, RowError, format_name, parse_row
from fledge.data.reading.records import Record, read
from fledge.errors import FledgeError
from fledge.inspect.row_lookup import FoundRow, find_rows, notes_of, parse_place
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
    supervised: int
    rows: tuple[int, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True)
class RowTrace:
    """One row of one stage, step by step."""

    stage: str
    source: str
    part: str
    where: str
    read: dict[str, str] = field(default_factory=dict)  # column -> the beginning of what it holds
    note: str = ""  # why it was not read again
    recognised: str = ""
    changed: tuple[dict[str, str], ...] = ()
    dropped: str = ""
    remarks: tuple[str, ...] = ()
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
    mine = [remark for remark in notes_of(opened.folder, found.shard.folder) if remark["row"] == found.row]
    said = {state: [_said(remark) for remark in mine if remark["state"] == state] for state in ("dropped", "changed")}
    side = "" if said["dropped"] else _side(opened, found)
    data = {"training": opened.data.train, "validation": opened.data.validation}.get(side)
    return RowTrace(
        opened.name,
        found.source.name,
        found.source.part,
        found.where,
        _columns(record) if record is not None else {},
        note,
        *_recognised(opened, found, record),
        dropped="; ".join(said["dropped"]),
        remarks=tuple(_said(remark) for remark in mine if remark["state"] not in ("dropped", "changed")),
        side=side,
        packed=_packed(opened, found, data) if data is not None else (),
    )


def _said(remark: Mapping[str, Any]) -> str:
    return f"{remark['reason']} ({remark['detail']})" if remark["detail"] else remark["reason"]


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
    stage, source = opened.plan.stage, found.source.source
    try:
        item = parse_row(record.value, source, stage.kind, stage.data.system)
        _, changes = clean_item(item, CleaningSteps.of(stage.data.clean, stage.kind))
    except RowError:
        return format_name(record.value, source), ()
    name = f"{format_name(record.value, source)}: {_shape(item)}"
    return name, tuple({"step": change.step, "before": change.before, "after": change.after} for change in changes)


def _shape(item: Item) -> str:
    """What kind of item it is, in words."""
    if isinstance(item, Document):
        return f"a document of {len(item.text):,} characters"
    turns = item.messages if isinstance(item, Conversation) else item.prompt
    return f"a {type(item).__name__.lower()} with turns {', '.join(turn.role for turn in turns)}"


def _side(opened: OpenBuild, found: FoundRow) -> str:
    if found.source.part == "evaluation":
        return "evaluation"
    keep = keep_mask(opened.folder, found.shard)
    return "training" if found.item is not None and keep[found.item] == TRAIN else "validation"


def _step_of(opened: OpenBuild, place: int) -> int:
    """The update, counted from 1, that reads a place of the stream of rows."""
    stage, train = opened.plan.stage, opened.data.train
    if stage.batch.warmup is None:
        return place // stage.batch.global_batch_rows(train.row_length) + 1
    reach = compute_steps(stage.duration, stage.batch, train.rows_in, train.row_length)
    return bisect_right(range(reach.steps), place, key=reach.first_row)


def _packed(opened: OpenBuild, found: FoundRow, data: PackedDataset) -> tuple[Packing, ...]:
    rows, order = data.epoch(0)
    places = np.arange(len(order))
    if data is opened.data.train:  # validation is read in the order of its rows
        places[order] = np.arange(len(order))
    made = []
    for example in examples_of(data.examples, found.shard.number, found.row):
        sequences = np.arange(data.examples.per_example) + example * data.examples.per_example
        slots = np.flatnonzero(np.isin(rows.sequence, sequences))
        within = np.unique(places[np.searchsorted(rows.offsets, slots, side="right") - 1]).tolist()
        size = int(np.diff(data.examples.offsets)[sequences].sum())
        supervised = int(data.examples.supervised[sequences].sum())
        steps = sorted({_step_of(opened, place) for place in within})
        made.append(Packing(example, size, supervised, tuple(within), tuple(steps)))
    return tuple(made)


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
    for remark in made.remarks:
        line("noted", remark)
    if made.side:
        line("kept", f"for {made.side}")
    for packing in made.packed:
        line("tokens", f"example {packing.example}: {packing.tokens:,} tokens, {packing.supervised:,} supervised")
        line("packed", _where_read(packing, made.side))


def _where_read(packing: Packing, side: str) -> str:
    if not packing.rows:
        return "not drawn in the first epoch"
    rows = ", ".join(f"{row:,}" for row in packing.rows)
    if side == "validation":
        return f"in packed row {rows} of validation"
    return f"in packed row {rows} of the first epoch, read in step {', '.join(f'{step:,}' for step in packing.steps)}"
