"""The loss of a stage by its length, from a few shorter runs: a power law with a floor, and how far it may be wrong.

L(steps) = E + A · steps^−p (Hestness et al. 2017; Hoffmann et al. 2022 for tokens). Four or five points do not decide the three
numbers, so all laws that fit them about as well as the best one are kept, and what they say differently is the interval.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

POWERS = np.geomspace(0.05, 1.5, 240)  # of the length, that are tried
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
    """The law that fits best by its errors relative to the losses, and behind it, of each power, those with the lowest and the
    highest floor that fit about as well."""
    steps, losses = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    of_powers = [_of_power(steps, losses, float(power)) for power in POWERS]
    best = min(of_powers, key=lambda one: one.error(one.floor))
    limit = max(AS_GOOD * best.error(best.floor), NOISE)
    return best.law(best.floor), *(one.law(floor) for one in of_powers for floor in one.floors(limit))


@dataclass(frozen=True, kw_only=True)
class _OfPower:
    """The laws of one power. `scales`: A = scales[0] − scales[1] · E is the best one for a floor E; `middle`: the floor that
    fits best, also below 0; `least`: root mean square of its relative errors; `growth`: by which the square of the error grows
    with the square of the distance from it."""

    power: float
    scales: tuple[float, float]
    middle: float
    least: float
    growth: float

    @property
    def floor(self) -> float:
        """The best floor that a loss can have."""
        return max(self.middle, 0.0)

    def error(self, floor: float) -> float:
        return math.sqrt(self.least**2 + self.growth * (floor - self.middle) ** 2)

    def law(self, floor: float) -> Law:
        return Law(floor, self.scales[0] - self.scales[1] * floor, self.power)

    def floors(self, limit: float) -> tuple[float, ...]:
        """The lowest and the highest floor whose error stays within a limit, or none."""
        if self.error(self.floor) > limit:
            return ()
        width = math.sqrt((limit**2 - self.least**2) / self.growth)
        return max(self.middle - width, 0.0), self.middle + width


def _of_power(steps: np.ndarray, losses: np.ndarray, power: float) -> _OfPower:
    """The laws of a power, with E ≥ 0, by least squares of relative errors: E/L + A·steps^−p/L = 1."""
    of_floor, of_scale = 1 / losses, steps**-power / losses
    square = float(of_scale @ of_scale)
    scales = float(of_scale.sum()) / square, float(of_scale @ of_floor) / square
    beside = of_floor - scales[1] * of_scale  # what a floor changes once the scale has followed
    wanted = 1 - scales[0] * of_scale
    growth = float(beside @ beside)
    middle = float(beside @ wanted) / growth
    least = float(np.sqrt(np.mean((wanted - middle * beside) ** 2)))
    return _OfPower(power=power, scales=scales, middle=middle, least=least, growth=growth / len(losses))
