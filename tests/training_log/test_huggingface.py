"""trainer_state.json of transformers and TRL, trainer_log.jsonl of LLaMA-Factory, and what stands beside them."""

import json
from pathlib import Path
from typing import Any

import pytest

from fledge.errors import FledgeError
from fledge.training_log import read_logs
from tests.training_log.logs import points


def _state(folder: Path, history: list[dict[str, Any]], **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    state = {"global_step": 20, "max_steps": 50, "num_train_epochs": 1, "train_batch_size": 4, "logging_steps": 5, **more}
    (folder / "trainer_state.json").write_text(json.dumps({**state, "log_history": history}), encoding="utf-8")
    return folder


SFT = [
    {
        "epoch": 0.1,
        "step": 5,
        "loss": 2.5,
        "grad_norm": 1.5,
        "learning_rate": 1e-4,
        "mean_token_accuracy": 0.4,
        "num_tokens": 1e3,
    },
    {"epoch": 0.2, "step": 10, "loss": 2.25, "grad_norm": float("nan"), "learning_rate": 9e-5},
    {"epoch": 0.2, "step": 10, "eval_loss": 2.3, "eval_runtime": 1.0, "eval_samples_per_second": 3.0},
]
LAST = {"epoch": 1.0, "step": 50, "train_runtime": 10.0, "train_loss": 2.1, "total_flos": 1.0}


def test_figures_of_a_run(tmp_path: Path) -> None:
    (log,) = read_logs(_state(tmp_path, [*SFT, LAST], global_step=50))
    assert points(log, "train/loss") == [(5, 2.5), (10, 2.25)]
    assert points(log, "eval/loss") == [(10, 2.3)]
    assert points(log, "train/token_accuracy") == [(5, 0.4)] and points(log, "train/tokens") == [(5, 1000)]
    assert "train_loss" not in log.series and log.events[0]["train_loss"] == 2.1
    assert log.ended is True and log.step_unit == "update" and log.settings.kind is None
    assert (log.settings.steps, log.settings.epochs, log.settings.micro_batch_rows) == (50, 1, 4)
    assert log.unread == {"speed of evaluations": 2}


def test_the_newest_checkpoint_is_read_and_named(tmp_path: Path) -> None:
    _state(tmp_path / "checkpoint-5", SFT[:1], global_step=5)
    _state(tmp_path / "checkpoint-20", SFT)
    (tmp_path / "checkpoint-20" / "training_args.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    (log,) = read_logs(tmp_path)
    assert log.path.endswith("checkpoint-20/trainer_state.json") and log.ended is False
    told = " ".join(log.notes)
    assert "checkpoint-20" in told and "never opened" in told


def test_files_beside_the_state_give_facts(tmp_path: Path) -> None:
    _state(tmp_path, SFT)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 32000, "hidden_size": 512, "tie_word_embeddings": True}))
    adapter = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "peft_type": "LORA", "base_model_name_or_path": "m"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    (tmp_path / "README.md").write_text("It has been trained using [TRL](x).\n\nThis model was trained with SFT.\n")
    (log,) = read_logs(tmp_path)
    settings = log.settings
    assert (settings.vocab_size, settings.hidden_size, settings.other["tie_word_embeddings"]) == (32000, 512, True)
    assert (settings.method, settings.adapter_rank, settings.dropout, settings.initial) == ("lora", 8, 0.05, "trained")
    assert settings.kind == "sft"
    assert "stage" not in settings.other and "trained with SFT" in settings.origin["kind"]


def test_figures_of_preferences_tell_the_kind(tmp_path: Path) -> None:
    record = {
        "step": 5, "loss": 0.69, "rewards/chosen": 0.1, "rewards/rejected": -0.1, "rewards/margins": 0.2,
        "rewards/accuracies": 0.5, "logps/chosen": -100.0, "logps/rejected": -120.0, "logits/chosen": -2.0,
    }  # fmt: skip
    (log,) = read_logs(_state(tmp_path, [record, {"step": 5, "eval_rewards/margins": 0.3}]))
    assert log.settings.kind == "preference"
    assert points(log, "train/rewards/margins") == [(5, 0.2)] and points(log, "eval/rewards/margins") == [(5, 0.3)]
    assert points(log, "train/logits/chosen") == [(5, -2.0)]


def test_figures_of_grpo_tell_the_kind(tmp_path: Path) -> None:
    record = {
        "step": 5, "loss": 0.0, "reward": 0.5, "reward_std": 0.2, "frac_reward_zero_std": 0.25, "kl": 0.01, "entropy": 1.5,
        "completions/mean_length": 40.0, "completions/clipped_ratio": 0.1, "rewards/exact/mean": 0.5,
    }  # fmt: skip
    (log,) = read_logs(_state(tmp_path, [record]))
    assert log.settings.kind == "grpo"
    names = {"reward", "reward_std", "frac_reward_zero_std", "kl", "entropy", "completions/mean_length", "rewards/exact/mean"}
    assert {f"train/{name}" for name in names} <= set(log.series)


def test_a_state_without_records_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FledgeError, match="no log_history"):
        read_logs(_state(tmp_path, []))
    (tmp_path / "trainer_state.json").write_text('{"log_history": [{"st')
    with pytest.raises(FledgeError, match="damaged"):
        read_logs(tmp_path)


def test_llama_factory(tmp_path: Path) -> None:
    lines = [
        {"current_steps": 10, "total_steps": 30, "loss": 2.0, "lr": 1e-4, "epoch": 0.5, "percentage": 33.3,
         "elapsed_time": "0:00:10", "remaining_time": "0:00:20", "throughput": 1234.5, "total_tokens": 4096},
        {"current_steps": 30, "total_steps": 30, "eval_loss": 1.8, "epoch": 1.5, "elapsed_time": "0:01:00"},
    ]  # fmt: skip
    (tmp_path / "trainer_log.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + '{"current', encoding="utf-8"
    )
    (tmp_path / "training_args.yaml").write_text(
        "stage: dpo\nfinetuning_type: lora\nlora_rank: 8\npref_beta: 0.2\nper_device_train_batch_size: 2\n"
        "gradient_accumulation_steps: 8\nlearning_rate: 1.0e-4\nwarmup_ratio: 0.1\nbf16: true\nmodel_name_or_path: q\n"
    )
    (tmp_path / "all_results.json").write_text('{"epoch": 1.5, "eval_loss": 1.8}')
    (log,) = read_logs(tmp_path)
    assert log.source == "LLaMA-Factory trainer_log.jsonl" and log.ended is True
    assert points(log, "train/loss") == [(10, 2.0)] and points(log, "eval/loss") == [(30, 1.8)]
    assert points(log, "system/tokens_per_second") == [(10, 1234.5)]
    settings = log.settings
    assert (settings.kind, settings.method, settings.adapter_rank, settings.beta) == ("preference", "lora", 8, 0.2)
    assert (settings.learning_rate, settings.batch_rows, settings.steps, settings.warmup_steps) == (1e-4, 16, 30, 3)
    assert settings.precision == "bf16" and settings.initial == "trained"
    assert log.unread["a last line that is cut off"] == 1
