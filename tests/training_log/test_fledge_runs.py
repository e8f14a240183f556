"""Runs of fledge, live and done."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fledge.errors import FledgeError
from fledge.training_log import read_logs
from tests.support.report_run import write_run
from tests.training_log.logs import points

RECIPE = """\
name: run
seed: 7
runtime: {precision: auto}
tokenizer: {vocab_size: 2048}
model: {hidden_size: 192, dropout: 0.1, tie_word_embeddings: true}
stages:
  pretrain: {kind: pretrain, optimizer: {name: muon, learning_rate: auto, max_grad_norm: 1.0}, schedule: {name: linear}}
  dpo: {kind: preference, beta: 0.2, loss_type: ipo, adapter: {r: 4, lora_dropout: 0.2}, batch: {micro_batch_size: 4}}
"""
PLAN = {
    "kind": "pretrain", "learning_rate": 0.002, "min_learning_rate": 0.0, "warmup_steps": 3, "steps": 10, "epochs": 2.0,
    "effective_batch_rows": 8, "effective_batch_tokens": 2048, "micro_batch_size": 4, "context": 256, "parameters": 1000,
    "tokens": 20480, "target_tokens": 20480, "optimizer": "muon", "weight_decay": 0.1, "rows": 40, "notes": ["lr = …"],
}  # fmt: skip


def _event(kind: str, step: int, **values: Any) -> str:
    return json.dumps({"kind": kind, "step": step, **values}) + "\n"


def _run(root: Path) -> Path:
    stage = root / "pretrain"
    stage.mkdir(parents=True)
    (root / "recipe.yaml").write_text(RECIPE)
    (stage / "plan.json").write_text(json.dumps(PLAN))
    (stage / "start.json").write_text('{"weights": "x", "source": null, "files": []}')
    (stage / "compute.json").write_text('{"device": "cpu", "precision": "bf16"}')
    report = {"sources": [{"rows": 90, "used_rows": 80, "truncated_rows": 1}], "train": {"examples": 80}, "validation": None}
    (stage / "data_report.json").write_text(json.dumps(report))
    events = [
        _event("start", 0, steps=10, rows=80),
        _event("world_size", 0, world_size=2, parallelism="ddp"),
        _event("step", 1, **{"train/loss": 7.5, "train/lr": 0.002, "train/tokens_by_source": {"a": 5, "b": 6}}),
        _event("startup", 1, ready_seconds=3.0),
        _event("system", 1, **{"system/step_seconds": 0.25, "system/phases": {"data": 0.01}}),
        _event("step", 2, **{"train/loss": None, "router/load": [[1.0, 1.0], [0.5, 1.5]]}),
        _event("eval", 2, **{"eval/loss": 7.25, "eval/samples": [{"prompt": "p"}], "eval/bleu_signature": "x"}),
        _event("guard", 2, check="loss_spike", action="warn"),
        "no event\n",
        '{"kind": "step", "step": 3, "train/lo',
    ]
    (stage / "events.jsonl").write_text("".join(events))
    return root


def test_events_become_figures_and_the_others_are_kept(tmp_path: Path) -> None:
    (log,) = read_logs(_run(tmp_path / "run"))
    steps, values = zip(*points(log, "train/loss"), strict=True)
    assert steps == (1, 2) and values[0] == 7.5 and math.isnan(values[1])
    assert points(log, "train/tokens_by_source/a") == [(1, 5)] and points(log, "system/phases/data") == [(1, 0.01)]
    assert points(log, "router/load/1/1") == [(2, 1.5)] and points(log, "eval/loss") == [(2, 7.25)]
    assert [event["kind"] for event in log.events] == ["start", "world_size", "startup", "guard"]
    assert log.ended is False and log.records == 4 and log.stage == "pretrain"
    assert log.unread["lines that are no events"] == 1 and log.unread["a last line that is cut off"] == 1


def test_settings_come_from_plan_recipe_and_what_was_measured(tmp_path: Path) -> None:
    (log,) = read_logs(_run(tmp_path / "run"))
    settings = log.settings
    assert (settings.kind, settings.initial, settings.method, settings.optimizer) == ("pretrain", "fresh", "full", "muon")
    assert (settings.learning_rate, settings.warmup_steps, settings.steps, settings.epochs) == (0.002, 3, 10, 2)
    assert (settings.batch_rows, settings.micro_batch_rows, settings.processes, settings.accumulation_steps) == (8, 4, 2, 1)
    assert (settings.rows, settings.vocab_size, settings.hidden_size, settings.dropout) == (80, 2048, 192, 0.1)
    assert (settings.precision, settings.schedule, settings.max_grad_norm, settings.seed) == ("bf16", "linear", 1.0, 7)
    assert settings.other["data/truncated_rows"] == 1
    assert settings.origin["learning_rate"] == "plan.json" and settings.origin["seed"] == "recipe.yaml"


def test_a_later_stage_with_an_adapter(tmp_path: Path) -> None:
    root = _run(tmp_path / "run")
    (root / "dpo").mkdir()
    (root / "dpo" / "plan.json").write_text(json.dumps({**PLAN, "kind": "preference"}))
    (root / "dpo" / "events.jsonl").write_text(_event("step", 1, **{"train/loss": 0.6931}))
    (root / "dpo" / "result.json").write_text('{"trained_parameters": 12, "step": 1, "stop": null}')
    assert [log.stage for log in read_logs(root)] == ["pretrain", "dpo"]
    (log,) = read_logs(root, stage="dpo")
    settings = log.settings
    assert (settings.method, settings.adapter_rank, settings.initial, settings.beta) == ("lora", 4, "trained", 0.2)
    assert (settings.loss_type, settings.dropout, settings.trained_parameters) == ("ipo", 0.2, 12) and log.ended is True


def test_a_stage_or_its_events_can_be_named(tmp_path: Path) -> None:
    root = _run(tmp_path / "run")
    for target in (root / "pretrain", root / "pretrain" / "events.jsonl"):
        (log,) = read_logs(target)
        assert log.stage == "pretrain" and log.settings.seed == 7


def test_what_roll_backs_took_back_is_told(tmp_path: Path) -> None:
    root = _run(tmp_path / "run")
    (root / "pretrain" / "events.rolled_back.1.jsonl").write_text(_event("step", 3) + _event("step", 4))
    (log,) = read_logs(root)
    assert "A roll-back took 2 events back: they are in events.rolled_back.1.jsonl and not read here." in log.notes


def test_a_whole_run_with_three_stages(tmp_path: Path) -> None:
    pretrain, sft, dpo = read_logs(write_run(tmp_path / "run", steps=40))
    assert (pretrain.settings.initial, sft.settings.initial) == ("fresh", "trained")
    assert dpo.settings.kind == "preference" and "train/rewards/margins" in dpo.series
    assert sft.unread == {"lines that are no events": 1} and sft.series["train/loss"].steps[-1] == 40


def test_a_run_that_has_not_begun_is_an_error(tmp_path: Path) -> None:
    root = _run(tmp_path / "run")
    (root / "pretrain" / "events.jsonl").unlink()
    with pytest.raises(FledgeError, match="begun"):
        read_logs(root)
