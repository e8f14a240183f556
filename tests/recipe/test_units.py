"""Quantities as a person writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.recipe.units import Length, share, steps_or_share


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
def test_a_length_is_read_as_a_person_means_it(text: str, amount: float, unit: str) -> None:
    assert Length.parse(text) == Length(amount, unit)


@pytest.mark.parametrize(
    "text",
    ["", "3", "epochs", "3 hours", "-1 epochs", "0 steps", "1.5 steps", "1,5 epochs", "1.1.1 epochs", "1e999 steps"],
)
def test_a_length_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="length"):
        Length.parse(text)


@given(
    st.one_of(
        st.tuples(st.floats(1e-6, 1e6), st.just("epochs")),
        st.tuples(st.integers(1, 10**15).map(float), st.sampled_from(["steps", "tokens"])),
    )
)
def test_a_length_written_reads_back_equal(made: tuple[float, str]) -> None:
    length = Length(*made)
    assert Length.parse(str(length)) == length


def test_percent_is_a_share_and_numbers_stay() -> None:
    assert share("5%") == 0.05
    assert share(" 12.5 % ") == 0.125
    assert share("100%") == 1.0
    assert share(3) == 3
    assert share("rows.jsonl") == "rows.jsonl"
    assert steps_or_share("5%") == 0.05
    assert steps_or_share(100) == 100


@pytest.mark.parametrize("text", ["100%", "150%"])
def test_a_share_of_all_steps_never_becomes_one_step(text: str) -> None:
    with pytest.raises(ValueError, match="below 100%"):
        steps_or_share(text)
