"""From rows to a log: columns get the names of fledge, and figures their steps."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fledge.training_log import names
from fledge.training_log.axis import Axis, Columns, find_axis
from fledge.training_log.derive import derived
from fledge.training_log.given import Given
from fledge.training_log.kinds import guess_kind
from fledge.training_log.names import Resolved, assign, own_name
from fledge.training_log.records import Floats, Series, TrainingLog, TrainingSettings
from fledge.training_log.rows import Rows

LARGEST_SECONDS = 1e8  # a larger number is a date: seconds since 1970
HELD_BACK = 200  # lines of a log that a buffer of 8 KiB holds, at most
LOSSES = frozenset({"train/loss", "train/epoch_loss"})
LEAST_BYTES = 1e6  # a smaller number of bytes without a unit is one of megabytes or gigabytes: nobody can tell


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where rows come from. `source`: the kind of log. `path`: the file. `stage`: the name of the run in it. `counts`: what its
    steps count: `update`, `micro-batch` or `unknown`. `settings`: what is known about the run. `ended`: as in TrainingLog."""

    source: str
    path: str
    stage: str = ""
    counts: str = "unknown"
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    ended: bool | None = None


def assemble(rows: Rows, origin: Origin, given: Given) -> TrainingLog:
    """The log of these rows. `given`: what the user says. Raises FledgeError for a column that is not there."""
    assigned = assign(rows.names, given.chosen(rows.names, origin.path), rows.points)
    meanings = {found.name: raw for raw, found in assigned.items() if found.is_axis}
    loss = next((raw for raw, found in assigned.items() if found.name == "train/loss"), None)
    settings = derived(origin.settings.updated(given.settings(origin.stage)))
    axis = find_axis(rows, Columns(by_meaning=meanings, loss=loss), settings, origin.counts)
    notes = [*rows.notes, *axis.notes]
    series = _series(rows, assigned, axis, notes)
    if axis.epochs is not None and "train/epoch" not in series:
        series["train/epoch"] = _epochs(axis)
    notes[:0] = _told(assigned)
    log = TrainingLog(
        source=origin.source,
        path=origin.path,
        series=series,
        settings=_with_totals(settings, axis),
        stage=origin.stage,
        records=len(rows),
        unread=dict(rows.unread),
        notes=tuple(dict.fromkeys((*notes, *settings_notes(settings)))),
        events=(*_with_records_after(rows, assigned, axis), *axis.events),
        ended=origin.ended,
        step_unit=axis.unit,
    )
    return with_kind(log)


def _with_records_after(rows: Rows, assigned: Mapping[str, Resolved], axis: Axis) -> list[dict[str, Any]]:
    """The events of the rows. One of a crash that has a line gets `records_after`: how many steps have a training loss behind
    it, and one more if the run's end stands there; and `is_held_back`: whether these go on from the steps before it and are so
    few that a buffer may have held them back."""
    losses = [raw for raw, found in assigned.items() if found.name in LOSSES]
    index = np.unique(np.concatenate([rows.column(raw)[0] for raw in losses])) if losses else np.zeros(0, np.int64)
    lines, steps = np.asarray(rows.lines)[index], axis.steps[index]
    events = []
    for number, event in enumerate(rows.events):
        if event.get("kind") == "crash" and "line" in event:
            before, after = steps[lines <= event["line"]], np.unique(steps[lines > event["line"]])
            if len(before):
                after = after[after != before[-1]]  # a progress bar is drawn once more
            is_over = any(later.get("kind") == "end" for later in rows.events[number:])
            is_held_back = 0 < len(after) <= HELD_BACK and not is_over and (not len(before) or after[0] > before[-1])
            event = {**event, "records_after": len(after) + is_over, "is_held_back": is_held_back}
        events.append(event)
    return events


def settings_notes(settings: TrainingSettings) -> list[str]:
    """What was assumed to derive settings, in sentences."""
    return list(settings.other.get("assumed", ()))


def with_kind(log: TrainingLog) -> TrainingLog:
    """The log with the kind of stage that its figures tell, where its settings do not say it."""
    kind = guess_kind(log) if log.settings.kind is None else None
    if kind is None:
        return log
    settings = replace(log.settings, kind=kind, origin={**log.settings.origin, "kind": "figures of the log"})
    return replace(log, settings=settings, notes=(*log.notes, f"It is a {kind} stage: only such stages have these figures."))


def _with_totals(settings: TrainingSettings, axis: Axis) -> TrainingSettings:
    """The settings with planned steps and epochs that only the log says."""
    said: dict[str, float] = {}
    if settings.steps is None and axis.total_steps and axis.unit == "update":
        said["steps"] = axis.total_steps
    if settings.epochs is None and axis.total_epochs:
        said["epochs"] = axis.total_epochs
    return replace(settings, **said, origin={**settings.origin, **dict.fromkeys(said, "the log")}) if said else settings


def _told(assigned: Mapping[str, Resolved]) -> list[str]:
    """Which columns were taken for which figures, where the names differ."""
    pairs = [f"{raw.strip()} is {found.name}" for raw, found in assigned.items() if not _is_plain(raw, found)]
    return [f"Names: {', '.join(pairs)}."] if pairs else []


def _is_plain(raw: str, found: Resolved) -> bool:
    """Whether a name need not be told: it counts steps, or differs only in what stands before it."""
    return found.is_axis or found.name == raw or found.name.endswith(f"/{raw.strip()}")


def _series(rows: Rows, assigned: Mapping[str, Resolved], axis: Axis, notes: list[str]) -> dict[str, Series]:
    series: dict[str, Series] = {}
    for raw in rows.names:
        found = assigned.get(raw)
        if found is not None and found.is_axis:
            continue
        if (raw in names.NOT_READ or raw.endswith(names.SPEEDS)) and not (found and found.is_given):
            rows.unread["speed of whole evaluations, and other numbers that are no figures"] += rows.points(raw)
            continue
        if found is None and _is_leftover_axis(raw):
            rows.unread[f"column {raw.strip()}: another count of steps"] += len(rows.column(raw)[0])
            continue
        index, values = rows.column(raw)
        name = own_name(raw)
        if found:
            name, values = _converted(raw, values, rows, found, notes)
        index, values = _of_kept_rows(index, values, axis)
        if len(values):
            series[name] = _by_step(axis, index, values, notes if name.startswith("train/") else None)
            if dropped := len(values) - len(series[name]):
                rows.unread["points that repeat a step: of a progress bar, or a micro-batch of an update"] += dropped
    if names.BAR_STEP in rows.names:
        return {name: _without_stale(one) if name.startswith(STALE) else one for name, one in series.items()}
    return series


STALE = ("eval/", "train/epoch_loss")
"""Figures that progress bars show again and again until there is a new one."""


def _without_stale(series: Series) -> Series:
    kept = np.append(True, ~_unchanged(series.values))
    return Series(series.steps[kept], series.values[kept])


def _is_leftover_axis(raw: str) -> bool:
    found = names.resolve(raw)
    return found is not None and found.is_axis


def _of_kept_rows(index: np.ndarray, values: Floats, axis: Axis) -> tuple[np.ndarray, Floats]:
    kept = axis.kept[index]
    return index[kept], values[kept]


def _converted(raw: str, values: Floats, rows: Rows, found: Resolved, notes: list[str]) -> tuple[str, Floats]:
    """The values in the unit of fledge, and the name; its own where the unit is not known."""
    name = found.name
    if found.factor != 1.0:
        return name, values * found.factor
    if rows.measures.get(raw):
        return name, values
    largest = float(np.nanmax(np.abs(values[np.isfinite(values)]), initial=0.0))
    if found.measures == "bytes" and largest < LEAST_BYTES:
        notes.append(f"{raw.strip()} has no unit and is kept under its own name.")
        return own_name(raw), values
    if found.measures == "seconds" and largest > LARGEST_SECONDS:
        notes.append(f"{raw.strip()} is a time of day and is kept under its own name.")
        return own_name(raw), values
    if found.measures == "share" and largest > 1.5:
        notes.append(f"{raw.strip()} is taken as a percentage.")
        return name, values / 100
    if found.measures == "of_100" and 0 < largest <= 1:
        notes.append(f"{raw.strip()} is at most {largest:g}: it is taken as a share and multiplied by 100.")
        return name, values * 100
    return name, values


def _by_step(axis: Axis, index: np.ndarray, values: Floats, notes: list[str] | None) -> Series:
    """The points in order of their steps. Of several micro-batches of an update the mean is taken, if there are `notes` to say
    so; None: they all stay."""
    steps = axis.steps[index]
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    if axis.micro is None or not len(steps) or notes is None:
        return _without_copies(steps, values)
    unique, first = np.unique(steps, return_index=True)
    if len(unique) == len(steps):
        return Series(steps, values)
    sentence = "Several micro-batches of one update are one point, their mean."
    if sentence not in notes:
        notes.append(sentence)
    counts = np.diff(np.append(first, len(steps)))
    return Series(unique, np.add.reduceat(values, first) / counts)


def _without_copies(steps: Floats, values: Floats) -> Series:
    """The points without those that repeat the point before, as progress bars do."""
    if not len(steps):
        return Series(steps, values)
    kept = np.append(True, ~((steps[1:] == steps[:-1]) & _unchanged(values)))
    return Series(steps[kept], values[kept])


def _unchanged(values: Floats) -> np.ndarray:
    """Whether each value but the first equals the one before; not a number equals itself."""
    return (values[1:] == values[:-1]) | (np.isnan(values[1:]) & np.isnan(values[:-1]))


def _epochs(axis: Axis) -> Series:
    """Epochs read so far over the steps."""
    assert axis.epochs is not None
    known = axis.kept & ~np.isnan(axis.epochs)
    steps, epochs = axis.steps[known], axis.epochs[known]
    order = np.argsort(steps, kind="stable")
    steps, epochs = steps[order], epochs[order]
    last = np.append(np.diff(steps) > 0, True) if len(steps) else np.zeros(0, dtype=bool)
    return Series(steps[last], epochs[last])
