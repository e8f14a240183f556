from pathlib import Path

import pytest

from fledge.diagnosis.causes import CAUSES
from fledge.doctor_bench.case_key import CaseKey
from fledge.doctor_bench.condition import Condition
from fledge.doctor_bench.conditions import PLAIN, QUICK_CASES, cases_of, condition_of, effect_cases, quick_cases
from fledge.doctor_bench.controls import CONTROLS
from fledge.doctor_bench.faults import FAULTS, MODULES
from fledge.doctor_bench.groups import GROUPS, PARTS, QUICK
from fledge.doctor_bench.options import make_parser
from fledge.doctor_bench.right_causes import RIGHT_CAUSES, is_right
from fledge.doctor_bench.shapes import SHAPES

CATEGORIES = {cause.name: cause.category for cause in CAUSES}


def test_there_are_enough_faults_and_controls() -> None:
    assert len(FAULTS) >= 40
    assert len(CONTROLS) >= 20
    assert sum(len(module.FAULTS) for module in MODULES) == len(FAULTS), "two faults have one name"


def test_every_fault_has_right_causes_that_the_doctor_knows() -> None:
    assert set(RIGHT_CAUSES) == set(FAULTS)
    unknown = {cause for causes in RIGHT_CAUSES.values() for cause in causes} - set(CATEGORIES)
    assert not unknown


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_the_category_of_a_fault_is_that_of_its_best_cause(name: str) -> None:
    assert FAULTS[name].category == CATEGORIES[RIGHT_CAUSES[name][0]]
    assert is_right(name, RIGHT_CAUSES[name][0])
    assert not is_right(name, "stopped by an error")


@pytest.mark.parametrize("condition", [*FAULTS.values(), *CONTROLS.values()], ids=lambda one: one.name)
def test_a_condition_is_tried_on_shapes_that_exist(condition: Condition) -> None:
    assert condition.shapes and set(condition.shapes) <= set(SHAPES)
    assert 1 <= len(condition.levels) <= 3
    assert "/" not in condition.name


def test_a_third_of_the_runs_is_healthy() -> None:
    for part in PARTS:
        keys = [key for group in GROUPS.values() if group.part == part for key in cases_of(group)]
        healthy = sum(not key.is_fault for key in keys)
        assert healthy >= 0.3 * len(keys)
        odd = sum(not key.is_fault and key.condition != PLAIN for key in keys)
        assert odd >= 0.3 * healthy


def test_keys_name_runs_uniquely_and_can_be_read_again() -> None:
    keys = [key for group in GROUPS.values() for key in (*cases_of(group, 3), *effect_cases(group, 2))]
    assert all(CaseKey.parse(key.text) == key for key in keys)
    assert len({key.folder for key in keys}) == len(set(keys))
    assert all(key.level in condition_of(key).levels for key in keys)


def test_faults_have_healthy_runs_of_their_seeds() -> None:
    keys = list(cases_of(GROUPS["dev"], 2))
    plain = {(key.shape, key.seed) for key in keys if key.condition == PLAIN}
    assert {(key.shape, key.seed) for key in keys if key.is_fault} <= plain


def test_the_quick_form_has_faults_and_healthy_runs() -> None:
    keys = list(quick_cases(GROUPS[QUICK]))
    assert len(keys) == len(QUICK_CASES)
    assert sum(key.is_fault for key in keys) == 6
    assert all(key.shape in GROUPS[QUICK].shapes and key.level in condition_of(key).levels for key in keys)


@pytest.mark.parametrize("part", ["held-out", "second"])
def test_held_out_groups_differ_in_size_data_language_and_stages(part: str) -> None:
    dev, held = GROUPS["dev"], [group for group in GROUPS.values() if group.part == part]
    assert any(group.model["hidden_size"] > dev.model["hidden_size"] for group in held)
    assert any(group.source != dev.source for group in held)
    assert any(group.languages != dev.languages for group in held)
    assert any(not set(group.shapes) & set(dev.shapes) for group in held)
    assert all(group.data_seed != dev.data_seed for group in held if group.source == dev.source)


def test_no_two_groups_have_the_same_rows() -> None:
    rows = [(group.source, group.data_seed) for group in GROUPS.values() if group.part != QUICK]
    assert len(set(rows)) == len(rows)


def test_the_options_have_defaults() -> None:
    options = make_parser().parse_args([])
    assert (options.group, options.out, options.processes) == ("dev", Path("doctor-bench"), 2)
