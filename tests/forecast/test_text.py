"""The sentences of a forecast say what they know: what is trained, what time counts, what limits a micro-batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fledge.forecast.forecast import RunForecast
from fledge.forecast.planning import plan_recipe
from fledge.forecast.text import lines_of
from fledge.localization.messages import translated
from fledge.plan.stage_forecast import measured_time
from fledge.plan.time import Range
from fledge.prediction import Prediction
from fledge.recipe import load_recipe
from fledge.run.console import Console

PRETRAIN = {"data": {"train": "a.jsonl", "max_seq_len": 512}, "batch": {"micro_batch_size": 8}}
GRPO = {"data": {"train": "c.jsonl", "max_seq_len": 512}, "rewards": "exact_match"}


def _forecast(folder: Path, **second: dict[str, Any]) -> RunForecast:
    """The forecast of pretraining and of a second stage on a card."""
    fixed = {"duration": "2 epochs", "schedule": {"warmup": "5%"}}
    stages = {name: {**stage, **fixed} for name, stage in {"pretrain": PRETRAIN, **second}.items()}
    (folder / "r.yaml").write_text(yaml.safe_dump({"preset": "26m", "stages": stages}), encoding="utf-8")
    return plan_recipe(
        load_recipe([str(folder / "r.yaml")]), Console(quiet=True), folder, devices=["T4"], here=False, tokens=["4M"]
    )


def _changed(forecast: RunForecast, **changes: Any) -> list[str]:
    """The lines of a forecast with other values of each stage on the card."""
    stages = [replace(stage, devices=[replace(one, **changes) for one in stage.devices]) for stage in forecast.stages]
    return lines_of(replace(forecast, stages=stages))


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "q.*"])
def test_the_parameters_of_an_adapter_are_exact_or_the_most_that_they_can_be(tmp_path: Path, targets: Any) -> None:
    sft = {"data": {"train": "b.jsonl", "max_seq_len": 512}, "adapter": {"r": 8, "target_modules": targets}}
    forecast = _forecast(tmp_path, sft=sft)
    model = forecast.recipe.model
    both_sides = 2 * model.hidden_size + model.attention_size + model.num_key_value_heads * model.head_size
    exact = model.num_hidden_layers * 8 * both_sides
    planned = forecast.stages[1].inputs.trained  # memory and time count these
    most = forecast.stages[1].inputs.cost.adapter_parameters(8)
    assert exact < most / 2 and planned == (most if isinstance(targets, str) else exact)
    first, second = (line.split("parameters, ")[1].split(";")[0] for line in lines_of(forecast) if "  size: " in line)
    assert not first.startswith("at most")
    assert second == (f"at most {most / 1e6:.1f}M trained" if isinstance(targets, str) else f"{exact / 1e6:.1f}M trained")
    shown = next(translated(line, "zh") for line in lines_of(forecast)[::-1] if "  size: " in line)
    assert "参与训练" in shown and ("不超过" in shown) == isinstance(targets, str)


def test_only_an_estimated_time_is_besides_the_drawing_of_answers(tmp_path: Path) -> None:
    forecast = _forecast(tmp_path, grpo=GRPO)
    assert sum("besides the drawing of answers" in line for line in lines_of(forecast)) == 1
    measured = measured_time(100.0, 10.0, 0.1, "as the stage before it on this machine")
    lines = _changed(forecast, time=measured)
    assert sum("of training (as the stage before it" in line for line in lines) == 2
    assert not any("besides the drawing" in line for line in lines)


def test_the_largest_micro_batch_is_told_with_what_limits_it(tmp_path: Path) -> None:
    forecast = _forecast(tmp_path)
    assert "      largest micro-batch: 8 rows, all rows that a device has of an update" in lines_of(forecast)
    fit = forecast.stages[0].devices[0].fit
    sentences = {
        "memory": "largest micro-batch: 4 rows; more rows do not fit",
        "rows": "largest micro-batch: 4 rows, all rows that a device has of an update",
        "speed": "largest micro-batch: 4 rows; more rows would fit, and would not be faster",
    }
    for limit, sentence in sentences.items():
        assert f"      {sentence}" in _changed(forecast, fit=replace(fit, largest=4, limit=limit))
        assert translated(sentence, "zh").startswith("最大的微批：4 行")
    assert "      not even a micro-batch of one row fits" in _changed(forecast, fit=replace(fit, largest=None))


@pytest.mark.parametrize(
    ("seconds", "english", "chinese"),
    [
        (Range(7200.0, 13200.0), "about 2 to 3.7 h of training", "预计训练约 2 到 3.7 小时"),
        (Range(3600.0, 6600.0), "about 60 to 110 min of training", "预计训练约 60 到 110 分钟"),
        (Range(20.0, 80.0), "about 20 to 80 s of training", "预计训练约 20 到 80 秒"),
        (Range(300.0, 300.0), "about 5 min of training", "预计训练约 5 分钟"),
    ],
)
def test_a_prediction_is_told_in_the_unit_that_suits_it(seconds: Range, english: str, chinese: str) -> None:
    basis = "as the stage before it on this machine"
    line = Prediction(training=seconds, evaluation=Range(0.0, 0.0), memory=2.0**30, updates=9, basis=basis).line()
    assert line.startswith(english) and "1.00 GiB" in line
    assert translated(line, "zh").startswith(chinese)
