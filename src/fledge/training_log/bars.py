"""Which progress bar of a text is that of the training, among those of loading, of preparing data and of evaluation."""

import numpy as np

from fledge.training_log.records import Floats


def main_totals(bar: Floats, total: Floats, loss: Floats | None) -> list[float]:
    """The totals of the bars of the training: one, or those of several runs one after another. `bar`, `total`: what progress
    bars say in each row, NaN where a row has none [rows]; at least one total is known. `loss`: of the training [rows]; None
    without one.

    Records of the loss stand on the bar of the training, or between its rows: it has begun, is not at its end and goes on
    behind them. A bar of evaluation is at its end, and one of loading does not go on. Where no bar is so, the first one is
    taken that is not over before the first record."""
    known = np.flatnonzero(~np.isnan(total) & ~np.isnan(bar))
    records = np.flatnonzero(~np.isnan(loss)) if loss is not None else np.zeros(0, dtype=np.int64)
    totals, first = np.unique(total[known], return_index=True)
    totals = totals[np.argsort(first)]
    if len(totals) == 1 or not len(records):
        return [float(totals[0])]
    open_at = _open_before(bar[known], total[known], known, records)
    scores, held = [], []
    for place, one in enumerate(totals):
        rows = known[total[known] == one]
        held.append(_held(bar[rows], rows, records, float(one)))
        scores.append((int(held[-1].sum()), int((open_at == one).sum()), bool(rows[-1] >= records[0]), -place))
    best, *others = sorted(range(len(totals)), key=scores.__getitem__, reverse=True)
    chosen, covered = [best], held[best]
    for other in others:
        if held[other].any() and not (held[other] & covered).any():
            chosen.append(other)
            covered = covered | held[other]
    return [float(totals[place]) for place in chosen]


def _held(bar: Floats, rows: np.ndarray, records: np.ndarray, total: float) -> np.ndarray:
    """Which records stand in a row of a bar, or between two rows of it, the first of which is not its end, and the second not a
    new beginning [records]."""
    place = np.searchsorted(rows, records, side="right") - 1
    before, after = np.maximum(place, 0), np.minimum(place + 1, len(rows) - 1)
    between = (place >= 0) & (place + 1 < len(rows)) & (bar[before] < total) & (bar[after] >= bar[before])
    return between | np.isin(records, rows)


def _open_before(bar: Floats, total: Floats, rows: np.ndarray, records: np.ndarray) -> Floats:
    """The total of the bar that stands next before each record, if it is not at its end there: NaN for others."""
    before = np.searchsorted(rows, records, side="right") - 1
    place = np.maximum(before, 0)
    return np.where((before >= 0) & (bar[place] < total[place]), total[place], np.nan)
