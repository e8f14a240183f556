"""Durations, fractions and sizes as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.recipe.units import Duration, fraction, steps_or_fraction


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("3 epochs", 3, "epochs"),
        ("1 epoch", 1, "epochs"),
        ("0.5epochs", 0.5, "epochs"),
        ("500 steps", 500, "steps"),
        ("1,000 steps", 1000, "steps"),
        ("1_000 steps", 1000, "steps"),
        ("2.3k steps", 2300, "steps"),
        ("20M tokens", 20_000_000, "tokens"),
        ("1.1M tokens", 1_100_000, "tokens"),
        ("2B tokens", 2_000_000_000, "tokens"),
        ("1e6 tokens", 1_000_000, "tokens"),
        (" 7  steps ", 7, "steps"),
    ],
)
def test_duration_is_parsed(text: str, amount: float, unit: str) -> None:
    assert Duration.parse(text) == Duration(amount, unit)


@pytest.mark.parametrize(
    "text",
    ["", "3", "epochs", "3 hours", "-1 epochs", "0 steps", "1.5 steps", "1,5 epochs", "1.1.1 epochs", "1e999 steps"],
)
def test_invalid_duration_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        Duration.parse(text)


@given(
    st.one_of(
        st.tuples(st.floats(1e-6, 1e6), st.just("epochs")),
        st.tuples(st.integers(1, 10**15).map(float), st.sampled_from(["steps", "tokens"])),
    )
)
def test_duration_survives_writing_and_parsing(values: tuple[float, str]) -> None:
    duration = Duration(*values)
    assert Duration.parse(str(duration)) == duration


def test_percent_becomes_a_fraction_and_other_values_stay() -> None:
    assert fraction("5%") == 0.05
    assert fraction(" 12.5 % ") == 0.125
    assert fraction("100%") == 1.0
    assert fraction(3) == 3
    assert fraction("rows.jsonl") == "rows.jsonl"
    assert steps_or_fraction("5%") == 0.05
    assert steps_or_fraction(100) == 100


@pytest.mark.parametrize("text", ["100%", "150%"])
def test_one_hundred_percent_never_becomes_one_step(text: str) -> None:
    with pytest.raises(ValueError, match="below 100%"):
        steps_or_fraction(text)
