"""JSON lines, JSON, CSV and TSV with names of any kind."""

import gzip
import json
import math
from pathlib import Path

import pytest

from fledge.errors import FledgeError
from fledge.training_log import read_logs
from tests.training_log.logs import points


def _write(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    file = folder / name
    file.write_text(text, encoding=encoding)
    return file


def test_json_lines_are_read_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    text = (
        '{"step": 1, "loss": NaN, "inner": {"kl": 1.5}, "name": "x", "none": null}\nbroken\n'
        '{"step": 2, "loss": 2.0}\n{"step": 3, "lo'
    )
    (log,) = read_logs(_write(tmp_path, "a.jsonl", text))
    steps, values = zip(*points(log, "train/loss"), strict=True)
    assert steps == (1, 2) and math.isnan(values[0]) and values[1] == 2.0
    assert points(log, "inner/kl") == [(1, 1.5)]
    assert log.unread == {
        "column name: not numbers": 1,
        "lines that are no JSON objects": 1,
        "a last line that is cut off": 1,
    }
    assert any("cut off" in note for note in log.notes)


def test_gzip_is_unpacked(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.25}\n'))
    (log,) = read_logs(file)
    assert points(log, "train/loss") == [(1, 2.5), (2, 2.25)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gbk", "utf-16", "utf-32"])
def test_chinese_columns_in_several_encodings(tmp_path: Path, encoding: str) -> None:
    text = "步数,损失,学习率,轮次,验证损失,梯度范数,备注\n10,3.1,1e-4,0.1,,1.2,好\n20,2.9,1e-4,0.2,3.0,1.1,\n"
    (log,) = read_logs(_write(tmp_path, "a.csv", text, encoding))
    assert points(log, "train/loss") == [(10, 3.1), (20, 2.9)]
    assert points(log, "eval/loss") == [(20, 3.0)]
    assert points(log, "train/grad_norm") == [(10, 1.2), (20, 1.1)]
    assert points(log, "train/epoch") == [(10, 0.1), (20, 0.2)]
    assert log.unread["column 备注: not numbers"] == 1


def test_names_are_told_and_unknown_columns_keep_theirs(tmp_path: Path) -> None:
    (log,) = read_logs(_write(tmp_path, "a.csv", "global_step,train_loss,weird,lr\n1,2.5,7,1e-3\n2,2.4,8,1e-3\n"))
    assert points(log, "weird") == [(1, 7), (2, 8)]
    assert "Names: train_loss is train/loss." in log.notes


def test_columns_are_named_by_the_user(tmp_path: Path) -> None:
    file = _write(tmp_path, "a.csv", "n,objective,loss\n5,2.5,1\n6,2.4,1\n")
    (log,) = read_logs(file, columns={"train/loss": "objective", "step": "n"})
    assert points(log, "train/loss") == [(5, 2.5), (6, 2.4)]
    with pytest.raises(FledgeError, match="no column 'objektive'") as error:
        read_logs(file, columns={"train/loss": "objektive"})
    assert "objective" in (error.value.hint or "")


def test_a_table_without_known_names_is_an_error_that_shows_them(tmp_path: Path) -> None:
    with pytest.raises(FledgeError, match="alpha, beta_x") as error:
        read_logs(_write(tmp_path, "a.csv", "alpha,beta_x\n1,2\n3,4\n"))
    assert "--columns" in (error.value.hint or "")


def test_semicolons_and_decimal_commas(tmp_path: Path) -> None:
    (log,) = read_logs(_write(tmp_path, "a.csv", "step;loss\n1;2,5\n2;2,25\n"))
    assert points(log, "train/loss") == [(1, 2.5), (2, 2.25)]


def test_percentages_and_units(tmp_path: Path) -> None:
    (log,) = read_logs(_write(tmp_path, "a.csv", "step,loss,accuracy,step_time\n1,2.5,45.5,120ms\n2,2.4,46.5,110ms\n"))
    assert points(log, "train/token_accuracy") == [(1, 0.455), (2, 0.465)]
    assert [value for _, value in points(log, "system/step_seconds")] == pytest.approx([0.12, 0.11])


def test_the_history_of_keras(tmp_path: Path) -> None:
    (log,) = read_logs(_write(tmp_path, "history.json", json.dumps({"loss": [1.0, 0.9], "val_loss": [1.1, 1.0]})))
    assert points(log, "eval/loss") == [(1, 1.1), (2, 1.0)] and log.step_unit == "record"


def test_an_export_of_wandb_is_a_log_for_each_run(tmp_path: Path) -> None:
    text = (
        '"Step","run-a - train/loss","run-a - train/loss__MIN","run-b - train/loss","run-b - train/loss__MIN"\n'
        '1,"2.5","2.5","",""\n2,"2.4","2.4","3.1","3.1"\n'
    )
    first, second = read_logs(_write(tmp_path, "export.csv", text))
    assert (first.stage, points(first, "train/loss")) == ("run-a", [(1, 2.5), (2, 2.4)])
    assert (second.stage, points(second, "train/loss")) == ("run-b", [(2, 3.1)])
    (chosen,) = read_logs(tmp_path / "export.csv", stage="run-b")
    assert chosen.stage == "run-b"
    with pytest.raises(FledgeError, match="no stage 'run-c'"):
        read_logs(tmp_path / "export.csv", stage="run-c")


def test_an_export_of_tensorboard_has_its_name_in_the_file(tmp_path: Path) -> None:
    text = "Wall time,Step,Value\n1.7e9,10,2.5\n1.7e9,20,2.4\n"
    (log,) = read_logs(_write(tmp_path, "run-a-tag-train_loss.csv", text))
    assert points(log, "train/loss") == [(10, 2.5), (20, 2.4)] and list(log.series) == ["train/loss"]


def test_a_folder_with_one_log_is_that_log(tmp_path: Path) -> None:
    _write(tmp_path, "notes.txt", "nothing of interest\n")
    _write(tmp_path, "metrics.csv", "epoch,step,train_loss,val_loss\n0,49,2.5,\n0,49,,2.6\n")
    (log,) = read_logs(tmp_path)
    assert points(log, "eval/loss") == [(49, 2.6)]
    _write(tmp_path, "other.csv", "step,loss\n1,2\n2,3\n")
    with pytest.raises(FledgeError, match="several logs") as error:
        read_logs(tmp_path)
    assert "metrics.csv, other.csv" in (error.value.hint or "")


def test_a_row_of_steps_that_fall_is_a_resumed_run(tmp_path: Path) -> None:
    (log,) = read_logs(_write(tmp_path, "a.csv", "step,loss\n1,3\n2,2.9\n3,2.8\n3,2.7\n2,2.6\n3,2.5\n"))
    assert points(log, "train/loss") == [(1, 3), (2, 2.6), (3, 2.5)]
    assert [event["kind"] for event in log.events] == ["resume"]
