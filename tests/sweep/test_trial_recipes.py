"""The recipes of trials: what they leave out."""

from pathlib import Path

import yaml

from fledge.run.sinks import SINKS
from fledge.sweep.recipes import SweepFiles, TrialRecipes


def test_trials_send_neither_alerts_nor_figures(tmp_path: Path) -> None:
    tree = {
        "stages": {"pretrain": {"data": {"train": "a.jsonl"}}},
        "logging": {"wandb": {"mode": "online"}, "trackio": {"space": "me/mine"}, "tensorboard": True, "every_steps": 4},
        "alerts": {"webhook": {"url": "https://example.org/hook"}},
    }
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    recipes = TrialRecipes(
        files=(str(file),), overrides=(), space=(), stage="pretrain", first=0, shares_data=True,
        paths=SweepFiles(folder=tmp_path / "sweep"),
    )  # fmt: skip
    trial = recipes.trial(1, 1, {"logging.every_steps": 1})
    asked = {name for name, kind in SINKS.items() if kind.settings(trial.logging) is not None}
    assert asked == {"tensorboard"}  # a folder beside the run
    assert trial.alerts.webhook is None and trial.logging.every_steps == 1
