"""`fledge tune` on a run: it reads what is recorded, and refuses what only concerns runs that it would train."""

from pathlib import Path
from typing import Any

import pytest

from fledge.errors import FledgeError
from fledge.run.console import Console
from fledge.tune.tune import TuneSettings, tune


def _refused(run: Path, what: str = "batch", **settings: Any) -> FledgeError:
    files = (str(run), *settings.pop("more", ()))
    with pytest.raises(FledgeError) as caught:
        tune(TuneSettings(files=files, what=what, **settings), Console(quiet=True))
    return caught.value


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"out": Path("there")}, "--out"),
        ({"processes": 2}, "--processes"),
        ({"overrides": (("stages.sft.duration", "3 epochs"),)}, "--stages.sft.duration"),
        ({"more": ("other.yaml",)}, "other.yaml"),
    ],
)
def test_what_has_no_effect_on_a_run_is_refused(tmp_path: Path, settings: dict[str, Any], where: str) -> None:
    error = _refused(tmp_path, **settings)
    assert error.where == where and "no effect on what a run has recorded" in error.what


def test_what_needs_a_recipe_is_called_by_its_name(tmp_path: Path) -> None:
    for what in ("lr", "duration"):
        assert f"--what {what} trains runs: it is found from a recipe" in _refused(tmp_path, what).what
    assert _refused(tmp_path).what == "this is no run"
