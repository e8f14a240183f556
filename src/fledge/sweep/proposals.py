"""What a trial tries: a function of the space, the seed of the sweep, and the results of earlier trials. Nothing else.

So a sweep that is resumed proposes what it had proposed before, and needs no record of trials that were not finished.
"""

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import xxhash

from fledge.errors import FledgeError, missing_extra
from fledge.sweep.space import Parameter

STARTUP = 10  # trials at random before TPE has enough to go by (its default in Optuna)
State = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is known of an earlier trial: its values, how it ended, and its result (None: it failed). `looks`: the values on the
    way, by number of the look."""

    values: Mapping[str, Any]
    state: State
    value: float | None
    looks: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Search:
    """How values are proposed. `first`: the values of trial 1, which are those of the recipe where they lie in the space."""

    space: Sequence[Parameter]
    sampler: str
    seed: int
    higher_is_better: bool
    first: Mapping[str, Any] | None = None

    def propose(self, number: int, known: Sequence[Outcome], beside: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The values of trial `number` (from 1), given all earlier results and the values of trials that run beside it."""
        if number == 1 and self.first is not None and self.sampler in STARTS_WITH_RECIPE:
            return dict(self.first)
        return SAMPLERS[self.sampler](self, number, known, beside)


def import_optuna(purpose: str) -> Any:
    """Optuna, silenced. Raises FledgeError if it is not installed; `purpose` names what needs it."""
    try:
        import optuna
    except ImportError:
        raise missing_extra("optuna", "sweep", purpose) from None
    optuna.logging.set_verbosity(logging.ERROR)
    return optuna


def distribution(parameter: Parameter) -> Any:
    """The parameter as a distribution of Optuna. Choices are numbered, because Optuna takes plain values only."""
    optuna = import_optuna("a sweep")
    if parameter.choices:
        return optuna.distributions.CategoricalDistribution(tuple(range(len(parameter.choices))))
    if parameter.number == "int":
        return optuna.distributions.IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
    return optuna.distributions.FloatDistribution(parameter.low, parameter.high, log=parameter.log)


def coded(space: Sequence[Parameter], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as Optuna has them: a choice by its number."""
    return {one.key: one.choices.index(values[one.key]) if one.choices else values[one.key] for one in space}


def decoded(space: Sequence[Parameter], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as the recipe has them."""
    return {one.key: one.rounded(one.choices[values[one.key]] if one.choices else values[one.key]) for one in space}


def seed_of(seed: int, number: int) -> int:
    """The seed of the random numbers of one proposal."""
    return xxhash.xxh3_64_intdigest(f"{seed}/{number}".encode()) % 2**32


def frozen_trial(space: Sequence[Parameter], outcome: Outcome, **more: Any) -> Any:
    """An earlier trial as Optuna has it."""
    optuna = import_optuna("a sweep")
    states = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState[states[outcome.state]],
        value=outcome.value if outcome.state == "complete" else None,
        params=coded(space, outcome.values),
        distributions={one.key: distribution(one) for one in space},
        intermediate_values=dict(outcome.looks),
        **more,
    )


def study_of(search: Search, known: Sequence[Outcome], sampler: Any = None) -> Any:
    """A study in memory that holds the earlier trials."""
    optuna = import_optuna("a sweep")
    study = optuna.create_study(direction="maximize" if search.higher_is_better else "minimize", sampler=sampler)
    for outcome in known:
        study.add_trial(frozen_trial(search.space, outcome))
    return study


def _tpe(search: Search, number: int, known: Sequence[Outcome], beside: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The tree-structured Parzen estimator (Bergstra et al. 2011), by Optuna. Trials that run beside count as bad ones
    (constant liar), so that several at a time do not try the same."""
    optuna = import_optuna("a sweep")
    sampler = optuna.samplers.TPESampler(seed=seed_of(search.seed, number), n_startup_trials=STARTUP, constant_liar=True)
    study = study_of(search, known, sampler)
    for values in beside:
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.RUNNING,
                params=coded(search.space, values),
                distributions={one.key: distribution(one) for one in search.space},
            )
        )
    return decoded(search.space, study.ask({one.key: distribution(one) for one in search.space}).params)


def _random(search: Search, number: int, known: Sequence[Outcome], beside: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Independent random values."""
    optuna = import_optuna("a sweep")
    study = study_of(search, (), optuna.samplers.RandomSampler(seed=seed_of(search.seed, number)))
    return decoded(search.space, study.ask({one.key: distribution(one) for one in search.space}).params)


def _grid(search: Search, number: int, known: Sequence[Outcome], beside: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The next point of the grid, the last key fastest."""
    return grid_points(search.space)[number - 1]


def grid_points(space: Sequence[Parameter]) -> list[dict[str, Any]]:
    """All points of the grid. Raises FledgeError for a range, which has no points."""
    for one in space:
        if not one.choices:
            raise FledgeError(
                "a grid needs values, not a range", where=f"--search {one.key}", hint="write KEY=a,b,c, or --sampler tpe"
            )
    points = itertools.product(*(one.choices for one in space))
    return [dict(zip((one.key for one in space), point, strict=True)) for point in points]


Sampler = Callable[[Search, int, Sequence[Outcome], Sequence[Mapping[str, Any]]], dict[str, Any]]
SAMPLERS: dict[str, Sampler] = {"tpe": _tpe, "random": _random, "grid": _grid}
STARTS_WITH_RECIPE = ("tpe", "random")  # their first trial is the recipe as it is


def importances(search: Search, known: Sequence[Outcome]) -> dict[str, float]:
    """The share of each key in what makes a trial one of the best ones (PED-ANOVA, Watanabe et al. 2023), the largest first;
    empty with fewer than four finished trials, and for one key."""
    complete = [one for one in known if one.state == "complete"]
    if len(complete) < MIN_FOR_IMPORTANCE or len(search.space) < 2:
        return {}
    optuna = import_optuna("a sweep")
    study = study_of(search, complete)
    found = optuna.importance.get_param_importances(study, evaluator=optuna.importance.PedAnovaImportanceEvaluator())
    return {str(key): float(share) for key, share in found.items()}


MIN_FOR_IMPORTANCE = 4  # finished trials: the best tenth, or two, is compared with the rest
