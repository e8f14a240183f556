"""The interface of objectives: a model and a batch give sums, which an update or an evaluation adds up and divides once."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from fledge.data import Batch
from fledge.model.moe import RouterStats
from fledge.model.protocol import LanguageModel

Number = float | Tensor
WindowBatches = Callable[[], Iterable[tuple[Batch, bool]]]
"""Yields this rank's batches of an update or evaluation, each with whether it counts: one that does not keeps ranks in step."""
SumOverRanks = Callable[[Sequence[float]], Sequence[float]]
LENGTH_CORRELATION = "length_correlation"
CORRELATED = "correlate/"  # prefix of the metrics that a correlation is made of
SQUARES = "squares/"  # prefix of the metrics that a standard deviation is made of, with the mean


def as_number(value: Number) -> Number:
    """A scalar as a number. What a GPU may still be computing stays there, in float64: reading it would wait for the GPU."""
    if not isinstance(value, Tensor) or value.device.type == "cpu":
        return float(value)
    return value.detach().double()


def read_numbers(values: Sequence[Number]) -> list[float]:
    """The numbers as floats; the host waits once for all that are on a GPU."""
    on_device = [value for value in values if isinstance(value, Tensor) and value.device.type != "cpu"]
    read = iter(torch.stack([value.double() for value in on_device]).tolist() if on_device else ())
    return [next(read) if isinstance(value, Tensor) and value.device.type != "cpu" else float(value) for value in values]


def mean(total: Any, count: Any) -> Any:
    """total / count."""
    return total / count


def perplexity(nll: float, count: float) -> float:
    """exp(nll / count), for the summed negative log-likelihood (nats) of `count` tokens; at most exp(700)."""
    return math.exp(min(nll / count, 700.0))


def bits_per_unit(nll: float, count: float) -> float:
    """nll / (ln 2 · count), for a negative log-likelihood in nats."""
    return nll / math.log(2) / count


def integer_total(total: float, count: float) -> int:
    """The total as an int; `count` is not used."""
    return int(total)


@dataclass(frozen=True)
class Ratio:
    """A metric as numerator `total` and denominator `count`, so that micro-batches and processes add up exactly.

    Both are floats in an evaluation on a CPU. Otherwise they may be scalar tensors on the device, which are read later.
    `reduction(total, count)` is the value of the metric.
    """

    total: Number
    count: Number
    reduction: Callable[[Any, Any], Any] = mean

    def __add__(self, other: "Ratio") -> "Ratio":
        return replace(self, total=self.total + other.total, count=self.count + other.count)

    @property
    def value(self) -> Any:
        """The value of the metric."""
        return self.reduction(self.total, self.count)

    def zeroed(self) -> "Ratio":
        """The ratio of a batch without weight: it adds nothing to others."""
        total = torch.zeros_like(self.total) if isinstance(self.total, Tensor) else 0.0
        return replace(self, total=total, count=0.0)


def correlation_terms(x: Tensor, y: Tensor, count: float) -> dict[str, Ratio]:
    """The metrics from which `with_derived` makes Pearson's correlation of x [n] and y [n]."""
    terms = {"x": x, "y": y, "xx": x * x, "yy": y * y, "xy": x * y}
    return {f"{CORRELATED}{name}": Ratio(values.sum(), count) for name, values in terms.items()}


def spread_terms(mean: str, deviation: str, values: Tensor, count: float) -> dict[str, Ratio]:
    """The metric `mean` of values [n], and the one from which `with_derived` makes their standard deviation `deviation`."""
    return {mean: Ratio(values.sum(), count), f"{SQUARES}{mean} {deviation}": Ratio((values * values).sum(), count)}


def with_derived(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics with `length_correlation` in place of the terms of `correlation_terms`, and with standard deviations in
    place of the mean squares of `spread_terms`. Values may be scalar tensors."""
    return _with_correlation(_with_spreads(metrics))


def _with_spreads(metrics: Mapping[str, Any]) -> dict[str, Any]:
    derived: dict[str, Any] = {}
    for name, value in metrics.items():
        if not name.startswith(SQUARES):
            derived[name] = value
            continue
        mean, deviation = name.removeprefix(SQUARES).split(" ")
        variance = torch.as_tensor(value, dtype=torch.float64) - torch.as_tensor(metrics[mean], dtype=torch.float64) ** 2
        spread = variance.clamp(min=0).sqrt()
        derived[deviation] = spread if isinstance(value, Tensor) else float(spread)
    return derived


def _with_correlation(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics with `length_correlation`, which is nan where x or y does not vary."""
    terms = {name.removeprefix(CORRELATED): value for name, value in metrics.items() if name.startswith(CORRELATED)}
    others = {name: value for name, value in metrics.items() if not name.startswith(CORRELATED)}
    if not terms:
        return others
    x, y, xx, yy, xy = (torch.as_tensor(terms[name], dtype=torch.float64) for name in ("x", "y", "xx", "yy", "xy"))
    correlation = (xy - x * y) / ((xx - x * x).clamp(min=0) * (yy - y * y).clamp(min=0)).sqrt()
    return {**others, LENGTH_CORRELATION: correlation if isinstance(terms["x"], Tensor) else float(correlation)}


@dataclass(frozen=True)
class LossOutput:
    """The loss of a batch as a sum, and the metrics of the batch.

    The trainer divides `loss` by the sum of `Objective.normalizer` over all micro-batches of an update; each metric has a
    denominator of its own. `aux_loss` is a sum like `loss`: it is trained together with the loss but not reported in it (the
    router losses of a mixture of experts, whose state `routing` describes).
    """

    loss: Tensor
    metrics: dict[str, Ratio] = field(default_factory=dict)
    aux_loss: Tensor | None = None
    routing: RouterStats | None = None

    def metric_numbers(self) -> dict[str, Ratio]:
        """The metrics, each with `as_number` of its total and its count."""
        return {
            name: replace(ratio, total=as_number(ratio.total), count=as_number(ratio.count))
            for name, ratio in self.metrics.items()
        }

    def detached(self) -> "LossOutput":
        """The output without its graph, which is freed once the gradients exist; `aux_loss` is dropped."""
        routing = None if self.routing is None else self.routing.detach()
        return LossOutput(self.loss.detach(), self.metrics, None, routing)

    def zeros_like(self) -> "LossOutput":
        """The output of a batch without weight, with metrics of equal names."""
        metrics = {name: ratio.zeroed() for name, ratio in self.metrics.items()}
        return LossOutput(torch.zeros_like(self.loss), metrics, None, self.routing and self.routing.zeros_like())

    def with_router_loss(self, model: LanguageModel, routing: RouterStats | None, weight: float) -> "LossOutput":
        """The output with the router losses of a batch of this weight; unchanged for a dense model."""
        moe = model.config.moe
        if moe is None or routing is None:
            return self
        return replace(self, aux_loss=weight * routing.penalty(moe), routing=routing)


class Objective(Protocol):
    """The loss that a stage minimizes and its metrics. New kinds of stages are entries of `objective.build.BUILDERS`."""

    def normalizer(self, batch: Batch) -> float:
        """The contribution of the batch to the divisor of an update's loss: the sum of its weights, or its number of pairs."""
        ...

    def __call__(self, model: LanguageModel, batch: Batch) -> LossOutput:
        """The summed loss of the batch and its metrics, with gradients."""
        ...

    def evaluate(self, model: LanguageModel, batch: Batch) -> dict[str, Ratio]:
        """The metrics of the batch, including `loss`, without gradients and without dropout."""
        ...

    def in_window(self, model: LanguageModel, batches: WindowBatches, sum_over_ranks: SumOverRanks) -> Self:
        """The objective for the batches of one update or evaluation: itself, unless its loss of a batch depends on what all
        batches of all ranks have in common. Called with the current weights before the batches are computed."""
        ...
