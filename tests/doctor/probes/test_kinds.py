"""Probes of the other kinds of stage and models, and of model directories that no run belongs to."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fledge.doctor.probes import ProbeReport, probe_directory, probe_run
from fledge.errors import FledgeError
from fledge.model.decoder import Decoder
from fledge.model.moe import Router
from fledge.recipe.schema import ModelConfig
from fledge.training import rollout_source
from tests.support import small_runs

EXPERTS = {**small_runs.MODEL, "qk_norm": True, "moe": {"num_experts": 4, "num_experts_per_tok": 2}}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of rows, with a link to a model that knows a half of them."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "model").symlink_to(small_runs.start_model(folder))
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    labelled = [
        {"prompt": pair["prompt"], "completion": pair["chosen" if number % 2 else "rejected"], "label": bool(number % 2)}
        for number, pair in enumerate(pairs)
    ]
    small_runs.write_jsonl(folder / "labelled.jsonl", labelled)
    return folder


def _trained(start: Path, output: Path, kind: str, rows: str, **more: Any) -> Path:
    """A run of one stage of two updates from the start model."""
    stage = {
        "kind": kind,
        "init_from": str(start / "model"),
        "data": {"train": str(start / rows), "validation": 0.25},
        "batch": {"micro_batch_size": 8},
        "optimizer": {"learning_rate": 1e-3},
        "duration": "2 steps",
        **more,
    }
    return small_runs.train(output, stage)


def _value(report: ProbeReport, name: str) -> Any:
    assert f"probe/{name}" in report.figures, report.left_out.get(f"probe/{name}")
    return report.figures[f"probe/{name}"].value


def _is_sound(report: ProbeReport) -> None:
    """The figures that every kind of stage has to have."""
    assert not any("failed with" in reason for reason in report.left_out.values()), report.left_out
    assert _value(report, "accumulation_ratio") == pytest.approx(1, abs=2e-3)
    for name in ("unchanged_tensors", "changed_frozen", "missing_from_optimizer", "unmoved_tensors", "files_damaged"):
        assert _value(report, name) == []
    for name in ("future_leak", "padding_leak", "two_passes", "evaluation_dropout"):
        assert _value(report, name) == pytest.approx(0, abs=1e-4)


def test_labelled_answers(start: Path, tmp_path: Path) -> None:
    report = probe_run(_trained(start, tmp_path, "kto", "labelled.jsonl"), "kto")
    _is_sound(report)
    assert _value(report, "shift_gradient") == 1
    assert _value(report, "reference_loss") == pytest.approx(0.5, abs=1e-5) == _value(report, "reference_loss_expected")
    assert _value(report, "reference_moved") == pytest.approx(0, abs=1e-4)
    assert _value(report, "preference_loss_slope") < -0.005 and _value(report, "beta_effect") < -0.005


def test_a_reward_model_has_no_losses_of_tokens_and_falls_when_rewards_part(start: Path, tmp_path: Path) -> None:
    report = probe_run(_trained(start, tmp_path, "reward", "pairs.jsonl"), "reward")
    _is_sound(report)
    assert _value(report, "preference_loss_slope") < -0.1
    for name in ("shift_gradient", "training_loss", "ended", "head_tied"):
        assert report.left_out[f"probe/{name}"] == "a reward model has no head for tokens"


def test_the_last_target_of_an_answer_that_was_cut_counts_for_the_reference_too(start: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (start / "pairs.jsonl").read_text().splitlines()]
    long = [{**row, "chosen": " ".join([row["chosen"]] * 12)} for row in rows]
    small_runs.write_jsonl(start / "long.jsonl", long)
    run = _trained(start, tmp_path, "preference", "long.jsonl")
    source = json.loads((run / "preference/data_report.json").read_text())["sources"][0]
    assert source["truncated_rows"] == len(rows)
    report = probe_run(run, "preference", only={"probe/reference_moved", "probe/reference_loss"})
    assert _value(report, "reference_moved") == pytest.approx(0, abs=1e-4)
    assert _value(report, "reference_loss") == pytest.approx(0.6931472, abs=1e-5)


@pytest.mark.parametrize("loss_type", ["ipo", "hinge", "simpo"])
def test_losses_of_pairs_by_their_type(start: Path, tmp_path: Path, loss_type: str) -> None:
    report = probe_run(_trained(start, tmp_path, "preference", "pairs.jsonl", loss_type=loss_type), "preference")
    _is_sound(report)
    expected = {"ipo": 25.0, "hinge": 1.0}.get(loss_type)
    if expected is None:
        assert "no reference" in report.left_out["probe/reference_loss"]
        return
    assert _value(report, "reference_loss_expected") == pytest.approx(expected)
    assert _value(report, "reference_loss") == pytest.approx(expected, abs=1e-3)
    assert _value(report, "preference_loss_slope") < 0 and _value(report, "beta_effect") < 0


def test_advantages_compare_answers_to_one_prompt(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewards = ["exact_match", {"rule": "length", "max_tokens": 12, "weight": 0.5}]
    rollout = {"max_new_tokens": 14, "num_generations": 4}
    run = _trained(start, tmp_path, "grpo", "mixed.jsonl", rewards=rewards, rollout=rollout, batch={"micro_batch_size": 2})
    report = probe_run(run, "grpo")
    _is_sound(report)
    assert _value(report, "advantage_alignment") == pytest.approx(1, abs=1e-4)
    original = rollout_source.group_advantages

    def of_wrong_groups(totals: np.ndarray, scale: str) -> np.ndarray:
        return original(totals.T.reshape(totals.shape), scale)

    monkeypatch.setattr(rollout_source, "group_advantages", of_wrong_groups)
    report = probe_run(run, "grpo", only={"probe/advantage_alignment"})
    assert _value(report, "advantage_alignment") < 0.8


@pytest.fixture(scope="module")
def experts(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a mixture of experts with new weights."""
    stage = {
        "kind": "sft", "data": {"train": str(start / "mixed.jsonl"), "validation": 0.25}, "batch": {"micro_batch_size": 8},
        "optimizer": {"learning_rate": 1e-3}, "duration": "2 steps",
    }  # fmt: skip
    return small_runs.train(tmp_path_factory.mktemp("experts"), stage, model=EXPERTS, tokenizer={"path": str(start / "model")})


def test_the_load_of_experts(experts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = probe_run(experts, "sft")
    _is_sound(report)
    assert 1 <= _value(report, "expert_load") < 2 and _value(report, "dead_experts") == 0
    original = Router.forward

    def collapsed(self: Router, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits, probabilities, chosen, weights = original(self, x)
        return logits, probabilities, torch.arange(chosen.shape[1]).expand_as(chosen), weights

    monkeypatch.setattr(Router, "forward", collapsed)
    report = probe_run(experts, "sft", only={"probe/expert_load", "probe/dead_experts"})
    assert _value(report, "expert_load") == pytest.approx(2) and _value(report, "dead_experts") == pytest.approx(0.5)


# -- model directories ------------------------------------------------------------------------------------------------------


def test_a_model_directory_with_data_files(start: Path) -> None:
    report = probe_directory(start / "model", files=[start / "known.jsonl"])
    assert report.step is None
    assert _value(report, "answer_loss") < 1 < _value(report, "prompt_loss")
    assert _value(report, "ended") == 1 and _value(report, "end_probability") > 0.5
    offsets = _value(report, "loss_at_offsets")
    assert offsets.index(min(offsets)) == 1
    assert _value(report, "head_tied") is True and _value(report, "files_damaged") == []
    assert report.left_out["probe/accumulation_ratio"] == "it needs a run of fledge, with its recipe"
    assert report.left_out["probe/base_answer_loss"] == "the model that this one started from was not named"


def test_a_start_model_gives_the_figures_before_training(start: Path, tmp_path: Path) -> None:
    model = Decoder(ModelConfig(**small_runs.MODEL), json.loads((start / "model" / "config.json").read_text())["vocab_size"])
    model.init_weights(0)
    model.save_pretrained(tmp_path, bos=None, eos=[0], pad=0)
    names = {"probe/base_answer_loss", "probe/answer_loss"}
    report = probe_directory(start / "model", files=[start / "known.jsonl"], start=tmp_path, only=names)
    assert _value(report, "base_answer_loss") > 4 > _value(report, "answer_loss")


def test_a_model_directory_alone_and_rows_of_no_known_kind(start: Path, tmp_path: Path) -> None:
    report = probe_directory(start / "model", kind="sft")
    assert set(report.figures) == {"probe/files_damaged", "probe/head_tied", "probe/embedding_rows_unused"}
    assert report.left_out["probe/training_loss"] == "no data files were named"
    file = tmp_path / "odd.jsonl"
    file.write_text('{"x": 1}\n')
    with pytest.raises(FledgeError, match="cannot tell what the rows are"):
        probe_directory(start / "model", files=[file])
