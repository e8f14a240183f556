"""What a stage is predicted to take: written before it trains, measured after it, remembered for later plans."""

import json
from pathlib import Path

import pytest

from fledge.pipeline import Pipeline
from fledge.plan.history import history_file, past_stages
from fledge.recipe import recipe_from_dict
from fledge.report import stage_table
from fledge.run import Console
from tests.support import tiny_run

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))  # the machine that runs tests may be busy


def _run(world: Path, folder: Path, name: str, steps: int) -> Path:
    tree = tiny_run.tree(world, folder)
    pretrain = {**tree["stages"]["pretrain"], "duration": f"{steps} steps"}
    return Pipeline(recipe_from_dict({**tree, "name": name, "stages": {"pretrain": pretrain}}), QUIET).run()


def test_a_stage_is_predicted_measured_and_remembered(world: Path, tmp_path: Path) -> None:
    first = _run(world, tmp_path / "runs", "first", 24)
    found = json.loads((first / "pretrain" / "prediction.json").read_text())
    predicted, measured = found["predicted"], found["measured"]
    assert predicted["updates"] == measured["updates"] == 24 and "matrix products" in predicted["basis"]
    assert 0 < predicted["training"]["low"] < predicted["training"]["high"] and measured["training"] > 0
    assert 2**28 < predicted["memory"] < 2**32 and measured["memory"] > 2**28
    (past,) = past_stages()
    assert past.kind == "pretrain" and past.flops_per_second > 0

    second = _run(world, tmp_path / "runs", "second", 24)
    found = json.loads((second / "pretrain" / "prediction.json").read_text())
    assert found["predicted"]["basis"] == "as the stage before it on this machine"
    assert found["predicted"]["training"]["low"] < measured["training"] < found["predicted"]["training"]["high"]
    labels = {str(cell) for cell in stage_table(second).columns[0].cells}
    assert {"Predicted time", "Predicted memory"} <= labels


def test_too_few_updates_are_not_remembered(world: Path, tmp_path: Path) -> None:
    run = _run(world, tmp_path / "runs", "short", 8)
    assert json.loads((run / "pretrain" / "prediction.json").read_text())["measured"]["updates"] == 8
    assert not history_file().exists()
