"""A probe: what it leaves out of the recipe, and the time of an update that it measures."""

from pathlib import Path
from typing import Any

import pytest

from fledge.forecast.forecast import know_recipe
from fledge.forecast.probe import seconds_of_update, shortened
from fledge.recipe import Recipe, recipe_from_dict
from fledge.run import Console
from fledge.run.sinks import SINKS


def _recipe(**more: Any) -> Recipe:
    stages = {
        "pretrain": {"data": {"train": "a.jsonl"}, "duration": "500 steps"},
        "grpo": {"data": {"train": "b.jsonl"}, "rewards": "exact_match", "duration": "500 steps", **more.pop("grpo", {})},
    }
    return recipe_from_dict({"stages": stages, **more})


def test_a_probe_sends_nothing(tmp_path: Path) -> None:
    sinks = {"tensorboard": True, "wandb": {"mode": "online"}, "trackio": {"space": "me/mine"}, "every_steps": 3}
    alerts = {"webhook": {"url": "https://example.org/hook"}, "file": "alerts.jsonl"}
    recipe = _recipe(logging=sinks, alerts=alerts)
    assert all(kind.settings(recipe.logging) is not None for kind in SINKS.values())
    short = shortened(recipe, 20, tmp_path)
    assert all(kind.settings(short.logging) is None for kind in SINKS.values())
    assert short.alerts.webhook is None and short.alerts.file is None
    assert short.logging.every_steps == 3  # it measures at these steps, which takes time


def test_a_probe_is_long_enough_for_a_whole_rollout_behind_the_warm_steps(tmp_path: Path) -> None:
    stages = shortened(_recipe(grpo={"rollout": {"updates_per_rollout": 16}}), 20, tmp_path).stages
    assert stages["pretrain"].duration == "20 steps" and stages["grpo"].duration == "32 steps"
    assert stages["grpo"].evaluation.every_steps == 16
    assert shortened(_recipe(), 20, tmp_path).stages["grpo"].duration == "20 steps"


def test_a_probe_has_the_batch_of_the_whole_stage(tmp_path: Path) -> None:
    data = {"train": "a.jsonl", "max_seq_len": 64}
    stages = {
        "pretrain": {"data": data, "duration": "3 epochs", "batch": {"micro_batch_size": "auto"}},
        "sft": {"data": data, "duration": "3 epochs", "batch": {"tokens_per_step": 512}},
    }
    recipe = recipe_from_dict({"stages": stages, "runtime": {"device": "cpu"}})

    def known(recipe: Recipe) -> dict[str, int]:
        planned = know_recipe(recipe, Console(quiet=True), tokens=dict.fromkeys(stages, 200 * 64))
        rows = {name: stage.inputs.plan.effective_batch_rows for name, stage in planned.stages.items()}
        short = recipe_from_dict(shortened(planned.with_planned_batches, 20, tmp_path).model_dump(mode="json"))
        again = know_recipe(short, Console(quiet=True), tokens=dict.fromkeys(stages, 200 * 64))
        assert rows == {name: stage.inputs.plan.effective_batch_rows for name, stage in again.stages.items()}
        return rows

    assert known(recipe) == {"pretrain": 2, "sft": 8}


def test_the_time_of_an_update_has_its_share_of_the_drawing_in_it() -> None:
    drawing = [30.0, 2.0, 2.0, 2.0] + [10.0, 1.0, 1.0, 1.0] * 4  # the first rollout is warm-up
    assert seconds_of_update(drawing, 4) == pytest.approx(13 / 4)
    assert seconds_of_update(drawing[:-1], 4) == pytest.approx(13 / 4)  # half of a rollout is left out
    delayed = [9.0, 9.0, 9.0, 1.0, 2.0, 8.0]  # else the mean behind the warm steps, in which the last one counts 4
    assert seconds_of_update(delayed, 1) == pytest.approx(7 / 3)
    assert seconds_of_update([9.0] * 4 + [4.0, 2.0, 6.0, 2.0], 2) == pytest.approx(3.5)
