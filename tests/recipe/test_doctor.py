"""The section of the doctor that watches a stage."""

import pytest

from fledge.errors import FledgeError
from fledge.recipe import recipe_from_dict


@pytest.mark.parametrize(
    ("written", "every"), [(False, 0), (True, 100), ({}, 100), ({"every": 0}, 0), ({"every": 7}, 7)], ids=str
)
def test_the_interval_and_its_short_forms(written: object, every: int) -> None:
    stage = {"data": {"train": "x.jsonl"}, "doctor": written}
    assert recipe_from_dict({"stages": {"pretrain": stage}}).stages["pretrain"].doctor.every == every


@pytest.mark.parametrize("written", [{"every": -1}, {"steps": 3}, "often"], ids=str)
def test_what_is_no_interval_is_refused(written: object) -> None:
    with pytest.raises(FledgeError, match=r"stages\.pretrain\.doctor"):
        recipe_from_dict({"stages": {"pretrain": {"data": {"train": "x.jsonl"}, "doctor": written}}})
