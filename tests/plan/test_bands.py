"""The bands beside a plan's figures, against numbers computed by hand from the cited laws."""

import pytest

from fledge.forecast.assumed import assumed_rows
from fledge.model.cost import ModelCost
from fledge.plan import plan_stage
from fledge.plan.bands import Band, BandInputs, bands_of, ladder, step_law
from fledge.recipe import recipe_from_dict


def test_the_laws_give_the_figures_of_their_sources() -> None:
    rate, batch = step_law(26e6, 0.5e9)
    assert rate == pytest.approx(4.4e-3, rel=0.03) and batch == pytest.approx(54_000, rel=0.03)
    rate, batch = ladder(26e6)
    assert rate == pytest.approx(3.8e-3, rel=0.03) and batch == pytest.approx(127_000, rel=0.03)


@pytest.mark.parametrize(("value", "position"), [(0.9, "below"), (1.0, "inside"), (2.0, "inside"), (2.1, "above")])
def test_a_band_says_where_a_value_lies(value: float, position: str) -> None:
    assert Band(name="x", value=value, low=1.0, high=2.0, source="").position == position


def test_tokens_per_update_have_a_band_whatever_the_optimizer() -> None:
    for optimizer in ("muon", "adamw"):
        stage = {"data": {"train": "x.jsonl", "max_seq_len": 64}, "optimizer": {"name": optimizer}}
        recipe = recipe_from_dict({"stages": {"pretrain": stage}})
        train, cost = assumed_rows(recipe.stages["pretrain"], 640_000, 0), ModelCost(recipe.model, 6400)
        plan, _, resolved = plan_stage(recipe.stages["pretrain"], train, cost)
        fresh, trained = (
            {band.name for band in bands_of(BandInputs(stage=resolved, plan=plan, cost=cost, starts_fresh=is_fresh))}
            for is_fresh in (True, False)
        )
        assert "tokens per update" in fresh and "tokens per update" not in trained
        assert ("learning rate" in fresh) == (optimizer == "adamw")
