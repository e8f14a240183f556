"""Whether a fault changed anything that can be measured, from runs with the fault and healthy ones of the same seeds.

A fault that changes nothing is a class of its own: not to tell it is no miss, and to tell it is no false alarm.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fledge.doctor_bench.case_key import CaseKey
from fledge.doctor_bench.conditions import PLAIN
from fledge.doctor_bench.faults import FAULTS
from fledge.doctor_bench.records import CaseRecord

SMALLEST = 0.01  # of the healthy figure: a smaller change is of no use to anybody
MORE_MEMORY = 100 * 2**20  # bytes
MOST_EXACT = 12  # pairs whose signs are all tried
Place = tuple[str, str, str, str]
"""Group, shape, fault, level."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The change that a fault made, in the unit of its yardstick, the worse the larger.

    `change`: mean over the seeds. `p_value`: one-sided, of a change by chance (sign-flip test over the pairs; with n seeds it
    is at least 2⁻ⁿ). `is_material`: whether the change is worth telling and as sure as so many seeds can make it. `pairs`:
    seeds.
    """

    change: float
    p_value: float
    pairs: int
    is_material: bool


def sign_flip_p_value(differences: Sequence[float]) -> float:
    """The share of all assignments of signs whose mean is at least that of the differences (Fisher 1935)."""
    values = np.asarray(differences, float)
    signs = np.array(list(itertools.product((1, -1), repeat=len(values))))
    means = signs @ values
    return float(np.mean(means >= values.sum() - 1e-12 * np.abs(values).sum()))


def place_of(key: CaseKey) -> Place:
    """What cases that differ by their seeds alone have in common."""
    return key.group, key.shape, key.condition, key.level


def effects_of(records: Iterable[CaseRecord]) -> dict[Place, Effect]:
    """The effects of all faults of which there are runs and healthy ones of the same seed."""
    plain: dict[tuple[str, str, int], CaseRecord] = {}
    faulty: defaultdict[Place, list[CaseRecord]] = defaultdict(list)
    for record in records:
        case = record.case
        if case.is_fault:
            faulty[place_of(case)].append(record)
        elif case.condition == PLAIN:
            plain[case.group, case.shape, case.seed] = record
    found = {}
    for place, runs in faulty.items():
        pairs = [(run, plain[run.case.group, run.case.shape, run.case.seed]) for run in runs
                 if (run.case.group, run.case.shape, run.case.seed) in plain]  # fmt: skip
        if (effect := _effect(FAULTS[place[2]].yardstick, pairs)) is not None:
            found[place] = effect
    return found


Pairs = Sequence[tuple[CaseRecord, CaseRecord]]


def _effect(yardstick: str, pairs: Pairs) -> Effect | None:
    """The effect by a yardstick; None where nothing was measured."""
    if yardstick == "always" or any(run.error is not None for run, _ in pairs):
        return Effect(change=float("inf"), p_value=0.0, pairs=len(pairs), is_material=True)
    measure, smallest, is_either_way = MEASURES[yardstick]
    values = [(measure(run), measure(healthy)) for run, healthy in pairs][:MOST_EXACT]
    known = [(a, b) for a, b in values if a is not None and b is not None]
    if not known:
        return None
    differences = [a - b if np.isfinite(a) else 1e9 for a, b in known]
    if is_either_way and np.mean(differences) < 0:
        differences = [-one for one in differences]
    p_value = sign_flip_p_value(differences)
    change = float(np.mean(differences))
    is_large = change >= smallest(float(np.mean([b for _, b in known])))
    return Effect(
        change=change, p_value=p_value, pairs=len(known), is_material=is_large and p_value <= 0.5 ** len(known) + 1e-9
    )


def _evaluation_error(record: CaseRecord) -> float | None:
    """How far the logged validation loss is above the clean one."""
    if record.logged_loss is None or record.clean_loss is None:
        return None
    return record.logged_loss - record.clean_loss


def _share(share: float, least: float = 0.0) -> Callable[[float], float]:
    return lambda healthy: max(least, share * abs(healthy))


Measure = Callable[[CaseRecord], float | None]
MEASURES: Mapping[str, tuple[Measure, Callable[[float], float], bool]] = {
    "clean loss": (lambda record: record.clean_loss, _share(SMALLEST, 0.002), False),
    "logged evaluation": (_evaluation_error, _share(SMALLEST, 0.02), True),
    "memory": (lambda record: record.memory_bytes, lambda healthy: MORE_MEMORY, False),
}
"""Yardstick → the figure of a run, the smallest change worth telling beside a healthy figure, and whether a change either way
is wrong."""
