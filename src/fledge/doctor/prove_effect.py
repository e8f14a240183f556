"""The verdict of paired runs: by how much a patch betters a figure of held-out documents, with an interval, and what that says.

The same documents are read under both runs of a pair, and pairs differ in their seed. So a mean difference varies with the
seeds and with the documents (crossed random effects), and the interval joins both: the half width of the means of the seeds,
and 1.96 d/√m of the means of m documents over all seeds, as the root of the sum of their squares. Documents that belong to one
seed alone vary with it.

Of fewer than six seeds the half width is Student's t at 98 %. Of six or more the interval is that of signed ranks (Wilcoxon
1945; Hodges and Lehmann 1963), exact whatever the distribution: for six it reaches from the least to the largest gain, at
96.9 %. So a proof may look at three pairs and, where they cannot tell, at six: both looks together are wrong in at most 5.1 of
100 cases.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from fledge.evaluate.intervals import Z95

Outcome = Literal["helps", "does not help", "makes it worse", "cannot tell"]
Values = Mapping[str, float]
"""One figure of each document, by its name."""

T98 = (31.821, 6.965, 4.541, 3.747)
"""The 99 % quantiles of Student's t with 1 … 4 degrees of freedom."""
RANKED = 6  # seeds from which on the interval is that of signed ranks


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How a figure is read. `useful`: the smallest effect that matters, a share of the figure of the unchanged runs if
    `relative`. `is_rate`: whether a document's figure is 0 or 1. `of_model`: whether equal weights have equal figures."""

    name: str
    label: str
    unit: str
    higher_is_better: bool
    useful: float
    relative: bool = True
    is_rate: bool = False
    of_model: bool = True


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What paired runs say about one figure.

    `given`, `patched`: its means under the unchanged and the patched runs. `gain`: by how much the patch betters it, positive
    is better, with its `interval`; `useful`: the smallest gain that matters. `of_seeds`: the gain of each pair.
    `documents`: common to both runs of a pair, on average. `identical`: both runs of every pair ended with the same weights.
    """

    name: str
    label: str
    unit: str
    given: float
    patched: float
    gain: float
    interval: tuple[float, float]
    useful: float
    of_seeds: tuple[float, ...]
    documents: float
    identical: bool
    outcome: Outcome

    def as_dict(self) -> dict[str, Any]:
        """The effect as JSON values."""
        return asdict(self)

    @property
    def sentence(self) -> str:
        """The effect in a sentence."""
        if self.identical:
            return f"{self.label}: both runs of each pair end with the same weights, the patch changes nothing."
        low, high = self.interval
        unit = f" {self.unit}" if self.unit else ""
        return (
            f"{self.label}: {self.given:.4g} → {self.patched:.4g}{unit}; better by {self.gain:+.3g} [{low:+.3g}, {high:+.3g}] "
            f"over {len(self.of_seeds)} pairs; {self.useful:.2g} would be useful."
        )


def with_worst(scale: Scale, runs: Sequence[Values], stand_ins: Sequence[Collection[str]]) -> list[dict[str, float]]:
    """The figures of runs, where those that stand for none (`stand_ins`: names of their documents in each run) are the worst
    that any run has for the document, if that is worse: no model is never better than one."""
    worse = min if scale.higher_is_better else max
    worst: dict[str, float] = {}
    for values, without in zip(runs, stand_ins, strict=True):
        for name, value in values.items():
            if name not in without:
                worst[name] = worse(worst.get(name, value), value)
    return [
        {name: worse(value, worst.get(name, value)) if name in without else value for name, value in values.items()}
        for values, without in zip(runs, stand_ins, strict=True)
    ]


def compare(scale: Scale, given: Sequence[Values], patched: Sequence[Values], *, identical: bool = False) -> Effect:
    """Compare the figures of the documents of each pair of runs, one entry a seed, at least two. Documents that one run of a
    pair lacks are left out. Raises ValueError for fewer pairs, or a pair without a common document."""
    if len(given) != len(patched) or len(given) < 2:
        raise ValueError(f"two or more pairs are compared, not {len(given)} and {len(patched)} runs")
    sign = 1.0 if scale.higher_is_better else -1.0
    common = [[name for name in first if name in second] for first, second in zip(given, patched, strict=True)]
    if not all(common):
        raise ValueError("a pair of runs has no document in common")
    triples = list(zip(common, given, patched, strict=True))
    gains = [{name: sign * (second[name] - first[name]) for name in names} for names, first, second in triples]
    means = np.array([np.mean(list(one.values())) for one in gains])
    before = float(np.mean([np.mean([first[name] for name in names]) for names, first, _ in triples]))
    after = float(np.mean([np.mean([second[name] for name in names]) for names, _, second in triples]))
    gain = float(means.mean())
    interval = (gain, gain) if identical else _interval(means, _of_documents(gains, scale.is_rate))
    useful = scale.useful * abs(before) if scale.relative else scale.useful
    return Effect(
        name=scale.name,
        label=scale.label,
        unit=scale.unit,
        given=before,
        patched=after,
        gain=gain,
        interval=interval,
        useful=useful,
        of_seeds=tuple(means.tolist()),
        documents=float(np.mean([len(names) for names in common])),
        identical=identical,
        outcome=outcome_of(gain, interval, useful),
    )


def _interval(means: np.ndarray, of_documents: float) -> tuple[float, float]:
    """The interval of the mean of the gains [n] of the pairs, widened by the half width that documents make."""
    gain = float(means.mean())
    if len(means) < RANKED:
        half = T98[len(means) - 2] * float(means.std(ddof=1)) / len(means) ** 0.5
        low, high = gain - half, gain + half
    else:
        low, high = signed_rank_interval(means)
    below, above = max(0.0, gain - low), max(0.0, high - gain)
    return gain - math.hypot(below, of_documents), gain + math.hypot(above, of_documents)


def signed_rank_interval(values: np.ndarray) -> tuple[float, float]:
    """The exact interval of the centre of n ≥ 6 values at 95 % or a little more: between the (c + 1)-th smallest and the
    (c + 1)-th largest mean of two of them (each with itself too), where signed ranks sum up to at most c with a probability of
    2.5 %."""
    count = len(values)
    ways = np.zeros(count * (count + 1) // 2 + 1)
    ways[0] = 1
    for rank in range(1, count + 1):  # sums of the subsets of the ranks 1 … n
        ways[rank:] += ways[:-rank].copy()
    left_out = max(0, int(np.searchsorted(np.cumsum(ways) / 2**count, 0.025, side="right")) - 1)
    first, second = np.triu_indices(count)
    averages = np.sort((values[first] + values[second]) / 2)
    return float(averages[left_out]), float(averages[-1 - left_out])


def _of_documents(gains: Sequence[Mapping[str, float]], is_rate: bool) -> float:
    """The half width that the choice of the documents makes, of those that all pairs have. Of rates it is never less than that
    of one document that is otherwise, as in `intervals.paired_difference`."""
    shared = [name for name in gains[0] if all(name in one for one in gains)]
    count = len(shared)
    if count < 2:
        return 0.0
    values = np.array([[one[name] for name in shared] for one in gains]).mean(axis=0)
    spread = float(values.std(ddof=1))
    return Z95 * (max(spread, count**-0.5) if is_rate else spread) / count**0.5


def outcome_of(gain: float, interval: tuple[float, float], useful: float) -> Outcome:
    """What a gain with its interval says, where gains from `useful` on matter. Helps, or makes it worse: the interval leaves 0
    out and the gain, or the loss, matters. Does not help: the interval leaves every useful gain out. Else it cannot be told."""
    low, high = interval
    if low > 0 and gain >= useful:
        return "helps"
    if high < 0 and gain <= -useful:
        return "makes it worse"
    return "does not help" if high < useful or high == low == 0 else "cannot tell"
