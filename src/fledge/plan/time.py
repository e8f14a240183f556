"""The time of a stage, as a range: its work divided by what training reaches of a device's speed.

No single number is honest before anything was measured: the share of its peak that a device reaches depends on sizes, kernels
and libraries. A probe or earlier runs of the same machine narrow the range (`fledge.forecast`).
"""

from dataclasses import asdict, dataclass
from typing import Any

from fledge.plan.work import Work


@dataclass(frozen=True)
class Range:
    """The lowest and the highest value that is expected."""

    low: float
    high: float

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.high + other.high)

    def scaled(self, factor: float) -> "Range":
        """Both ends times a factor of at least 0."""
        return Range(self.low * factor, self.high * factor)

    @property
    def middle(self) -> float:
        """The geometric mean of the ends."""
        return (self.low * self.high) ** 0.5


TIME_UNITS = (("days", 86400.0, 3 * 86400.0), ("h", 3600.0, 2 * 3600.0), ("min", 60.0, 120.0), ("s", 1.0, 0.0))
"""Name, seconds, and the seconds from which the unit is used."""


def two_digits(value: float) -> str:
    """An estimate with two digits: `0.42`, `5.1`, `1,200`."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def time_text(seconds: Range) -> str:
    """`4.2 to 5.1 min`, `118 h`: in the unit that suits the longer end."""
    unit, size, _ = next(entry for entry in TIME_UNITS if seconds.high >= entry[2])
    low, high = (two_digits(end / size) for end in (seconds.low, seconds.high))
    return f"{high} {unit}" if low == high else f"{low} to {high} {unit}"


SHARE_OF_PRODUCTS = Range(0.28, 0.90)  # of a GPU's peak, that matrix products in training reach: benchmarks/plan_published.py
SHARE_OF_BANDWIDTH = Range(0.35, 0.95)  # of a GPU's memory bandwidth, that all other operations reach: as above
SECONDS_OF_LAYER = Range(0.1e-3, 1.0e-3)  # of launching the kernels of a layer, forward and backward: compiled, and one by one
SHARE_ON_CPU = Range(0.3, 0.55)  # of the fastest matrix product of a processor, everything included: 2M to 100M parameters
SHARE_OF_EXCHANGE = Range(0.0, 1.0)  # of the exchange of gradients, that computing does not hide


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What the time of a stage depends on.

    `flops`: peak of matrix products in the precision of training, FLOP/s. `bandwidth` of memory and `link` between two devices
    in bytes/s, None on a CPU. `count` devices share each update; `is_sharded`: by FSDP.
    """

    flops: float
    bandwidth: float | None = None
    link: float | None = None
    count: int = 1
    is_sharded: bool = False


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """The time of a stage, in seconds. `exchange`: the part of `training` in which devices wait for each other. `basis`: what
    the figures rest on, a sentence. `is_measured`: by stages that were trained, which counts answers that they drew."""

    training: Range
    evaluation: Range
    exchange: Range
    basis: str
    is_measured: bool = False

    @property
    def total(self) -> Range:
        """Seconds of the stage, without its start."""
        return self.training + self.evaluation

    def as_dict(self) -> dict[str, Any]:
        """The values as JSON."""
        return {**asdict(self), "total": asdict(self.total)}


def seconds_of_work(work: Work, hardware: Hardware, *, launches: float = 0.0) -> Range:
    """Seconds of work on one device: on a GPU, products at a share of the peak and all other bytes at a share of the bandwidth,
    but at least the launches of so many layers; on a CPU, a share of the fastest product."""
    if hardware.bandwidth is None:
        return Range(*(work.flops / (hardware.flops * share) for share in (SHARE_ON_CPU.high, SHARE_ON_CPU.low)))
    ends = []
    for products, bytes_, launch in (
        (SHARE_OF_PRODUCTS.high, SHARE_OF_BANDWIDTH.high, SECONDS_OF_LAYER.low),
        (SHARE_OF_PRODUCTS.low, SHARE_OF_BANDWIDTH.low, SECONDS_OF_LAYER.high),
    ):
        computing = work.flops / (hardware.flops * products) + work.traffic / (hardware.bandwidth * bytes_)
        ends.append(max(computing, launches * launch))
    return Range(*ends)


def seconds_of_exchange(hardware: Hardware, trained_bytes: float, updates: int, micro_batches: int) -> Range:
    """Seconds in which devices exchange gradients, and under FSDP weights too.

    A ring moves 2·(n − 1)/n of the gradients over each link (Patarasu & Yuan 2009). FSDP gathers the weights twice and scatters
    the gradients once, for each micro-batch (Zhao et al. 2023): 3·(n − 1)/n. `trained_bytes`: of the gradients of all trained
    weights. Computing hides all or none of it.
    """
    count = hardware.count
    if count == 1 or hardware.link is None:
        return Range(0.0, 0.0)
    rounds, passes = (3, updates * micro_batches) if hardware.is_sharded else (2, updates)
    return SHARE_OF_EXCHANGE.scaled(rounds * (count - 1) / count * trained_bytes * passes / hardware.link)
