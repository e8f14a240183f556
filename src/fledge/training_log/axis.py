"""The steps of the rows of a log: epochs in which steps begin anew, micro-batches, parts that were trained twice."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fledge.training_log import names
from fledge.training_log.bars import main_totals
from fledge.training_log.numbers import is_whole
from fledge.training_log.records import Floats, TrainingSettings
from fledge.training_log.rows import Rows

RESUME = "resume"
"""Kind of the events that tell where a run was resumed or begun again."""
MOST_TOLD = 10  # of these, one by one
TOLERANCE = 0.02  # of the steps of an epoch: the last batch of an epoch may be left out or be short


@dataclass(kw_only=True)
class Axis:
    """The steps of a log. `steps`, `epochs`: of each row [rows]; epochs read so far, None where the log has none. `kept`: rows
    that were not trained again later [rows]. `unit`: as in TrainingLog.step_unit. `micro`: number of the micro-batch of each
    row, where the log counts both. `total_steps`, `total_epochs`: as the log says them. `order`: what rises along a run [rows],
    NaN where a row says nothing: where it falls, the run was resumed or begun again; None where nothing tells that."""

    steps: Floats
    epochs: Floats | None
    kept: NDArray[np.bool_]
    unit: str
    micro: Floats | None = None
    total_steps: float | None = None
    total_epochs: float | None = None
    order: Floats | None = None
    notes: list[str] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Columns of a log that count steps and epochs, by what they are: names of `axis/…` → column; and the column of the
    training loss, whose rows tell when steps begin anew."""

    by_meaning: dict[str, str]
    loss: str | None

    def of(self, rows: Rows, meaning: str) -> Floats | None:
        """The numbers of one of them for every row, NaN where a row has none."""
        return rows.spread(self.by_meaning.get(meaning))


def find_axis(rows: Rows, columns: Columns, facts: TrainingSettings, counts: str = "unknown") -> Axis:
    """The steps of all rows. `facts`: what is known about the run. `counts`: what the step of this kind of log counts:
    `update`, `micro-batch` or `unknown`."""
    step, micro = columns.of(rows, names.STEP), columns.of(rows, names.MICRO_STEP)
    in_epoch, bar = columns.of(rows, names.EPOCH_STEP), columns.of(rows, names.BAR_STEP)
    epoch = _filled(columns.of(rows, names.EPOCH))
    axis = Axis(steps=np.zeros(len(rows)), epochs=epoch, kept=np.ones(len(rows), dtype=bool), unit=counts)
    axis.total_steps = _last(columns.of(rows, names.TOTAL_STEPS))
    axis.total_epochs = _last(columns.of(rows, names.TOTAL_EPOCHS))
    if step is not None:
        if (
            micro is not None and not (~np.isnan(step) & ~np.isnan(micro)).any()
        ):  # two words for one count, on lines of their own
            step, micro = np.where(np.isnan(step), micro, step), None
        axis.steps, axis.micro = _forward(step), micro
        axis.unit = "update" if micro is not None else counts
        _understand_restarts(axis, step, rows, columns, facts)
    elif in_epoch is not None:
        _per_epoch(axis, in_epoch, _last(columns.of(rows, names.EPOCH_STEPS)), facts)
    elif micro is not None:
        axis.steps = _forward(micro)
        _understand_restarts(axis, micro, rows, columns, facts)
    elif bar is not None:
        _from_bar(axis, rows, columns, facts)
    else:
        _without_steps(axis, rows, columns, facts)
    if axis.order is not None:
        _leave_out_repeated(axis, axis.order, rows, columns)
    return _in_updates(axis, facts)


def _filled(values: Floats | None) -> Floats | None:
    return None if values is None else _forward(values, first=math.nan)


def _forward(values: Floats, first: float = 0.0) -> Floats:
    """The values with gaps filled by the value before; `first`: where there is none before."""
    known = ~np.isnan(values)
    index = np.where(known, np.arange(len(values)), -1)
    np.maximum.accumulate(index, out=index)
    return np.where(index >= 0, values[np.maximum(index, 0)], first)


def _last(values: Floats | None) -> float | None:
    if values is None:
        return None
    known = values[~np.isnan(values)]
    return float(known[-1]) if len(known) else None


# -- steps that begin anew ----------------------------------------------------------------------------------------------


def _recorded(step: Floats, rows: Rows, columns: Columns) -> NDArray[np.int64]:
    """Rows with a step and a training loss; those with a step where none has both."""
    counted = ~np.isnan(step)
    loss = rows.spread(columns.loss)
    if loss is not None and (counted & ~np.isnan(loss)).any():
        counted &= ~np.isnan(loss)
    return np.flatnonzero(counted)


def _drops(step: Floats, rows: Rows, columns: Columns) -> NDArray[np.int64]:
    """Rows with a training loss whose step is below that of the row with one before."""
    index = _recorded(step, rows, columns)
    return index[1:][np.diff(step[index]) < 0]


def _understand_restarts(axis: Axis, step: Floats, rows: Rows, columns: Columns, facts: TrainingSettings) -> None:
    """What it means that steps fall: a new epoch, if the log says so, or that the run was resumed or begun again."""
    index, epoch = _recorded(step, rows, columns), axis.epochs
    falls = np.diff(step[index]) < 0
    length = _last(columns.of(rows, names.EPOCH_STEPS))
    whole = epoch is not None and all(_whole(epoch))
    if epoch is None:
        borders = falls & _at_total(step[index], _forward_of(columns.of(rows, names.TOTAL_STEPS), index))
    else:
        said = epoch if whole else columns.of(rows, names.EPOCH)
        assert said is not None
        rises = np.diff(said[index]) > 0
        borders = falls & rises
        if whole and borders.sum() * 2 <= min(falls.sum(), rises.sum()):
            borders[:] = False
    if borders.any():
        if not whole:
            axis.epochs = np.ones(len(rows))
            np.add.at(axis.epochs, index[1:][borders], 1)
            axis.epochs = np.cumsum(axis.epochs) - np.arange(len(rows))
        _per_epoch(axis, step, length or _length_by_total(axis, step), facts)
    elif not falls.any() and _fits_only_per_epoch(axis, step, facts):
        _per_epoch(axis, step, length, facts)
    else:
        axis.order = step


def _forward_of(values: Floats | None, index: NDArray[np.int64]) -> Floats:
    """The values of these rows, with gaps filled by the value before; NaN where there is none."""
    return np.full(len(index), np.nan) if values is None else _forward(values, first=math.nan)[index]


def _at_total(step: Floats, total: Floats) -> NDArray[np.bool_]:
    """Whether the steps of an epoch are over in each record but the last: the next one would be beyond the total."""
    rises = np.diff(step)
    usual = float(np.median(rises[rises > 0])) if (rises > 0).any() else 0.0
    return (step[:-1] >= total[:-1]) | (step[:-1] + usual > total[:-1])


def _whole(epoch: Floats) -> list[bool]:
    return [is_whole(value) for value in np.unique(epoch[~np.isnan(epoch)])]


def _length_by_total(axis: Axis, step: Floats) -> float | None:
    """Steps of an epoch where a log writes `step 100/600` and steps begin anew: 600."""
    total = axis.total_steps
    if total is None or total < np.nanmax(step):
        return None
    axis.total_steps = None
    return total


def _epoch_lengths(facts: TrainingSettings) -> dict[str, float]:
    """Steps of an epoch by what a step counts, as far as the settings tell."""
    lengths: dict[str, float] = {}
    if facts.rows and facts.batch_rows:
        lengths["update"] = facts.rows / facts.batch_rows
        if facts.micro_batch_rows and (facts.accumulation_steps or 1) > 1:
            lengths["micro-batch"] = lengths["update"] * (facts.accumulation_steps or 1)
    elif facts.steps and facts.epochs:
        lengths["update"] = facts.steps / facts.epochs
    return lengths


def _fits_only_per_epoch(axis: Axis, step: Floats, facts: TrainingSettings) -> bool:
    """Whether steps without a drop must be those of one epoch: as steps of the whole run they contradict the epoch that the
    log says, and as steps of an epoch they do not."""
    epoch, lengths = axis.epochs, _epoch_lengths(facts)
    if epoch is None or not all(_whole(epoch)) or not lengths:
        return False
    known = ~np.isnan(step) & ~np.isnan(epoch)
    if not known.any() or epoch[known].max() < 1:
        return False
    counted, at = step[known], epoch[known] - (0 if (epoch[known] == 0).any() else 1)
    slack = 1 + TOLERANCE
    for length in lengths.values():
        if ((counted >= at * length / slack - 1) & (counted <= (at + 1) * length * slack + 1)).all():
            return False
    return any((counted <= length * slack + 1).all() for length in lengths.values())


def _per_epoch(axis: Axis, step: Floats, length: float | None, facts: TrainingSettings) -> None:
    """Steps of the whole run from steps that begin anew in each epoch."""
    epoch = axis.epochs if axis.epochs is not None else _epochs_by_drops(step)
    first = 0 if np.nanmin(epoch) < 1 else 1
    largest = float(np.nanmax(step))
    said = "as the log says" if length else "the largest step that was seen"
    lengths = _epoch_lengths(facts)
    fitting = [(unit, one) for unit, one in lengths.items() if largest <= one * (1 + TOLERANCE) + 1]
    if axis.unit != "unknown":
        fitting = [pair for pair in fitting if pair[0] == axis.unit]
    if fitting and length is None:
        axis.unit, length = fitting[0]
        said = "examples ÷ rows of a step"
    elif length is not None and axis.unit == "unknown" and lengths:
        near = length
        axis.unit = min(lengths, key=lambda unit: abs(lengths[unit] - near))
    length = largest if length is None else length
    length = length if length > 0 else 1.0
    inside = _forward(step)
    axis.steps = np.where(np.isnan(epoch), 0, np.maximum(epoch - first, 0)) * length + inside
    axis.epochs = np.maximum(epoch - first, 0) + inside / length
    axis.order = np.maximum(epoch - first, 0) * (largest + 1) + step
    axis.notes.append(
        f"Steps begin anew in each epoch: they are counted through the run, with {length:,.0f} steps an epoch ({said})."
    )
    if first == 1 and float(np.nanmin(epoch)) > 1:
        axis.notes.append(
            f"The log begins in epoch {np.nanmin(epoch):g}; whether its epochs count from 0 or from 1 it does not say: from 1 "
            "is assumed."
        )


def _epochs_by_drops(step: Floats) -> Floats:
    """Number of the epoch of each row, from 1, where only drops of the step tell it."""
    filled = _forward(step)
    return 1.0 + np.concatenate(([0], np.cumsum(np.diff(filled) < 0)))


def _leave_out_repeated(axis: Axis, order: Floats, rows: Rows, columns: Columns) -> None:
    """Where the order falls back, the run was resumed or begun anew: what it had trained after that place, or after that step,
    does not count."""
    drops, filled = _drops(order, rows, columns), _forward(order)
    for row in drops:
        axis.events.append({"kind": RESUME, "step": max(float(axis.steps[row]) - 1, 0.0), "line": rows.lines[row]})
    for row in drops[:MOST_TOLD]:
        again = axis.kept[:row] & ((filled[:row] >= filled[row]) | (axis.steps[:row] >= axis.steps[row]))
        axis.kept[:row] &= ~again
        back = float(axis.steps[row])
        axis.notes.append(
            f"At line {rows.lines[row]:,} steps fall back to {back:,.10g}: the run was resumed or begun again there, and "
            f"{int(again.sum()):,} records of steps that were trained again are left out."
        )
    more = axis.kept & ~(_not_again(filled, drops) & _not_again(axis.steps, drops))
    axis.kept &= ~more
    if len(drops) > MOST_TOLD:
        axis.notes.append(
            f"Steps fall back {len(drops) - MOST_TOLD:,} times more, and {int(more.sum()):,} records of steps that were "
            "trained again are left out."
        )


def _not_again(order: Floats, drops: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each row is below all rows behind it at which the order falls back."""
    least = np.full(len(order) + 1, np.inf)
    least[drops] = order[drops]
    return order < np.minimum.accumulate(least[::-1])[::-1][1:]


# -- micro-batches ------------------------------------------------------------------------------------------------------


def _in_updates(axis: Axis, facts: TrainingSettings) -> Axis:
    """Steps that count micro-batches, made into updates where the accumulation is known."""
    accumulation = facts.accumulation_steps
    if axis.unit == "unknown" and accumulation == 1:
        axis.unit = "update"
    if axis.unit == "micro-batch" and accumulation:
        axis.steps = axis.steps / accumulation
        axis.total_steps = axis.total_steps and axis.total_steps / accumulation
        axis.events = [{**event, "step": event["step"] / accumulation} for event in axis.events]
        axis.unit = "update"
        axis.notes.append(
            f"Its steps count micro-batches: they are divided by {accumulation:g} accumulation steps, so that a step is an "
            "update."
        )
    elif axis.unit == "micro-batch":
        axis.notes.append("Its steps count micro-batches, and how many make an update is not known.")
    return axis


# -- logs without steps -------------------------------------------------------------------------------------------------


def _of_main_bar(rows: Rows, columns: Columns, facts: TrainingSettings) -> Floats | None:
    """Steps of the progress bar of the training: the one with the planned steps, else the one with the records of the loss."""
    bar, total = columns.of(rows, names.BAR_STEP), columns.of(rows, names.BAR_TOTAL)
    if bar is None:
        return None
    if total is None or not (~np.isnan(total)).any():
        return bar
    planned = [] if facts.steps is None or not (total == facts.steps).any() else [facts.steps]
    main = planned or main_totals(bar, total, rows.spread(columns.loss))
    return np.where(np.isin(total, main), bar, np.nan)


def _from_bar(axis: Axis, rows: Rows, columns: Columns, facts: TrainingSettings) -> None:
    """Steps from a progress bar, of the run or of an epoch."""
    step = _of_main_bar(rows, columns, facts)
    assert step is not None
    total = columns.of(rows, names.BAR_TOTAL)
    length = None if total is None else _last(np.where(np.isnan(step), np.nan, total))
    drops = _drops(step, rows, Columns(by_meaning={}, loss=None))
    of_run = not len(drops) or _epochs_fall(columns.of(rows, names.EPOCH), drops)
    if axis.epochs is not None and all(_whole(axis.epochs)):
        of_run = of_run and _rises_with_epochs(step, axis.epochs, rows, columns)
    elif not of_run:
        axis.epochs = None
    if of_run:
        axis.steps = _forward(step)
        axis.total_steps = axis.total_steps or length
        axis.order = axis.epochs
    else:
        _per_epoch(axis, step, length, facts)
    axis.notes.append("Its steps are those of the progress bar.")


def _rises_with_epochs(step: Floats, epoch: Floats, rows: Rows, columns: Columns) -> bool:
    """Whether a bar counts through the run although the log says whole epochs: records of the loss, which do not stand on the
    bar, are further along it in each later epoch. One of an epoch is as far in each of them."""
    loss = rows.spread(columns.loss)
    if loss is None or (~np.isnan(loss) & ~np.isnan(step)).any():
        return False
    index = np.flatnonzero(~np.isnan(loss))
    later = np.diff(epoch[index]) > 0
    return bool(later.any()) and bool((np.diff(_forward(step)[index])[later] > 0).all())


def _epochs_fall(epoch: Floats | None, drops: NDArray[np.int64]) -> bool:
    """Whether the epochs that a log says fall back where its bar does, so that the bar is one of the run, begun again."""
    if epoch is None:
        return False
    before, after = _forward(epoch, first=math.nan)[drops - 1], _forward(epoch[::-1], first=math.nan)[::-1][drops]
    return int((after < before).sum()) >= int((after > before).sum())


def _without_steps(axis: Axis, rows: Rows, columns: Columns, facts: TrainingSettings) -> None:
    """Steps of a log that writes none: from epochs, from the interval of the log, or by counting records."""
    epoch, interval = axis.epochs, facts.other.get("logging_steps")
    axis.order = epoch
    if epoch is not None and facts.steps and facts.epochs:
        axis.steps = np.round(np.nan_to_num(epoch) * facts.steps / facts.epochs)
        axis.unit = "update"
        axis.notes.append("The log has no steps: they are its epochs × the planned steps of an epoch.")
    elif isinstance(interval, int | float) and interval >= 1:
        axis.steps = _counted(epoch, rows, columns) * float(interval)
        axis.unit = "update"
        axis.notes.append(f"The log has no steps: its records are counted, {interval:g} steps each (logging_steps).")
    elif epoch is not None and len(np.unique(epoch[~np.isnan(epoch)])) > 1 and all(_whole(epoch)):
        axis.steps, axis.unit = np.nan_to_num(epoch), "epoch"
        axis.notes.append("The log has no steps, only epochs: a step stands for an epoch.")
    else:
        axis.steps, axis.unit = _counted(epoch, rows, columns), "record"
        axis.notes.append("The log has no steps: its records are counted.")


def _counted(epoch: Floats | None, rows: Rows, columns: Columns) -> Floats:
    """The number of records with a training loss up to each row, without those that were trained again later."""
    kept = np.ones(len(rows), dtype=bool)
    if epoch is not None:
        kept = _not_again(_forward(epoch), _drops(epoch, rows, columns))
    loss = rows.spread(columns.loss)
    counted = kept if loss is None else kept & ~np.isnan(loss)
    return np.maximum(np.cumsum(counted), 1).astype(np.float64)
