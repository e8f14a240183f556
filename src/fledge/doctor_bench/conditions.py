"""All conditions of the bench, and the runs of a group."""

import zlib
from collections.abc import Iterator

from fledge.doctor_bench.case_key import CaseKey
from fledge.doctor_bench.condition import Condition
from fledge.doctor_bench.controls import CONTROLS
from fledge.doctor_bench.faults import FAULTS
from fledge.doctor_bench.groups import Group


def condition_of(key: CaseKey) -> Condition:
    """The condition of a case. Raises KeyError if there is none of this name."""
    return FAULTS[key.condition] if key.is_fault else CONTROLS[key.condition]


PLAIN = "plain"  # the control that every fault of its seed is compared with
PLAIN_SEEDS = 5
ODD_SEEDS = 2


def cases_of(group: Group, seeds: int = 1) -> Iterator[CaseKey]:
    """The runs of a group: the plain controls first, since faults are compared with them. `seeds`: of each fault on each shape
    at each level, chosen among those of the plain controls."""
    for shape in group.shapes:
        for seed in range(1, PLAIN_SEEDS + 1):
            yield CaseKey(group=group.name, shape=shape, condition=PLAIN, level="", seed=seed, is_fault=False)
    for control in CONTROLS.values():
        for shape, level in _places(control, group) if control.name != PLAIN else ():
            for seed in range(1, ODD_SEEDS + 1):
                yield CaseKey(group=group.name, shape=shape, condition=control.name, level=level, seed=seed, is_fault=False)
    for fault in FAULTS.values():
        for shape, level in _places(fault, group):
            first = zlib.crc32(f"{fault.name}/{shape}/{level}".encode())
            for number in range(min(seeds, PLAIN_SEEDS)):
                yield CaseKey(
                    group=group.name,
                    shape=shape,
                    condition=fault.name,
                    level=level,
                    seed=1 + (first + number) % PLAIN_SEEDS,
                    is_fault=True,
                )


def _places(condition: Condition, group: Group) -> Iterator[tuple[str, str]]:
    """The shapes of the group that a condition is tried on, with each of its levels."""
    for shape in condition.shapes:
        for level in condition.levels if shape in group.shapes else ():
            yield shape, level


QUICK_CASES = (
    ("pretrain", PLAIN, "", 1), ("pretrain", PLAIN, "", 2), ("sft", PLAIN, "", 1), ("sft", PLAIN, "", 2),
    ("pretrain", "learning rate far too high", "60x", 1), ("pretrain", "target shifted twice", "", 1),
    ("pretrain", "attention sees the future", "all", 2), ("sft", "prompt not masked", "all", 1),
    ("sft", "end token never supervised", "all", 2), ("sft", "mask off by one", "early", 1),
)  # fmt: skip
"""Shape, condition, level and seed of the runs of the quick form."""


def quick_cases(group: Group) -> Iterator[CaseKey]:
    """The runs of the quick form: some faults, and healthy ones."""
    for shape, name, level, seed in QUICK_CASES:
        yield CaseKey(group=group.name, shape=shape, condition=name, level=level, seed=seed, is_fault=name in FAULTS)


def effect_cases(group: Group, seeds: int) -> Iterator[CaseKey]:
    """Further runs that only tell what faults change: each fault with the first seeds of the plain controls."""
    for fault in FAULTS.values():
        for shape, level in _places(fault, group) if fault.yardstick != "always" else ():
            for seed in range(1, min(seeds, PLAIN_SEEDS) + 1):
                yield CaseKey(group=group.name, shape=shape, condition=fault.name, level=level, seed=seed, is_fault=True)
