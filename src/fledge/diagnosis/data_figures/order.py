"""The order in which training reads its packed rows: whether neighbours are alike, and whether it is the order of the files."""

from collections.abc import Sequence

import numpy as np

from fledge.data import Batch
from fledge.data.storage import Examples
from fledge.diagnosis.case import Figure

FEWEST_ROWS = 24
SHUFFLES = 200


def order_figures(batches: Sequence[Batch], examples: Examples, seed: int) -> dict[str, Figure]:
    """`data/order_correlation`, `data/order_z` and `data/file_order_correlation` of the packed rows in the order of reading.

    The correlation is that of neighbouring rows, of the mean length of their examples or of their shares of the sources,
    whichever stands out more against shuffled orders of the same rows; one packed row counts as a whole, because packing puts
    examples together by their lengths. `seed`: of the shuffles.
    """
    rows = [row for batch in batches for row in _rows(batch)]
    if len(rows) < FEWEST_ROWS:
        return {}
    lengths = np.log1p(np.diff(examples.offsets)[:: examples.sequences_per_example])
    values = {"length": np.asarray([[lengths[row].mean()] for row in rows])}
    sources = None if examples.source is None else np.unique(examples.source)
    if sources is not None and len(sources) > 1 and examples.source is not None:
        values["source"] = np.asarray([(examples.source[row][:, None] == sources).mean(axis=0) for row in rows])
    measured = {name: _against_shuffles(value, seed) for name, value in values.items()}
    name = max(measured, key=lambda one: measured[one][1])
    correlation, z = measured[name]
    note = f"{len(rows):,} packed rows, by {name}, beside {SHUFFLES} shuffled orders"
    file_order = _rank_correlation(np.asarray([float(np.mean(row)) for row in rows]))
    return {
        "data/order_correlation": Figure(correlation, "data", note=note),
        "data/order_z": Figure(z, "data", note=note),
        "data/file_order_correlation": Figure(file_order, "data", note=f"{len(rows):,} packed rows"),
    }


def _rows(batch: Batch) -> list[np.ndarray]:
    """The numbers of the examples in each row of a batch that holds any."""
    numbers, sequences, held = np.asarray(batch.examples), batch.sequence_ids.numpy(), (batch.documents > 0).numpy()
    rows = (np.unique(sequences[row][held[row]]) // batch.sequences_per_example for row in range(len(sequences)))
    return [numbers[np.unique(row)] for row in rows if len(row)]


def _against_shuffles(values: np.ndarray, seed: int) -> tuple[float, float]:
    """(correlation of neighbours of values [R, K], the same in standard deviations of shuffled orders). (0, 0) for values that
    are all equal."""
    centred = values - values.mean(axis=0)
    total = float((centred**2).sum())
    if total <= 1e-12:
        return 0.0, 0.0
    generator = np.random.default_rng(seed)
    found = float((centred[1:] * centred[:-1]).sum()) / total
    shuffled = np.zeros(SHUFFLES)
    for number in range(SHUFFLES):
        order = centred[generator.permutation(len(centred))]
        shuffled[number] = (order[1:] * order[:-1]).sum() / total
    return found, (found - float(shuffled.mean())) / max(1e-9, float(shuffled.std()))


def _rank_correlation(values: np.ndarray) -> float:
    """Spearman's rank correlation of values with their own places."""
    ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return float(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1])
