"""What a user says beside a log: settings, columns, a stage."""

import json
import os
from pathlib import Path

import pytest

from fledge.errors import FledgeError
from fledge.training_log import TrainingSettings, read_logs, read_settings
from tests.training_log.logs import points, read_text_log


def _lines(file: Path, *records: dict[str, object]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def test_a_figure_of_whole_runs_that_the_user_names(tmp_path: Path) -> None:
    file = _lines(tmp_path / "a.jsonl", {"step": 1, "train/train_loss": 2.5}, {"step": 2, "train/train_loss": 2.0})
    (log,) = read_logs(file, columns={"train/loss": "train/train_loss"})
    assert points(log, "train/loss") == [(1, 2.5), (2, 2.0)]


def test_a_column_that_is_not_there_is_told_for_a_folder_too(tmp_path: Path) -> None:
    _lines(tmp_path / "a.jsonl", {"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.0})
    (tmp_path / "words.csv").write_text("word,count\nx,1\ny,2\n")
    with pytest.raises(FledgeError, match="no column 'objective'") as error:
        read_logs(tmp_path, columns={"train/loss": "objective"})
    assert "loss" in (error.value.hint or "")


def test_a_configuration_that_cannot_be_read_is_told_for_a_folder_too(tmp_path: Path) -> None:
    _lines(tmp_path / "a.jsonl", {"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.0})
    with pytest.raises(FledgeError, match="does not exist"):
        read_logs(tmp_path, settings=lambda stage: read_settings(tmp_path / "no.yaml"))


EXPORT = '"Step","run-a - train/loss","run-b - train/loss","run-b - train/my"\n1,"2.5","3.5","4.5"\n2,"2.4","3.4","4.4"\n'


def test_columns_are_looked_for_in_the_chosen_run_alone(tmp_path: Path) -> None:
    (tmp_path / "export.csv").write_text(EXPORT)
    columns = {"train/loss": "train/my"}
    (log,) = read_logs(tmp_path / "export.csv", columns=columns, stage="run-b")
    assert points(log, "train/loss") == [(1, 4.5), (2, 4.4)]
    with pytest.raises(FledgeError, match="no column"):
        read_logs(tmp_path / "export.csv", columns=columns)
    with pytest.raises(FledgeError, match="no stage 'run-c'") as error:
        read_logs(tmp_path / "export.csv", stage="run-c")
    assert "run-a, run-b" in (error.value.hint or "")


def test_settings_by_the_name_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "export.csv").write_text(EXPORT)
    logs = read_logs(tmp_path / "export.csv", settings=lambda stage: TrainingSettings(loss_type=stage))
    assert [log.settings.loss_type for log in logs] == ["run-a", "run-b"]


def test_a_stage_of_a_run_is_chosen_before_its_figures_are_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("stages:\n  pretrain: {}\n  sft: {}\n")
    for stage, figure in (("pretrain", "train/loss"), ("sft", "train/other")):
        (tmp_path / stage).mkdir()
        events = [{"kind": "step", "step": step, figure: 2.5} for step in (1, 2)]
        _lines(tmp_path / stage / "events.jsonl", *events)
    (log,) = read_logs(tmp_path, columns={"train/loss": "train/other"}, stage="sft")
    assert log.stage == "sft" and points(log, "train/loss") == [(1, 2.5), (2, 2.5)]
    with pytest.raises(FledgeError, match="no figure 'train/other'"):
        read_logs(tmp_path, columns={"train/loss": "train/other"})
    with pytest.raises(FledgeError, match="no stage 'dpo'") as error:
        read_logs(tmp_path, stage="dpo")
    assert "pretrain, sft" in (error.value.hint or "")


CLASSES = "class TrainConfig:\n    epochs: int = 8\n\nclass TrainConfigSFT:\n    epochs: int = 5\n"


def test_a_stage_is_a_section_where_a_log_has_none(tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text(CLASSES)
    text = "step 1 loss: 2.5\nstep 2 loss: 2.4\n"
    settings = read_settings(tmp_path / "config.py", stage="SFT")
    assert read_text_log(tmp_path, text, stage="SFT", settings=settings).settings.epochs == 5
    with pytest.raises(FledgeError, match="no stage 'SFT'"):
        read_text_log(tmp_path, text, stage="SFT")
    with pytest.raises(FledgeError, match="no stage 'dpo'"):
        read_text_log(tmp_path, text, stage="dpo", settings=read_settings(tmp_path / "config.py", stage="dpo"))


def test_a_stage_is_a_class_in_a_document(tmp_path: Path) -> None:
    text = f"# Notes\n\n```\nstep 1 loss: 2.5\nstep 2 loss: 2.4\n```\n\n```python\n{CLASSES}```\n"
    assert read_text_log(tmp_path, text).settings.epochs == 8
    assert read_text_log(tmp_path, text, stage="SFT").settings.epochs == 5


def _event_file(file: Path, points: list[tuple[int, float]]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(file.parent / "new"))
    for step, value in points:
        writer.add_scalar("train/loss", value, step)
    writer.close()
    (written,) = (file.parent / "new").iterdir()
    written.rename(file)
    (file.parent / "new").rmdir()


@pytest.mark.parametrize(
    "names", [("1700000000.b.1.0", "1700003600.a.1.0"), ("1700000000.h.1.9", "1700000000.h.1.10"), ("b", "a")]
)
def test_event_files_of_one_time_are_in_the_order_of_their_beginnings(tmp_path: Path, names: tuple[str, str]) -> None:
    parts = ([(1, 2.5), (2, 2.4), (3, 2.3)], [(2, 1.4), (3, 1.3), (4, 1.2)])
    for place, (name, part) in enumerate(zip(names, parts, strict=True)):
        file = tmp_path / f"events.out.tfevents.{name}"
        _event_file(file, part)
        os.utime(file, (2_000 - place, 2_000 - place))
    (log,) = read_logs(tmp_path)
    assert [round(value, 3) for _, value in points(log, "train/loss")] == [2.5, 1.4, 1.3, 1.2]
