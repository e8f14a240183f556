"""The recipes of trials: what they leave out, and what they begin with."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fledge.recipe import Recipe
from fledge.recipe.sections.policy import PolicySettings
from fledge.run import write_json
from fledge.run.directory import RunDirectory
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


def _judged(folder: Path, stage: str = "grpo", first: int = 2, **grpo: Any) -> TrialRecipes:
    """Of a recipe whose last stage is rewarded by the reward model of the stage before it."""
    stages = {
        "sft": {"data": {"train": "chat.jsonl"}},
        "reward": {"data": {"train": "pairs.jsonl"}},
        "grpo": {
            "data": {"train": "questions.jsonl"},
            "rewards": [{"model": "reward"}, {"rule": "length", "max_tokens": 80}, {"model": "elsewhere", "name": "other"}],
            **grpo,
        },
    }
    file = folder / "r.yaml"
    file.write_text(yaml.safe_dump({"stages": stages}, sort_keys=False), encoding="utf-8")
    return TrialRecipes(
        files=(str(file),), overrides=(), space=(), stage=stage, first=first, shares_data=True,
        paths=SweepFiles(folder=folder / "sweep"),
    )  # fmt: skip


def _models(recipe: Recipe) -> list[str | None]:
    stage = recipe.stages["grpo"]
    assert isinstance(stage, PolicySettings)
    return [one.model for one in stage.rewards]


@pytest.mark.parametrize("grpo", [{}, {"init_from": "a-model"}])
def test_trials_are_judged_by_the_reward_model_that_they_all_begin_with(tmp_path: Path, grpo: dict[str, Any]) -> None:
    recipes = _judged(tmp_path, **grpo)
    start = recipes.start(1)
    assert start is not None and list(start.stages) == ["sft", "reward"]
    trained = RunDirectory(recipes.paths.start(1)).stage("reward")
    trained.root.mkdir(parents=True)
    figures = {"order": 1, "step": 7, "seconds": 1.0, "wall_seconds": 1.0, "stop": None}
    write_json(trained.result_file, {**figures, "model": "checkpoints/step-00000007/model"})
    trial = recipes.trial(1, 1, {})
    assert list(trial.stages) == ["grpo"]
    assert _models(trial) == [str(trained.root / "checkpoints/step-00000007/model"), None, "elsewhere"]


def test_a_trial_that_trains_its_reward_model_is_judged_by_that(tmp_path: Path) -> None:
    recipes = _judged(tmp_path, first=1)
    trial = recipes.trial(1, 1, {})
    assert list(trial.stages) == ["reward", "grpo"] and _models(trial) == ["reward", None, "elsewhere"]


def test_a_start_whose_models_no_trial_needs_is_not_trained(tmp_path: Path) -> None:
    assert _judged(tmp_path, init_from="a-model", rewards=["exact_match"]).start(1) is None
