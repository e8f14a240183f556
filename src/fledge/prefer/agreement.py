"""`fledge prefer agreement`: how far raters agree with one another, beyond chance, and with themselves."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from fledge.errors import FledgeError
from fledge.escaping import escaped_json
from fledge.evaluate.intervals import Interval, percentiles, resampled_sums, wilson_interval
from fledge.prefer.ratings import Rating, RatingsFile, read_ratings
from fledge.run.terminal import output_terminal

FEW_PAIRS, FEW_PROMPTS = 20, 10  # below, no interval says anything
SAME, PAIRS, TIES_ONE, TIES_OTHER = range(4)
"""Columns of the counts that κ is a function of: pairs with equal verdicts, all pairs, ties of either rater."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The agreement of two raters on `pairs` pairs of answers to `prompts` prompts.

    `raw`: share of equal verdicts. `kappa`: Cohen's κ, None where chance alone would give complete agreement. Intervals are of
    95 %, None where there are too few pairs."""

    one: str
    other: str
    pairs: int
    prompts: int
    raw: float
    kappa: float | None
    raw_interval: Interval | None
    kappa_interval: Interval | None

    @property
    def too_few(self) -> str:
        """What there is too little of for an interval, in words; "" if there is enough."""
        if self.pairs < FEW_PAIRS:
            return f"{FEW_PAIRS} pairs are needed"
        return f"pairs of {FEW_PROMPTS} prompts are needed" if self.prompts < FEW_PROMPTS else ""

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def kappa(sums: np.ndarray) -> np.ndarray:
    """Cohen's κ [...] (Cohen 1960) of sums [..., 4] over pairs of answers, in the columns above; NaN where it is not defined.

    The categories are: this answer is better, the other one is, a tie. Which answer is "this one" means nothing, so each pair
    counts in both orders: then both answers are as often better, and with shares of ties t and u chance gives
    p = t·u + (1 − t)(1 − u)/2, and κ = (equal verdicts − p) / (1 − p)."""
    total = sums[..., PAIRS]
    with np.errstate(divide="ignore", invalid="ignore"):
        observed = sums[..., SAME] / total
        expected = chance(sums)
        return np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)


def chance(sums: np.ndarray) -> np.ndarray:
    """The share of equal verdicts [...] that two raters with these ties would have by chance."""
    one, other = sums[..., TIES_ONE] / sums[..., PAIRS], sums[..., TIES_OTHER] / sums[..., PAIRS]
    return one * other + (1 - one) * (1 - other) / 2


def agree(one: RatingsFile, other: RatingsFile) -> Agreement:
    """The agreement of two raters on the pairs that both have compared. Intervals are percentiles of 1,000 resamplings of the
    prompts, since answers to one prompt are rated alike; equal ratings give equal intervals."""
    theirs = other.first_ratings()
    common = [
        (mine, theirs[pair])
        for pair, mine in one.first_ratings().items()
        if pair in theirs and mine.is_verdict and theirs[pair].is_verdict
    ]
    by_prompt: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(4))
    for mine, their in common:
        by_prompt[mine.pair[0]] += _counts(mine, their)
    counts = np.array([by_prompt[prompt] for prompt in sorted(by_prompt)]).reshape(-1, 4)
    sums = counts.sum(axis=0)
    n = len(common)
    value = float(kappa(sums)) if n else float("nan")
    raw_interval, kappa_interval = _intervals(counts) if n >= FEW_PAIRS and len(counts) >= FEW_PROMPTS else (None, None)
    return Agreement(
        one=one.rater,
        other=other.rater,
        pairs=n,
        prompts=len(by_prompt),
        raw=float(sums[SAME] / n) if n else float("nan"),
        kappa=None if np.isnan(value) else value,
        raw_interval=raw_interval,
        kappa_interval=None if np.isnan(value) else kappa_interval,
    )


def _counts(mine: Rating, their: Rating) -> np.ndarray:
    return np.array([mine.label == their.label, 1, not mine.label, not their.label], float)


def _intervals(counts: np.ndarray) -> tuple[Interval, Interval | None]:
    """The intervals of the raw agreement and of κ. Where all resamplings agree alike, as with complete agreement, they tell
    nothing: then both follow from Wilson's interval of the raw agreement, with the prompts as trials."""
    draws = resampled_sums(counts)
    raw = draws[:, SAME] / draws[:, PAIRS]
    if np.ptp(raw) == 0:
        sums = counts.sum(axis=0)
        low, high = wilson_interval(float(sums[SAME] / sums[PAIRS]) * len(counts), len(counts))
        expected = float(chance(sums))
        return (low, high), ((low - expected) / (1 - expected), (high - expected) / (1 - expected)) if expected < 1 else None
    values = kappa(draws)
    values = values[~np.isnan(values)]
    return percentiles(raw), percentiles(values) if len(values) else None


@dataclass(frozen=True, kw_only=True)
class SelfAgreement:
    """How often a rater agrees with itself: a person on comparisons that came twice, a judge on both orders of one."""

    rater: str
    what: str
    same: int
    total: int

    def text(self) -> str:
        """The figures as words."""
        low, high = wilson_interval(self.same, self.total)
        return f"{self.same:,} of {self.total:,} {self.what} [{low:.0%}, {high:.0%}]"

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {"what": self.what, "same": self.same, "of": self.total, "interval": wilson_interval(self.same, self.total)}


def self_agreement(file: RatingsFile) -> SelfAgreement | None:
    """The self-agreement of a rater; None if it was never asked twice."""
    first = file.first_ratings()
    again = [
        (first[rating.pair], rating)
        for rating in file.ratings
        if rating.is_repeat and rating.is_verdict and rating.pair in first and first[rating.pair].is_verdict
    ]
    if again:
        same = sum(before.label == now.label and before.is_tie == now.is_tie for before, now in again)
        return SelfAgreement(rater=file.rater, what="comparisons that came twice", same=same, total=len(again))
    judged = [rating for rating in file.ratings if rating.in_both_orders]
    if judged:
        same = sum(rating.verdict != "inconsistent" for rating in judged)
        return SelfAgreement(rater=file.rater, what="comparisons in both orders", same=same, total=len(judged))
    return None


def agreement(paths: Sequence[str], as_json: bool = False) -> None:
    """Print what each rater says, how far each two of them agree, and each with itself. Raises FledgeError for files that are
    no ratings, and for two files of one rater."""
    files = [read_ratings(path) for path in paths]
    check_raters(files)
    if as_json:
        print(escaped_json(json.dumps(_as_json_value(files), ensure_ascii=False, indent=1, allow_nan=False)))
        return
    terminal = output_terminal()
    terminal.print(_raters_table(files))
    if len(files) > 1:
        terminal.print()
        terminal.print(_agreement_table([agree(one, other) for one, other in combinations(files, 2)]))
        terminal.print(Text("κ: 0 is chance, 1 complete agreement. 95 % intervals by resampling of prompts.", style="dim"))


def check_raters(files: Sequence[RatingsFile]) -> None:
    """FledgeError for two files of one rater."""
    seen: dict[str, RatingsFile] = {}
    for file in files:
        first = seen.setdefault(file.rater, file)
        if first is not file:
            raise FledgeError(
                f"{first.path} has the same rater, '{file.rater}'", where=str(file.path),
                hint="give raters different names when they rank: --rater NAME",
            )  # fmt: skip


def _as_json_value(files: Sequence[RatingsFile]) -> dict[str, Any]:
    raters = {}
    for file in files:
        own = self_agreement(file)
        raters[file.rater] = {
            "kind": file.kind,
            "pairs": len(file.first_ratings()),
            "rated": file.done,
            "planned": file.planned,
            "verdicts": dict(sorted(file.counts().items())),
            "self_agreement": None if own is None else own.as_dict(),
        }
    pairs = [agree(one, other) for one, other in combinations(files, 2)]
    return {"raters": raters, "agreement": [{**_without_nan(one.as_dict()), "too_few": bool(one.too_few)} for one in pairs]}


def _without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in values.items()}


WORDS = {
    "better": "one is better", "tie": "tie", "both_bad": "both bad", "skip": "skipped", "inconsistent": "inconsistent",
    "too_long": "too long", "no_reference": "no reference",
}  # fmt: skip


def _raters_table(files: Sequence[RatingsFile]) -> Table:
    table = plain_table("rater", "kind", "pairs", "verdicts", "agrees with itself")
    for file in files:
        counts, own = file.counts(), self_agreement(file)
        verdicts = ", ".join(f"{counts[name]:,} {word}" for name, word in WORDS.items() if counts[name])
        itself = Text("" if own is None else own.text())
        pairs = f"{len(file.first_ratings()):,}" + (f" ({file.unfinished})" if file.unfinished else "")
        table.add_row(Text(file.rater), Text(file.kind), pairs, Text(verdicts), itself)
    return table


def _agreement_table(found: Sequence[Agreement]) -> Table:
    table = plain_table("raters", "pairs of both", "prompts", "equal verdicts", "Cohen's κ")
    for one in found:
        table.add_row(Text(f"{one.one} – {one.other}"), f"{one.pairs:,}", f"{one.prompts:,}", _raw_cell(one), _kappa_cell(one))
    return table


def _raw_cell(one: Agreement) -> Text:
    if not one.pairs:
        return Text("no pair in common")
    return Text(f"{one.raw:.1%}" + ("" if one.raw_interval is None else " [{:.1%}, {:.1%}]".format(*one.raw_interval)))


def _kappa_cell(one: Agreement) -> Text:
    if one.too_few:
        return Text(f"too few: {one.too_few}")
    if one.kappa is None:
        return Text("not defined: both give only ties")
    return Text(f"{one.kappa:.2f}" + ("" if one.kappa_interval is None else " [{:.2f}, {:.2f}]".format(*one.kappa_interval)))


def plain_table(*titles: str) -> Table:
    """An empty table with these columns."""
    table = Table(header_style="bold", box=None, pad_edge=False)
    for title in titles:
        table.add_column(Text(title), overflow="fold")
    return table
