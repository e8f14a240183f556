"""Many lengths in a few numbers: percentiles and a histogram."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


@dataclass(frozen=True)
class Lengths:
    """Many lengths: nearest-rank percentiles, and a histogram of four bins an octave, each (start, stop, count) of [start,
    stop)."""

    count: int
    mean: float
    percentiles: dict[str, int]
    histogram: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, values: np.ndarray) -> "Lengths | None":
        """The statistics of the lengths `values` [n]; None if n is 0."""
        if not len(values):
            return None
        points = np.quantile(values, [p / 100 for p in PERCENTILES], method="inverted_cdf").tolist()
        percentiles = {f"p{p}": int(value) for p, value in zip(PERCENTILES, points, strict=True)}
        percentiles["max"] = int(values.max())
        return cls(len(values), float(values.mean()), percentiles, tuple(_histogram(values)))


def _histogram(values: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Bins from the one of the smallest value to the one of the largest."""
    octaves = int(values.max()).bit_length() + 1
    edges = np.unique(np.concatenate(([0], np.round(2.0 ** (np.arange(4 * octaves + 1) / 4))))).astype(np.int64)
    counts = np.histogram(values, edges)[0]
    filled = np.flatnonzero(counts)
    for number in range(int(filled[0]), int(filled[-1]) + 1):
        yield int(edges[number]), int(edges[number + 1]), int(counts[number])
