"""The loss of a stage by its length, from a few shorter runs: a power law with a floor, and how far it may be wrong.

L(steps) = E + A · steps^−p (Hestness et al. 2017; Hoffmann et al. 2022 for tokens). Four or five points do not decide the three
numbers, so all laws that fit them about as well as the best one are kept, and what they say differently is the interval.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

POWERS = np.geomspace(0.05, 1.5, 60)  # of the length, that are tried
AS_GOOD = 2.0  # times the error of the best law: a law is kept
NOISE = 0.003  # of a loss, that runs with other seeds differ by: a law that fits this well is kept
MIN_POINTS = 4


@dataclass(frozen=True)
class Law:
    """One power law. `floor`: E, nats; `scale`: A; `power`: p."""

    floor: float
    scale: float
    power: float

    def loss(self, steps: float) -> float:
        """The loss after so many steps."""
        return self.floor + self.scale * steps**-self.power


@dataclass(frozen=True, kw_only=True)
class LossLaw:
    """The laws that fit the points, the best one first."""

    laws: tuple[Law, ...]

    def loss(self, steps: float) -> tuple[float, float, float]:
        """The loss after so many steps: by the best law, the lowest and the highest of all laws that are kept. Both ends are
        moved by the noise of a run."""
        values = [law.loss(steps) for law in self.laws]
        return values[0], min(values) * (1 - NOISE), max(values) * (1 + NOISE)

    def gain(self, steps: float, factor: float) -> tuple[float, float, float]:
        """By which share of the loss a run `factor` times as long ends lower: by the best law, least and most."""
        shares = [1 - law.loss(steps * factor) / law.loss(steps) for law in self.laws]
        return shares[0], min(shares), max(shares)


def fit_law(losses: Mapping[int, float]) -> LossLaw | None:
    """The laws through losses by steps. None with fewer than MIN_POINTS points, if the loss does not fall with the length, or
    if the laws of the shorter runs miss the longest one by more than their interval: the loss follows no such law then."""
    points = sorted((steps, loss) for steps, loss in losses.items() if math.isfinite(loss))
    falls = all(later < earlier for (_, earlier), (_, later) in pairwise(points))
    if len(points) < MIN_POINTS or not falls:
        return None
    steps, longest = points[-1]
    _, low, high = LossLaw(laws=_laws(points[:-1])).loss(steps)
    if not low <= longest <= high:
        return None
    return LossLaw(laws=_laws(points))


def _laws(points: Sequence[tuple[int, float]]) -> tuple[Law, ...]:
    """All laws that fit about as well as the best, by their errors relative to the losses, the best first."""
    steps, losses = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    found = []
    for power in POWERS:
        law = _law(steps, losses, float(power))
        errors = (law.floor + law.scale * steps**-law.power) / losses - 1
        found.append((float(np.sqrt(np.mean(errors**2))), law))
    found.sort(key=lambda one: one[0])
    limit = max(AS_GOOD * found[0][0], NOISE)
    return tuple(law for error, law in found if error <= limit)


def _law(steps: np.ndarray, losses: np.ndarray, power: float) -> Law:
    """The law of a power: E ≥ 0 and A by least squares of relative errors."""
    columns = np.stack([1 / losses, steps**-power / losses], axis=1)
    (floor, scale), *_ = np.linalg.lstsq(columns, np.ones(len(losses)), rcond=None)
    if floor < 0:
        (scale,), *_ = np.linalg.lstsq(columns[:, 1:], np.ones(len(losses)), rcond=None)
        floor = 0.0
    return Law(float(floor), float(scale), power)
