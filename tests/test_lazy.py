"""Packages whose names are imported when they are first used: every public name is there, others are not."""

from importlib import import_module

import pytest

LAZY = ["fledge", "fledge.data", "fledge.recipe"]


@pytest.mark.parametrize("name", LAZY)
def test_every_public_name_can_be_imported_and_is_listed(name: str) -> None:
    package = import_module(name)
    assert set(package.__all__) <= set(dir(package))
    for public in package.__all__:
        assert getattr(package, public) is not None


@pytest.mark.parametrize("name", LAZY)
def test_a_name_that_is_none_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing'"):
        _ = import_module(name).nothing
