"""How the losses of target tokens are distributed: percentiles, by position, by source. Only sums are kept."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fledge.data import Batch, PackedDataset
from fledge.objective.base import bits_per_unit

PERCENTILES = (25, 50, 75, 95)
BINS = 4096
SCALE, LARGEST = 100.0, 60.0  # bins are equally wide in log(1 + 100 · loss): 0.00002 nats at 0, 0.02 nats at a loss of 10
FIRST_POSITIONS = 16  # of the first group; each following one is as long as all before it
HISTOGRAM_WIDTH, HISTOGRAM_BINS = 0.25, 40  # nats; the last bin has all larger losses too


class TokenLosses:
    """Sums over the target tokens of an evaluation, on the device of the model, added up over its batches and ranks."""

    def __init__(self, data: PackedDataset, device: torch.device) -> None:
        self.sources = data.sources if data.examples.source is not None else ()
        self._source_of = data.examples.source
        self._starts = position_starts(data.packed_length)
        self._edges = torch.tensor(self._starts[1:], device=device)
        self._bins = torch.zeros(BINS, dtype=torch.int64, device=device)
        self._positions = torch.zeros(2, len(self._starts), dtype=torch.float64, device=device)  # Σ w · loss, Σ w
        self._by_source = torch.zeros(3, len(self.sources), dtype=torch.float64, device=device)  # and Σ w · bytes

    def add(self, batch: Batch, logps: Tensor, token_bytes: Tensor | None) -> None:
        """Add the targets of a batch: `logps` [n] are their log-probabilities, in the order of `batch.target_index`."""
        index = batch.target_index
        losses, weights = -logps.double(), batch.loss_weights.flatten()[index].double()
        binned = losses.nan_to_num(nan=LARGEST, posinf=LARGEST).clamp(0, LARGEST)  # no number is the worst loss, not the best
        bins = (torch.log1p(SCALE * binned) * (BINS / math.log1p(SCALE * LARGEST))).long()
        self._bins += torch.bincount(bins.clamp(0, BINS - 1), minlength=BINS)
        sums = torch.stack((losses * weights, weights))
        groups = torch.bucketize(batch.position_ids.flatten()[index], self._edges, right=True)
        self._positions.index_add_(1, groups, sums)
        if self.sources:
            sizes = torch.zeros_like(weights) if token_bytes is None else token_bytes[batch.targets.flatten()[index]] * weights
            self._by_source.index_add_(
                1, self._sources_of(batch)[batch.sequence_ids.flatten()[index]], torch.cat((sums, sizes[None]))
            )

    def _sources_of(self, batch: Batch) -> Tensor:
        """The source of each sequence of a batch [num_sequences]."""
        assert self._source_of is not None
        of_examples = np.repeat(np.asarray(self._source_of)[list(batch.examples)], batch.sequences_per_example)
        return torch.from_numpy(of_examples.astype(np.int64)).to(self._bins.device)

    def numbers(self) -> list[float]:
        """All sums, to be added up over the ranks."""
        parts = (self._bins.double(), self._positions.flatten(), self._by_source.flatten())
        return torch.cat(parts).tolist()

    def summary(self, numbers: Sequence[float]) -> dict[str, Any]:
        """From the sums of all ranks: `loss_percentiles` (25, 50, 75 and 95 % of the target tokens have a loss at or below it),
        `loss_histogram` (tokens by loss), `loss_by_position` (position in its document of the token before the target), and,
        with several sources, `loss_by_source`. Losses in nats a token."""
        counts, rest = np.asarray(numbers[:BINS]), np.asarray(numbers[BINS:])
        positions = rest[: 2 * len(self._starts)].reshape(2, -1)
        by_source = rest[2 * len(self._starts) :].reshape(3, -1)
        if not counts.sum():
            return {}
        last = [start - 1 for start in self._starts[1:]] + [None]
        found: dict[str, Any] = {
            "loss_percentiles": [
                {"percent": percent, "loss": value}
                for percent, value in zip(PERCENTILES, percentiles(counts, PERCENTILES), strict=True)
            ],
            "loss_histogram": {"width": HISTOGRAM_WIDTH, "tokens": histogram(counts)},
            "loss_by_position": [
                {"from": start, "to": end, "loss": total / weight, "tokens": weight}
                for start, end, total, weight in zip(self._starts, last, *positions, strict=True)
                if weight
            ],
        }
        if len(self.sources) > 1:
            found["loss_by_source"] = [
                {"source": name, "loss": total / weight, "tokens": weight}
                | ({"bits_per_byte": bits_per_unit(total, size)} if size else {})
                for name, total, weight, size in zip(self.sources, *by_source, strict=True)
                if weight
            ]
        return found


def position_starts(length: int) -> list[int]:
    """The first positions of the groups of positions of sequences of at most `length` tokens: 0, 16, 32, 64, …"""
    starts = [0]
    while (start := max(FIRST_POSITIONS, 2 * starts[-1])) < length:
        starts.append(start)
    return starts


def _losses(bins: np.ndarray) -> np.ndarray:
    """The losses at these places on the scale of the bins."""
    return np.expm1(bins * (math.log1p(SCALE * LARGEST) / BINS)) / SCALE


def percentiles(counts: np.ndarray, shares: Sequence[float]) -> list[float]:
    """The losses that these percentages of the tokens are at or below, for tokens counted in bins [BINS]; inside a bin, tokens
    are taken as spread evenly."""
    upto = np.concatenate(([0], np.cumsum(counts)))
    wanted = np.asarray(shares) / 100 * upto[-1]
    number = np.clip(np.searchsorted(upto, wanted, side="left") - 1, 0, BINS - 1)
    inside = (wanted - upto[number]) / np.maximum(counts[number], 1)
    return [float(value) for value in _losses(number + inside)]


def histogram(counts: np.ndarray) -> list[int]:
    """The tokens by loss in bins of equal width, from those counted in bins [BINS]."""
    centres = _losses(np.arange(BINS) + 0.5)
    places = np.minimum((centres / HISTOGRAM_WIDTH).astype(int), HISTOGRAM_BINS - 1)
    return [int(count) for count in np.bincount(places, weights=counts, minlength=HISTOGRAM_BINS)]
