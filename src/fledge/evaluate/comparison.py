"""The results of two models on one set, compared item by item: what differs, and what the set is too small to show."""

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from fledge.evaluate.power import detectable_mean_difference, detectable_rate_difference, items_for_means, items_for_rates
from fledge.evaluate.records import SetResult
from fledge.evaluate.statistics import PairedTest, paired_test

Found = Literal["higher", "lower", "no difference", "too few to decide"]
RELEVANT_RATE = 0.05  # a difference of rates that matters
RELEVANT_SHARE = 0.02  # of any other metric: this share of its mean


@dataclass(frozen=True, kw_only=True)
class MetricComparison:
    """A metric of two models on the same items: `first` and `second` are its means over these items, `difference` is second
    less first, with its 95 % interval.

    `found`: "higher" or "lower" where the interval leaves 0 out; "too few to decide" where it holds 0 and even a difference
    that matters, `relevant`, would be missed by more than one in five such sets; else "no difference". `better`: whether the
    second one is better, None without a difference or a better direction. `detectable`: the smallest difference that these
    items show with a probability of 80 %, None if they can show none. `items_needed`: to show `relevant`, None if too many.
    """

    metric: str
    first: float
    second: float
    difference: float
    interval: tuple[float, float]
    p_value: float
    test: Literal["mcnemar", "sign_flip"]
    count: int
    found: Found
    better: bool | None
    relevant: float
    detectable: float | None
    items_needed: int | None

    @property
    def decides(self) -> bool:
        """Whether the items show a difference, or are enough to say that there is none that matters."""
        return self.found != "too few to decide"


@dataclass(frozen=True, kw_only=True)
class SetComparison:
    """Two results of one set. `same_set`: whether their fingerprints are equal, so that both were asked the same in the same
    way. `common`: items of both; `only_first`, `only_second`: items that the other result lacks, which are left out.
    `unusable`: by metric, common items without a number in one of them."""

    name: str
    kind: str
    same_set: bool
    common: int
    only_first: int
    only_second: int
    metrics: dict[str, MetricComparison]
    unusable: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        return asdict(self)


def compare_sets(first: SetResult, second: SetResult, metrics: Collection[str] | None = None) -> SetComparison:
    """Compare two results item by item, joined by the ids of their items, in these metrics (None: all that both have). Values
    of items that are no metric of a result, such as their tokens, are not compared. Items of one result alone are counted and
    left out.

    The mean over items may differ from the metric of the set, which some metrics compute from all items together (BLEU,
    perplexity); a test of pairs needs a value of each item.
    """
    before, after = ({item.id: item.values for item in result.items} for result in (first, second))
    common = [one for one in before if one in after]
    known = {*first.metrics, *second.metrics}  # an item has sizes too, such as tokens and bytes
    names = dict.fromkeys(name for one in common for name in before[one] if name in after[one] and name in known)
    compared: dict[str, MetricComparison] = {}
    unusable: dict[str, int] = {}
    for name in (name for name in names if metrics is None or name in metrics):
        pairs = [(before[one].get(name, math.nan), after[one].get(name, math.nan)) for one in common]
        usable = np.array([pair for pair in pairs if all(map(math.isfinite, pair))], dtype=float).reshape(-1, 2)
        if len(usable) < len(common):
            unusable[name] = len(common) - len(usable)
        if len(usable):
            compared[name] = compare_metric(name, usable[:, 0], usable[:, 1], higher_is_better(name, first, second))
    return SetComparison(
        name=second.name,
        kind=second.kind,
        same_set=first.fingerprint == second.fingerprint,
        common=len(common),
        only_first=len(before) - len(common),
        only_second=len(after) - len(common),
        metrics=compared,
        unusable=unusable,
    )


def higher_is_better(name: str, *results: SetResult) -> bool | None:
    """The better direction of a metric, as its results say; None where they do not say."""
    return next((result.metrics[name].higher_is_better for result in results if name in result.metrics), None)


def compare_metric(name: str, first: np.ndarray, second: np.ndarray, higher_is_better: bool | None) -> MetricComparison:
    """Compare the values [n] of a metric on the same items, at least one."""
    test = paired_test(first, second)
    is_rate = test.test == "mcnemar" or (min(first.min(), second.min()) >= 0 and max(first.max(), second.max()) <= 1)
    relevant = RELEVANT_RATE if is_rate else RELEVANT_SHARE * abs(float(first.mean()))
    detectable, needed = _reach(test, relevant)
    found: Found = "higher" if test.difference > 0 else "lower"
    if not test.is_different:
        found = "no difference" if detectable is not None and detectable <= relevant else "too few to decide"
    is_better = None if not test.is_different or higher_is_better is None else (test.difference > 0) == higher_is_better
    return MetricComparison(
        metric=name,
        first=float(first.mean()),
        second=float(second.mean()),
        difference=test.difference,
        interval=test.interval,
        p_value=test.p_value,
        test=test.test,
        count=test.count,
        found=found,
        better=is_better,
        relevant=relevant,
        detectable=detectable,
        items_needed=needed,
    )


def _reach(test: PairedTest, relevant: float) -> tuple[float | None, int | None]:
    """The smallest difference that the items of a test show, and the number of items that show the relevant one."""
    if test.discordant is not None:
        share = max(test.discordant, 1) / test.count  # one more unequal item may always come
        return detectable_rate_difference(test.count, share), items_for_rates(relevant, share)
    if relevant == 0:
        return detectable_mean_difference(test.count, test.spread), None
    return detectable_mean_difference(test.count, test.spread), items_for_means(relevant, test.spread)


def describe(comparison: MetricComparison) -> str:
    """A sentence about the difference of one metric."""
    low, high = comparison.interval
    means = f"{comparison.metric} {comparison.first:.4g} → {comparison.second:.4g}"
    change = f"{means}, {comparison.difference:+.4g} [{low:+.4g}, {high:+.4g}]"
    if comparison.found in ("higher", "lower"):
        return f"{change}: {comparison.found} (p = {comparison.p_value:.2g}, {comparison.count:,} items)"
    if comparison.found == "no difference":
        return f"{change}: no difference ({comparison.count:,} items)"
    shown = "no difference at all" if comparison.detectable is None else f"differences from {comparison.detectable:.2g} on"
    needed = "" if comparison.items_needed is None else f"; {comparison.relevant:.2g} needs {comparison.items_needed:,}"
    return f"{change}: no difference seen, too few to decide: {comparison.count:,} items show {shown}{needed}"
