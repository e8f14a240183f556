"""Every planted mistake is named, with figures, how sure that is, and a change that takes it away; good recipes are silent."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fledge.plan.critic import CHECKS
from tests.plan.critic_data import Critic, entries, recipe_of, write_data

PLANTED, GOOD, BASES = entries("planted.yaml"), entries("good.yaml"), entries("bases.yaml")
WITHOUT_PATCH = {"answers from fresh weights"}  # which trained model there is, no check knows


@pytest.fixture(scope="module")
def critic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Critic]:
    """A critic in the folder of the data."""
    folder, before = tmp_path_factory.mktemp("critic"), Path.cwd()
    write_data(folder)
    os.chdir(folder)
    yield Critic()
    os.chdir(before)


def device_of(entry: dict[str, Any]) -> tuple[tuple[int, int] | None, bool | None]:
    """The compute capability that an entry names, and whether its CPU multiplies bf16."""
    return tuple(entry["gpu"]) if "gpu" in entry else None, entry.get("cpu_has_bf16")


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_named_and_its_patch_takes_it_away(critic: Critic, name: str) -> None:
    entry = PLANTED[name]
    found = critic.findings(recipe_of(entry), *device_of(entry))
    assert {one.check for one in found} == set(entry["finds"]), [(one.check, one.message) for one in found]
    for one in found:
        assert one.message and one.hint and one.evidence and one.confidence in ("certain", "likely", "possible")
        assert one.where and json.loads(json.dumps(one.as_dict()))["confidence"] == one.confidence
        if one.patch is None:
            assert one.check in WITHOUT_PATCH, one.message
            continue
        left = critic.findings(recipe_of(entry, one.patch), *device_of(entry))
        assert one.check not in {other.check for other in left}, (one.patch, [other.message for other in left])
        new = {other.check for other in left if other.severity != "info"} - set(entry["finds"])
        assert not new, (one.patch, [other.message for other in left])


@pytest.mark.parametrize("name", GOOD)
def test_a_good_recipe_is_silent(critic: Critic, name: str) -> None:
    found = critic.findings(recipe_of(GOOD[name]), *device_of(GOOD[name]))
    assert found == [], [(one.check, one.message) for one in found]


def test_every_check_has_a_planted_mistake_and_there_are_as_many_good_recipes() -> None:
    named = {check for entry in PLANTED.values() for check in entry["finds"]}
    assert named == {check.name for check in CHECKS}
    assert len(PLANTED) >= 25 and len(GOOD) >= 25
    assert {entry["base"] for entry in (*PLANTED.values(), *GOOD.values())} == set(BASES)
