"""Settings of --config and --given reach the reader of the log, and what follows from them."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from fledge.doctor import given_words
from fledge.doctor.examine import NUMBERS, examine
from fledge.doctor.options import DoctorOptions
from fledge.errors import FledgeError
from fledge.training_log import TrainingLog, TrainingSettings

MINIMIND = "".join(
    f"Epoch:[{epoch}/2]({step}/1600), loss: {9 - epoch - step / 1600:.3f}, lr: 0.000549, epoch_time: 30.0min\n"
    for epoch in (1, 2)
    for step in range(80, 1601, 80)
)


def read(folder: Path, **options: object) -> TrainingLog:
    """The log of minimind as the doctor reads it."""
    file = folder / "train.log"
    file.write_text(MINIMIND)
    (one,) = examine(file, DoctorOptions(depth="curves", **options))  # type: ignore[arg-type]
    return one.case.log


def test_steps_become_updates_by_what_is_given(tmp_path: Path) -> None:
    assert read(tmp_path).step_unit == "micro-batch"
    (tmp_path / "config.yaml").write_text("accumulation_steps: 8\nbatch_size: 4\n")
    for options in ({"given": {"accumulation_steps": "8"}}, {"config": tmp_path / "config.yaml"}):
        log = read(tmp_path, **options)
        assert log.step_unit == "update" and log.series["train/loss"].steps[[0, -1]].tolist() == [10, 400]
        assert log.settings.accumulation_steps == 8


WORDS = [
    ("kind", "dpo", "preference"), ("kind", "DPO", "preference"), ("kind", "pt", "pretrain"), ("kind", "rm", "reward"),
    ("initial", "scratch", "fresh"), ("initial", "pretrained", "trained"), ("method", "QLoRA", "qlora"),
    ("method", "full_finetuning", "full"), ("schedule", "constant_with_warmup", "constant"), ("precision", "bfloat16", "bf16"),
    ("schedule", "cosine_with_restarts", "cosine_with_restarts"), ("precision", "tf32", "tf32"),
    ("optimizer", "torch.optim.AdamW", "adamw"), ("optimizer", "paged_adamw_8bit", "paged_adamw_8bit"),
    ("loss_type", "dpo", "sigmoid"), ("loss_type", "another", "another"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "written", "meant"), WORDS)
def test_a_word_means_what_it_means_in_a_configuration(tmp_path: Path, name: str, written: str, meant: str) -> None:
    assert getattr(read(tmp_path, given={name: written}).settings, name) == meant


@pytest.mark.parametrize(
    ("name", "listed"),
    [("kind", "dpo"), ("initial", "fresh"), ("method", "lora"), ("schedule", "cosine"), ("precision", "bf16"),
     ("optimizer", "adamw"), ("loss_type", "ipo")],
)  # fmt: skip
def test_an_unknown_word_is_refused_with_the_known_ones(tmp_path: Path, name: str, listed: str) -> None:
    for word in ("speed", ""):
        with pytest.raises(FledgeError, match=f"knows no {name} '{word}'") as error:
            read(tmp_path, given={name: word})
        assert listed in (error.value.hint or "")


def test_every_setting_that_is_a_word_has_its_words() -> None:
    texts = {one.name for one in fields(TrainingSettings)} - NUMBERS - {"other", "origin"}
    assert set(given_words.WORDS) == texts


def test_a_method_that_names_a_loss_gives_it(tmp_path: Path) -> None:
    assert read(tmp_path, given={"kind": "simpo"}).settings.loss_type == "simpo"
    assert read(tmp_path, given={"kind": "simpo", "loss_type": "ipo"}).settings.loss_type == "ipo"


def test_a_given_kind_does_not_hide_its_causes(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    points = [{"step": step, "loss": 0.6931 + 0.002 * step, "rewards/accuracies": 0.1, "rewards/margins": -0.004 * step}
              for step in range(1, 101)]  # fmt: skip
    file.write_text("".join(json.dumps(point) + "\n" for point in points))
    for given in ({}, {"kind": "dpo"}, {"kind": "preference"}):
        (one,) = examine(file, DoctorOptions(depth="curves", given=given))
        assert "chosen and rejected swapped" in [found.cause for found in one.diagnoses.found], given


def test_what_follows_from_given_settings(tmp_path: Path) -> None:
    given = {"micro_batch_rows": "8", "accumulation_steps": "4", "processes": "1", "rows": "3200", "epochs": "2"}
    settings = read(tmp_path, given=given).settings
    assert (settings.batch_rows, settings.steps) == (32, 200)
    assert read(tmp_path, given={**given, "batch_rows": "64"}).settings.steps == 100


def test_a_given_batch_changes_what_followed_from_that_of_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("batch_size: 8\naccumulation_steps: 4\nnum_examples: 3200\nepochs: 2\n")
    config = tmp_path / "config.yaml"
    assert read(tmp_path, config=config).settings.steps == 200
    assert read(tmp_path, config=config, given={"batch_rows": "64"}).settings.steps == 100


def test_a_stage_names_a_section_where_the_log_has_no_stages(tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    config.write_text("class TrainConfig:\n    epochs: int = 8\n\nclass TrainConfigSFT:\n    epochs: int = 5\n")
    assert read(tmp_path, config=config).settings.epochs == 8
    assert read(tmp_path, config=config, stage="SFT").settings.epochs == 5
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        "stages:\n  sft: {kind: sft, data: {train: a.jsonl}, duration: 3 epochs, init_from: m}\n"
        "  dpo: {kind: preference, data: {train: p.jsonl}, beta: 0.3}\n"
    )
    with pytest.raises(FledgeError, match="several stages"):
        read(tmp_path, config=recipe)
    assert read(tmp_path, config=recipe, stage="dpo").settings.beta == 0.3
    with pytest.raises(FledgeError, match="no stage 'SFT' with a log here"):
        read(tmp_path, stage="SFT")


def test_a_log_with_named_runs_and_a_recipe_of_one_stage(tmp_path: Path) -> None:
    (tmp_path / "export.csv").write_text('"Step","run-a - train/loss","run-b - train/loss"\n1,"2.5","3.5"\n2,"2.4","3.4"\n')
    recipe = tmp_path / "recipe.yml"
    recipe.write_text("stages:\n  sft: {kind: sft, data: {train: a.jsonl}, duration: 3 epochs, init_from: m}\n")
    options = DoctorOptions(depth="curves", config=recipe)
    found = examine(tmp_path / "export.csv", options)
    assert [(one.stage, one.case.settings.epochs) for one in found] == [("run-a", 3), ("run-b", 3)]
