"""The learning rate with the lowest loss, from losses at a few rates: a parabola over log rate near the best of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RATIO = 2.0  # between neighbouring rates
NEAR = 2.01  # rates up to this factor from the best one are fitted
FLAT = 0.01  # a loss within 1 % of the lowest is as good


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The best rate and its loss. `flat`: the rates between which the fitted loss is within 1 % of the lowest, as far as rates
    were tried. `is_bracketed`: whether larger and smaller rates were both worse."""

    rate: float
    loss: float
    flat: tuple[float, float]
    is_bracketed: bool


def optimum(losses: Mapping[float, float]) -> Optimum:
    """The optimum of losses by rate, at least one of them finite: the lowest point of the parabola through the best rate and
    its neighbours, kept between these; the best rate itself where it lies at the end of what was tried."""
    finite = {rate: loss for rate, loss in sorted(losses.items()) if math.isfinite(loss)}
    best = min(finite, key=lambda rate: (finite[rate], rate))
    is_bracketed = min(losses) < best < max(losses)
    near = [rate for rate in finite if best / NEAR <= rate <= best * NEAR]
    if len(near) < 3 or not is_bracketed:
        within = [rate for rate, loss in finite.items() if loss <= (1 + FLAT) * finite[best]]
        return Optimum(rate=best, loss=finite[best], flat=(min(within), max(within)), is_bracketed=is_bracketed)
    x = np.log(np.array(near) / best)
    curvature, slope, level = np.polyfit(x, [finite[rate] for rate in near], 2)
    at = float(np.clip(-slope / (2 * curvature), x[0], x[-1])) if curvature > 0 else 0.0
    lowest = float(np.polyval((curvature, slope, level), at)) if curvature > 0 else finite[best]
    width = math.sqrt(FLAT * abs(lowest) / curvature) if curvature > 0 else math.inf
    low, high = max(min(finite), best * math.exp(at - width)), min(max(finite), best * math.exp(at + width))
    return Optimum(rate=best * math.exp(at), loss=lowest, flat=(low, high), is_bracketed=is_bracketed)


def next_rate(losses: Mapping[float, float]) -> float | None:
    """The rate to try next so that the best one has a worse one on either side; None if it has. A loss that is not finite is
    worse than any other."""
    best = min(losses, key=lambda rate: (losses[rate], rate))
    if not math.isfinite(losses[best]):
        return min(losses) / RATIO
    if best == min(losses):
        return best / RATIO
    return best * RATIO if best == max(losses) else None


def descend(centre: float, most: int, measure: Callable[[Sequence[float]], Mapping[float, float]]) -> None:
    """Measure a rate and half of it, and on to the side where the loss falls, until it rises again or `most` are measured.
    Three are enough where the best rate is near either of the first two. `measure` takes the next rates, and returns the
    losses of all rates so far."""
    waiting, measured = [centre / RATIO, centre], 0
    while waiting and measured + len(waiting) <= most:
        measured += len(waiting)
        further = next_rate(measure([float(f"{rate:.4g}") for rate in waiting]))
        waiting = [] if further is None else [further]
