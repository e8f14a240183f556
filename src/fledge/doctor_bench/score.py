"""How often the doctor was right: the figures of the bench, each with its interval."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fledge.doctor_bench.effects import Effect, Place, place_of
from fledge.doctor_bench.faults import FAULTS
from fledge.doctor_bench.judging import Judgement, Verdict
from fledge.doctor_bench.right_causes import is_right
from fledge.evaluate.intervals import wilson_interval

ABSTAINED, NOTHING = "(abstains)", "(nothing wrong)"
EARLY = ("before", "within 20 steps")


@dataclass(frozen=True)
class Rate:
    """`hits` of `count`, with Wilson's 95 % interval."""

    hits: int
    count: int

    @property
    def value(self) -> float | None:
        """The rate; None of nothing."""
        return self.hits / self.count if self.count else None

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval."""
        return wilson_interval(self.hits, self.count)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        low, high = self.interval
        value = None if self.value is None else round(self.value, 4)
        return {"value": value, "low": round(low, 4), "high": round(high, 4), "hits": self.hits, "count": self.count}

    def text(self) -> str:
        """Such as "93.5 % (87.2 to 96.8, 115/123)"."""
        if self.value is None:
            return "–"
        low, high = self.interval
        return f"{100 * self.value:.1f} % ({100 * low:.1f} to {100 * high:.1f}, {self.hits}/{self.count})"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A judged case with what is known of it. `verdict`: at the moment that is scored. `is_material`: whether its fault did
    anything; True where that was not measured."""

    judgement: Judgement
    verdict: Verdict
    is_material: bool

    @property
    def name(self) -> str:
        """The fault, or the control."""
        return self.judgement.case.condition

    @property
    def named(self) -> str | None:
        """The cause that the doctor names."""
        return None if self.verdict.first is None else str(self.verdict.first["cause"])

    @property
    def is_right(self) -> bool:
        """Whether the cause that is named is the right one."""
        return self.named is not None and is_right(self.name, self.named)

    @property
    def is_among_three(self) -> bool:
        """Whether a right cause is among the first three."""
        return any(is_right(self.name, str(cause["cause"])) for cause in self.verdict.causes[:3])


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The figures of some cases at one moment. `top1`, `top3`: of all faults; `precision`: of those that the doctor names a
    cause for; `abstention`: alarms and silence without a cause, of all faults. `category_f1`: macro average."""

    recall: Rate
    false_alarms: Rate
    top1: Rate
    precision: Rate
    top3: Rate
    abstention: Rate
    alarms_without_effect: Rate
    category_f1: float | None
    failures: int
    steps: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        rates = {name: value.as_dict() for name, value in vars(self).items() if isinstance(value, Rate)}
        f1 = None if self.category_f1 is None else round(self.category_f1, 4)
        return {**rates, "category_f1": f1, "failures": self.failures, "steps": dict(self.steps)}


def scored(judgements: Sequence[Judgement], effects: Mapping[Place, Effect], moment: str) -> list[Scored]:
    """The cases that were judged at a moment."""
    found = []
    for one in judgements:
        if one.failure is None and moment in one.verdicts:
            effect = effects.get(place_of(one.case))
            found.append(Scored(judgement=one, verdict=one.verdicts[moment], is_material=effect is None or effect.is_material))
    return found


def scores(judgements: Sequence[Judgement], effects: Mapping[Place, Effect], moment: str = "full") -> Scores:
    """The figures of the cases at a moment."""
    cases = scored(judgements, effects, moment)
    healthy = [one for one in cases if not one.judgement.case.is_fault]
    faulty = [one for one in cases if one.judgement.case.is_fault and one.is_material]
    harmless = [one for one in cases if one.judgement.case.is_fault and not one.is_material]
    named = [one for one in faulty if one.named is not None]
    return Scores(
        recall=_rate([one.verdict.is_alarm for one in faulty]),
        false_alarms=_rate([one.verdict.is_alarm for one in healthy]),
        top1=_rate([one.is_right for one in faulty]),
        precision=_rate([one.is_right for one in named]),
        top3=_rate([one.is_among_three for one in faulty]),
        abstention=_rate([one.named is None for one in faulty]),
        alarms_without_effect=_rate([one.verdict.is_alarm for one in harmless]),
        category_f1=_category_f1(faulty, healthy),
        failures=sum(one.failure is not None for one in judgements),
        steps=_steps(faulty),
    )


def _rate(values: Sequence[bool]) -> Rate:
    return Rate(sum(values), len(values))


def _category_f1(faulty: Sequence[Scored], healthy: Sequence[Scored]) -> float | None:
    """The mean over categories of the F1 score of the category of the named cause. A right name counts as one of the fault's
    own category: a batch with too few updates is one of duration, too."""
    true, said, right = Counter(), Counter(), Counter()
    for one in (*faulty, *healthy):
        category = FAULTS[one.name].category if one.judgement.case.is_fault else None
        named = None if one.verdict.first is None else one.verdict.first["category"]
        if category is not None and one.is_right:
            named = category
        true[category] += 1
        said[named] += 1
        right[category] += category == named
    known = [category for category in true if category is not None]
    return float(np.mean([2 * right[one] / (true[one] + said[one]) for one in known])) if known else None


def _steps(faulty: Sequence[Scored]) -> dict[str, float]:
    """Of the faults that were told: the share before the first step and within 20, and the median of the steps."""
    steps = [one.judgement.steps for one in faulty if one.judgement.steps is not None]
    if not steps:
        return {}
    return {
        "median": float(np.median(steps)),
        "before_first": float(np.mean([step == 0 for step in steps])),
        "within_20": float(np.mean([step <= 20 for step in steps])),
    }


def silent_scores(judgements: Sequence[Judgement], effects: Mapping[Place, Effect]) -> dict[str, Rate]:
    """Of the silent faults of the pipeline: how many are told, and how many are named rightly, before the first step and
    within 20."""
    found = {}
    for moment in EARLY:
        cases = [
            one for one in scored(judgements, effects, moment)
            if one.judgement.case.is_fault and one.is_material and FAULTS[one.name].is_silent
        ]  # fmt: skip
        found[f"{moment}: told"] = _rate([one.verdict.is_alarm for one in cases])
        found[f"{moment}: named"] = _rate([one.is_right for one in cases])
        healthy = [one for one in scored(judgements, effects, moment) if not one.judgement.case.is_fault]
        found[f"{moment}: false alarms"] = _rate([one.verdict.is_alarm for one in healthy])
    return found


def confusion(
    judgements: Sequence[Judgement], effects: Mapping[Place, Effect], moment: str = "full"
) -> dict[str, Counter[str]]:
    """Fault → how often which cause was named."""
    table: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for one in scored(judgements, effects, moment):
        if one.judgement.case.is_fault and one.is_material:
            table[one.name][said_of(one)] += 1
    return dict(table)


def said_of(one: Scored) -> str:
    """The named cause, or that the doctor abstains, or that it says nothing is wrong."""
    return one.named or (ABSTAINED if one.verdict.is_alarm else NOTHING)


def misses(judgements: Sequence[Judgement], effects: Mapping[Place, Effect], moment: str = "full") -> list[Scored]:
    """The cases in which the doctor is wrong: false alarms, faults that it does not tell, or does not name rightly."""
    return [
        one
        for one in scored(judgements, effects, moment)
        if (one.is_material and not one.is_right if one.judgement.case.is_fault else one.verdict.is_alarm)
    ]
