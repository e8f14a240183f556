"""Configurations of every trainer become the same settings."""

from pathlib import Path
from typing import Any

import pytest

from fledge.errors import FledgeError
from fledge.training_log import TrainingSettings, read_settings
from tests.training_log.logs import DOCUMENT

ARGUMENTS = """\
TrainingArguments(
_n_gpu=1,
bf16=True,
gradient_accumulation_steps=4,
learning_rate=2e-05,
lr_scheduler_type=SchedulerType.COSINE,
max_steps=-1,
num_train_epochs=3,
optim=OptimizerNames.ADAMW_TORCH_FUSED,
per_device_train_batch_size=8,
seed=42,
warmup_ratio=0.03,
)
"""
AXOLOTL = """\
base_model: some/model
adapter: qlora
load_in_4bit: true
lora_r: 32
lora_dropout: 0.05
sequence_len: 4096
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 4
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002
warmup_steps: 10
"""
TORCHTUNE = """\
tokenizer: {_component_: torchtune.x, max_seq_len: 2048}
optimizer: {_component_: torch.optim.AdamW, lr: 2e-5, weight_decay: 0.01}
lr_scheduler: {num_warmup_steps: 100}
batch_size: 2
epochs: 3
gradient_accumulation_steps: 8
dtype: bf16
"""
LITGPT = """\
precision: bf16-true
devices: 4
lora_r: 8
train: {global_batch_size: 64, micro_batch_size: 4, lr_warmup_steps: 100, epochs: 2, max_seq_length: 512}
optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.0002, weight_decay: 0.1}}
"""
MINIMIND = """\
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=2, help="x")
parser.add_argument("--batch_size", type=int, default=16)
parser.add_argument("--learning_rate", type=float, default=5e-7)
parser.add_argument("--dtype", type=str, default="bfloat16")
parser.add_argument("--accumulation_steps", type=int, default=8)
parser.add_argument('--max_seq_len', default=340, type=int)
"""
NANOGPT = "init_from = 'scratch'\nbatch_size = 12\nblock_size = 1024\ngradient_accumulation_steps = 5 * 8\nmin_lr = 6e-5\n"
COMMAND = (
    "torchrun --nproc_per_node 2 train.py --learning_rate 1e-4 \\\n  --per_device_train_batch_size=8 --num_train_epochs 3\n"
)
DPO = '{"per_device_train_batch_size": 4, "beta": 0.1, "loss_type": ["sigmoid"], "precompute_ref_log_probs": false}'

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "args.txt": (
        ARGUMENTS,
        {
            "learning_rate": 2e-5,
            "schedule": "cosine",
            "epochs": 3,
            "batch_rows": 32,
            "precision": "bf16",
            "seed": 42,
            "steps": None,
        },
    ),
    "axolotl.yml": (AXOLOTL, {"method": "qlora", "adapter_rank": 32, "dropout": 0.05, "context": 4096, "initial": "trained"}),
    "tune.yaml": (
        TORCHTUNE,
        {"learning_rate": 2e-5, "warmup_steps": 100, "context": 2048, "batch_rows": 16, "weight_decay": 0.01},
    ),
    "litgpt.yaml": (LITGPT, {"batch_rows": 64, "accumulation_steps": 4, "processes": 4, "method": "lora", "precision": "bf16"}),
    "train.py": (MINIMIND, {"learning_rate": 5e-7, "batch_rows": 128, "epochs": 2, "precision": "bf16", "context": 340}),
    "config.py": (NANOGPT, {"initial": "fresh", "accumulation_steps": 40, "min_learning_rate": 6e-5, "context": 1024}),
    "run.sh": (COMMAND, {"processes": 2, "batch_rows": 16, "learning_rate": 1e-4, "epochs": 3}),
    "args.json": (DPO, {"kind": "preference", "beta": 0.1, "loss_type": "sigmoid"}),
    "notes.md": (DOCUMENT, {"learning_rate": 1e-5, "batch_rows": 192, "rows": 80_000, "kind": "sft", "steps": 2083}),
    "zh.txt": ("学习率：1e-5\n批大小：24\n梯度累积：4\n卡数：2\n", {"learning_rate": 1e-5, "batch_rows": 192}),
}


@pytest.mark.parametrize("name", CASES)
def test_settings_of(tmp_path: Path, name: str) -> None:
    text, expected = CASES[name]
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = read_settings(tmp_path / name)
    assert {key: getattr(found, key) for key in expected} == expected
    assert all(key in found.origin for key, value in expected.items() if value is not None)


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    file, mark = tmp_path / "evil.py", tmp_path / "mark"
    file.write_text(f"learning_rate = 1e-3\nopen({str(mark)!r}, 'w').write('x')\nepochs = 10 ** 10 ** 10\n")
    assert read_settings(file).learning_rate == 1e-3 and not mark.exists()
    tagged = tmp_path / "evil.yaml"
    tagged.write_text(f"learning_rate: 1e-3\nx: !!python/object/apply:builtins.open [{str(mark)!r}, 'w']\n")
    assert read_settings(tagged).learning_rate == 1e-3 and not mark.exists()


def test_what_is_not_known_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("learning_rate: 1e-3\nmy_option: 5\nnested: {deep: x}\n")
    other = read_settings(tmp_path / "a.yaml").other
    assert (other["my_option"], other["nested.deep"]) == (5, "x")


def test_a_recipe_of_fledge(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "stages:\n  sft: {kind: sft, data: {train: a.jsonl}, duration: 3 epochs, init_from: m, adapter: {r: 4},\n"
        "        optimizer: {learning_rate: 2e-5}, batch: {micro_batch_size: 4, gradient_accumulation_steps: 2}}\n"
        "  dpo: {kind: preference, data: {train: p.jsonl}, beta: 0.3}\n"
    )
    with pytest.raises(FledgeError, match="several stages") as error:
        read_settings(file)
    assert "sft, dpo" in (error.value.hint or "")
    sft = read_settings(file, stage="sft")
    assert (sft.kind, sft.method, sft.adapter_rank, sft.learning_rate, sft.epochs) == ("sft", "lora", 4, 2e-5, 3)
    assert (sft.batch_rows, sft.initial, sft.vocab_size) == (8, "trained", None)
    assert read_settings(file, stage="dpo").beta == 0.3


def test_classes_of_several_stages(tmp_path: Path) -> None:
    file = tmp_path / "config.py"
    file.write_text(
        "class TrainConfig:\n    epochs: int = 8\n\nclass TrainConfigSFT:\n    epochs: int = 5\n    warmup_steps = 100\n"
    )
    first = read_settings(file)
    assert first.epochs == 8 and "TrainConfigSFT" in first.other["assumed"][0]
    chosen = read_settings(file, stage="sft")
    assert (chosen.epochs, chosen.kind) == (5, "sft")


def test_no_settings_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("nothing of interest\n")
    with pytest.raises(FledgeError, match="no setting"):
        read_settings(tmp_path / "a.txt")
    with pytest.raises(FledgeError, match="does not exist"):
        read_settings(tmp_path / "b.txt")
    (tmp_path / "c.yaml").write_text("a: [1, 2\n")
    with pytest.raises(FledgeError, match="YAML"):
        read_settings(tmp_path / "c.yaml")


def test_what_is_derived_does_not_replace_what_is_written() -> None:
    written = TrainingSettings(batch_rows=192, origin={"batch_rows": "the log"})
    later = TrainingSettings(batch_rows=96, learning_rate=1e-5, origin={"batch_rows": "derived: …", "learning_rate": "config"})
    assert written.updated(later).batch_rows == 192 and written.updated(later).learning_rate == 1e-5
    assert later.updated(written).batch_rows == 192


@pytest.mark.parametrize(
    ("written", "schedule"),
    [("cosine_with_restarts", "cosine_with_restarts"), ("inverse_sqrt", "inverse_sqrt"), ("cosine_with_min_lr", "cosine")],
)
def test_a_schedule_of_another_course_is_not_taken_for_the_nearest_one_of_a_recipe(
    tmp_path: Path, written: str, schedule: str
) -> None:
    file = tmp_path / "arguments.yaml"
    file.write_text(f"learning_rate: 1e-4\nnum_train_epochs: 3\nlr_scheduler_type: {written}\n")
    assert read_settings(file).schedule == schedule
