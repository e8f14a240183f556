"""Small plots in text."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fledge.doctor.sparkline import ASCII_LEVELS, BAD, GAP, LEVELS, WIDTH, levels_of, number, sparkline
from fledge.training_log import Series


def series(values: list[float], steps: list[float] | None = None) -> Series:
    return Series(np.array(steps or range(1, len(values) + 1), dtype=float), np.array(values, dtype=float))


def test_a_rising_figure_rises_from_the_lowest_to_the_highest_level() -> None:
    course, steps = sparkline(series([0, 1, 2, 3, 4, 5, 6, 7]), "x", levels=LEVELS)
    assert course == f"x {LEVELS} 0 to 7" and steps == "  step 1 to 8"


def test_a_wide_range_is_logarithmic() -> None:
    course, _ = sparkline(series([1, 10, 100, 1000]), "x", levels="0123")
    assert course == "x 0123 1 to 1,000, logarithmic"


def test_gaps_and_values_that_are_no_numbers_are_seen() -> None:
    course, _ = sparkline(series([1, math.nan, 2, 3], [1, 2, 3, 40]), "x", levels=LEVELS)
    assert BAD in course and GAP in course.split("x ", 1)[1].split(" 1 to", 1)[0]


def test_the_steps_of_the_evidence_are_marked_below_the_course() -> None:
    lines = sparkline(series(list(range(100))), "loss", (50, 60), LEVELS)
    assert len(lines) == 3 and set(lines[1].strip()) == {"^"}
    first = lines[1].index("^") - len("loss ")
    assert abs(first - (50 - 1) / 99 * WIDTH) <= 1
    assert len(sparkline(series(list(range(100))), "loss", (1, 100), LEVELS)) == 2  # all of it is no stretch


def test_a_poor_encoding_gets_signs_of_ascii() -> None:
    assert levels_of("utf-8") == LEVELS
    assert levels_of("ascii") == levels_of("latin-1") == levels_of(None) == levels_of("no such") == ASCII_LEVELS


def test_nothing_finite_gives_nothing() -> None:
    assert sparkline(series([math.nan, math.inf]), "x") == []


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300))
def test_any_figures_give_a_course_of_at_most_the_width(values: list[float]) -> None:
    course = sparkline(series(values), "x", levels=LEVELS)[0]
    drawn = course.removeprefix("x ")[:WIDTH]
    assert 1 <= sum(character in LEVELS for character in drawn) <= WIDTH


def test_numbers_are_short() -> None:
    assert [number(x) for x in (0.00012, 4.771, 1666.0, 123456.7, 1.2e-8, math.inf)] == [
        "0.00012", "4.77", "1,666", "123,457", "1.2e-08", "inf",
    ]  # fmt: skip
