"""The bands beside a plan's figures, against numbers computed by hand from the cited laws."""

import pytest

from fledge.plan.bands import Band, ladder, step_law


def test_the_laws_give_the_figures_of_their_sources() -> None:
    rate, batch = step_law(26e6, 0.5e9)
    assert rate == pytest.approx(4.4e-3, rel=0.03) and batch == pytest.approx(54_000, rel=0.03)
    rate, batch = ladder(26e6)
    assert rate == pytest.approx(3.8e-3, rel=0.03) and batch == pytest.approx(127_000, rel=0.03)


@pytest.mark.parametrize(("value", "position"), [(0.9, "below"), (1.0, "inside"), (2.0, "inside"), (2.1, "above")])
def test_a_band_says_where_a_value_lies(value: float, position: str) -> None:
    assert Band(name="x", value=value, low=1.0, high=2.0, source="").position == position
