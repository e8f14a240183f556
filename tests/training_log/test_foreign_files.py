"""Event files of TensorBoard, and offline runs of Weights & Biases."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from fledge.errors import FledgeError
from fledge.training_log import read_logs
from tests.training_log.logs import points


def _scalars(folder: Path, curves: dict[str, list[tuple[int, float]]]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))
    for name, found in curves.items():
        for step, value in found:
            writer.add_scalar(name, value, step)
    writer.add_text("notes", "words")
    writer.close()


def test_tensorboard_of_hugging_face(tmp_path: Path) -> None:
    curves = {"train/loss": [(10, 2.5), (20, 2.25)], "train/learning_rate": [(10, 0.5)], "eval/loss": [(20, 2.5)]}
    _scalars(tmp_path / "runs" / "Jan01_host", {**curves, "train/global_step": [(10, 10)]})
    (log,) = read_logs(tmp_path)
    assert points(log, "train/loss") == [(10, 2.5), (20, 2.25)]
    assert points(log, "eval/loss") == [(20, 2.5)] and points(log, "train/lr") == [(10, 0.5)]
    assert log.unread == {"notes/text_summary: text or other values that are no numbers": 1}


def test_tensorboard_with_folders_of_training_and_validation(tmp_path: Path) -> None:
    _scalars(tmp_path / "train", {"epoch_loss": [(0, 1.5), (1, 1.25)]})
    _scalars(tmp_path / "validation", {"epoch_loss": [(0, 1.75)]})
    (log,) = read_logs(tmp_path)
    assert points(log, "train/loss") == [(0, 1.5), (1, 1.25)] and points(log, "eval/loss") == [(0, 1.75)]


def test_arguments_that_hugging_face_writes_as_text_are_settings(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path))
    writer.add_scalar("train/loss", 2.5, 1)
    writer.add_text("args", json.dumps({"learning_rate": 1e-3, "per_device_train_batch_size": 4, "bf16": True}))
    writer.add_text("model_config", json.dumps({"vocab_size": 128, "hidden_size": 32, "id2label": {"0": "a"}}))
    writer.close()
    (log,) = read_logs(tmp_path)
    settings = log.settings
    assert (settings.learning_rate, settings.micro_batch_rows, settings.precision) == (1e-3, 4, "bf16")
    assert (settings.vocab_size, settings.hidden_size) == (128, 32)


def test_a_torn_and_resumed_tensorboard(tmp_path: Path) -> None:
    import os

    for name, steps, at in (("a", [1, 2, 3, 4], 1_000), ("b", [3, 4, 5], 2_000)):
        _scalars(tmp_path / name, {"train/loss": [(step, float(step)) for step in steps]})
        (file,) = (tmp_path / name).iterdir()
        os.utime(file, (at, at))
        file.rename(tmp_path / f"events.out.tfevents.{name}")
        (tmp_path / name).rmdir()
    last = tmp_path / "events.out.tfevents.b"
    last.write_bytes(last.read_bytes() + b"\x20\x00\x00")
    cut = tmp_path / "events.out.tfevents.a"
    cut.write_bytes(cut.read_bytes()[:-3])
    os.utime(cut, (1_000, 1_000))
    (log,) = read_logs(tmp_path)
    assert points(log, "train/loss") == [(step, step) for step in (1, 2, 3, 4, 5)]
    assert any("trained again" in note for note in log.notes) and any("inside a record" in note for note in log.notes)


def test_tensorboard_with_several_runs(tmp_path: Path) -> None:
    for version in ("version_0", "version_1"):
        _scalars(tmp_path / version, {"train_loss_step": [(1, 1.5)], "val_loss": [(1, 2.5)]})
    assert [log.stage for log in read_logs(tmp_path)] == ["version_0", "version_1"]


# -- Weights & Biases: the format is written here as the documents of LevelDB and Protocol Buffers say -----------------------


def _varint(value: int) -> bytes:
    found = bytearray()
    while True:
        value, byte = value >> 7, value & 127
        found.append(byte | (128 if value else 0))
        if not value:
            return bytes(found)


def _bytes_field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _item(name: str, value: Any) -> bytes:
    return _bytes_field(1, name.encode()) + _bytes_field(16, json.dumps(value).encode())


def _history(values: dict[str, Any]) -> bytes:
    return _bytes_field(2, b"".join(_bytes_field(1, _item(name, value)) for name, value in values.items()))


def _offline_file(file: Path, records: list[bytes]) -> None:
    content = bytearray(b":W&B" + struct.pack("<HB", 0xBEE1, 0))
    for record in records:
        pieces, rest, first = [], record, True
        while first or rest:
            left = 32_768 - len(content) % 32_768
            if left < 7:
                content += bytes(left)
                left = 32_768
            piece, rest = rest[: left - 7], rest[left - 7 :]
            kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[first, not rest]
            content += struct.pack("<IHB", 0, len(piece), kind) + piece
            pieces.append(piece)
            first = False
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def _config(values: dict[str, Any]) -> bytes:
    inside = b"".join(_bytes_field(1, _item(name, value)) for name, value in values.items())
    return _bytes_field(17, _bytes_field(4, inside) + _bytes_field(8, b"my run"))


RECORDS = [
    _config({"learning_rate": 1e-4, "per_device_train_batch_size": 8, "inner": {"num_train_epochs": 3}}),
    *[
        _history({"_step": step, "train/global_step": 10 * step, "train/loss": 3 - step / 8, "grad": "NaN", "_runtime": 1.0})
        for step in range(1, 5)
    ],
    _history({"_step": 5, "train/global_step": 40, "eval/loss": 2.5}),
]


def test_an_offline_run_of_wandb(tmp_path: Path) -> None:
    file = tmp_path / "offline-run-1-abc" / "run-abc.wandb"
    _offline_file(file, [*RECORDS, _bytes_field(18, _varint(1 << 3) + _varint(0))])
    for target in (file, file.parent, tmp_path):
        (log,) = read_logs(target)
        assert points(log, "train/loss") == [(10, 2.875), (20, 2.75), (30, 2.625), (40, 2.5)]
        assert points(log, "eval/loss") == [(40, 2.5)]
    assert log.ended is True
    assert (log.settings.learning_rate, log.settings.micro_batch_rows, log.settings.epochs) == (1e-4, 8, 3)


def test_a_torn_offline_run_gives_what_is_there(tmp_path: Path) -> None:
    file = tmp_path / "run-abc.wandb"
    _offline_file(file, RECORDS)
    file.write_bytes(file.read_bytes()[:-20])
    (log,) = read_logs(file)
    assert len(log.series["train/loss"]) == 4 and log.ended is None
    assert any("ends inside a record" in note for note in log.notes)


def test_records_longer_than_a_block(tmp_path: Path) -> None:
    long = _history({"train/global_step": 50, "train/loss": 2.0, **{f"x{n}": 1.5 for n in range(3000)}})
    _offline_file(tmp_path / "a.wandb", [*RECORDS, long, *RECORDS[-1:]])
    (log,) = read_logs(tmp_path / "a.wandb")
    assert points(log, "train/loss")[-1] == (50, 2.0)


def test_without_the_file_the_printed_output_is_read(tmp_path: Path) -> None:
    run = tmp_path / "offline-run-1-abc"
    (run / "files").mkdir(parents=True)
    (run / "run-abc.wandb").write_bytes(b"not a log")
    (run / "files" / "output.log").write_text("step 1 | loss: 2.5\nstep 2 | loss: 2.25\n")
    (run / "files" / "config.yaml").write_text("learning_rate:\n  desc: null\n  value: 0.001\n")
    (log,) = read_logs(run)
    assert points(log, "train/loss") == [(1, 2.5), (2, 2.25)] and log.settings.learning_rate == 1e-3
    assert any("cannot be read" in note for note in log.notes)


def test_wandb_without_figures_is_an_error(tmp_path: Path) -> None:
    _offline_file(tmp_path / "a.wandb", RECORDS[:1])
    with pytest.raises(FledgeError, match="no figures"):
        read_logs(tmp_path / "a.wandb")


@pytest.mark.slow
def test_what_wandb_itself_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    wandb = pytest.importorskip("wandb")
    settings = wandb.Settings(console="off", silent=True)
    run = wandb.init(project="x", mode="offline", dir=str(tmp_path), config={"learning_rate": 1e-4}, settings=settings)
    for step in range(1, 4):
        run.log({"train/global_step": step * 10, "train/loss": 3.0 - step / 8, "odd": float("nan")})
    run.finish()
    wandb.teardown()  # ends the process that writes the file
    (log,) = read_logs(tmp_path)
    assert points(log, "train/loss") == [(10, 2.875), (20, 2.75), (30, 2.625)]
    assert log.settings.learning_rate == 1e-4 and log.ended is True
