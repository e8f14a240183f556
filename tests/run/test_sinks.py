"""Receivers of figures: each gets every number under the name and the step that its program expects, none uses the network
unless it is asked to, and none can stop a run. The real libraries are used."""

import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fledge.errors import FledgeError
from fledge.recipe import recipe_from_dict
from fledge.recipe.schema import LoggingConfig
from fledge.run.sinks import SINKS, check_sinks, open_sinks
from fledge.run.sinks.sink import GuardedSink, SinkContext, scalars

STEPS = [
    (1, {"train/loss": 2.5, "train/lr": 1e-3, "update_ratio": {"mlp": 0.01}, "note": "text"}),
    (2, {"train/loss": 2.25, "train/lr": 9e-4, "update_ratio": {"mlp": 0.02}}),
    (2, {"eval/loss": 2.4, "eval/perplexity": 11.02}),
]


def test_every_number_is_a_scalar_and_a_nested_one_has_both_names() -> None:
    values = {"a": 1, "b": {"c": 2.5, "d": {"e": 3}}, "words": "x", "list": [1], "none": None}
    assert dict(scalars(values)) == {"a": 1, "b/c": 2.5, "b/d/e": 3}


def test_true_is_a_section_with_its_defaults_and_false_is_none() -> None:
    tree = {"stages": {"pretrain": {"data": {"train": "x.txt"}}}, "logging": {"wandb": True, "trackio": False}}
    logging = recipe_from_dict(tree).logging
    assert logging.wandb is not None and logging.trackio is None
    assert (logging.wandb.mode, logging.wandb.project) == ("offline", "fledge")
    again = recipe_from_dict({**tree, "logging": logging.model_dump(mode="json")}).logging
    assert again == logging


def test_a_missing_package_is_an_error_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fledge.run.sinks.find_spec", lambda package: None)
    for name, kind in SINKS.items():
        with pytest.raises(FledgeError) as caught:
            check_sinks(LoggingConfig.model_validate({name: True}))
        assert caught.value.hint == f"pip install 'fledge[{kind.extra}]'"
    check_sinks(LoggingConfig())


class Failing:
    """Takes two figures, then its disk is full."""

    taken = 0

    def write(self, step: int, values: dict[str, float]) -> None:
        """Count the figures, and refuse them after two."""
        self.taken += len(values)
        if self.taken > 2:
            raise OSError(28, "No space left on device")

    def close(self) -> None:
        """Never reached after a failure."""
        raise AssertionError("a receiver that has failed is not asked again")


def test_a_receiver_that_fails_is_told_once_and_what_it_misses_is_counted() -> None:
    told: list[str] = []
    sink = GuardedSink("W&B", Failing, told.append)
    for step in range(5):
        sink.write(step, {"train/loss": 1.0, "train/lr": 1.0})
    assert len(told) == 1 and "W&B takes no more figures" in told[0] and "No space left" in told[0]
    sink.close()
    assert told[1:] == ["warning: 8 figures are missing in W&B; all are in events.jsonl"]


def test_a_receiver_that_cannot_be_opened_does_not_stop_the_run() -> None:
    told: list[str] = []

    def broken() -> Failing:
        raise RuntimeError("no key\nand more")

    sink = GuardedSink("W&B", broken, told.append)
    sink.write(1, {"train/loss": 1.0})
    sink.close()
    assert "W&B cannot be opened (no key)" in told[0] and "1 figures are missing" in told[1]


def test_tensorboard_gets_every_figure_at_its_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told: list[str] = []
    sinks = open_sinks(LoggingConfig(tensorboard=True), SinkContext(folder=tmp_path), told.append)
    for step, values in STEPS:
        sinks[0].write(step, values)
    sinks[0].close()
    board = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    assert [(point.step, point.value) for point in board.Scalars("train/loss")] == [(1, 2.5), (2, 2.25)]
    assert board.Scalars("update_ratio/mlp")[1].value == pytest.approx(0.02) and not told
    assert set(board.Tags()["scalars"]) == {"train/loss", "train/lr", "update_ratio/mlp", "eval/loss", "eval/perplexity"}


WRITE = """
import json, socket, sys
from pathlib import Path
opened = []
connect = socket.socket.connect
def watched(self, address):
    if self.family != socket.AF_UNIX and not str(address[0]).startswith("127.") and address[0] != "::1":
        opened.append(str(address))
    return connect(self, address)
socket.socket.connect = watched
lookup = socket.getaddrinfo
def looked_up(host, *rest, **more):
    if host not in ("127.0.0.1", "localhost", "::1", None):
        opened.append(str(host))
    return lookup(host, *rest, **more)
socket.getaddrinfo = looked_up
from fledge.recipe.schema import LoggingConfig
from fledge.run.sinks import open_sinks
from fledge.run.sinks.sink import SinkContext
asked, folder, step, steps = json.loads(sys.argv[1])
told = []
context = SinkContext(folder=Path(folder), step=step, recipe={"seed": 7})
[sink] = open_sinks(LoggingConfig.model_validate(asked), context, told.append)
for number, values in steps:
    sink.write(number, values)
sink.close()
print(json.dumps({"told": told, "lost": sink.lost, "opened": opened}))
"""


def written(asked: dict[str, object], folder: Path, step: int, steps: object, **environment: str) -> dict[str, object]:
    """What a process of its own says that writes figures: warnings, figures lost, and connections beyond this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    process = subprocess.run(
        [sys.executable, "-c", WRITE, json.dumps([asked, str(folder), step, steps])],
        capture_output=True, text=True, timeout=240, env={**os.environ, **environment},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_wandb_offline_has_every_figure_over_the_global_step_and_opens_no_connection(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    stage = tmp_path / "mine" / "sft"
    asked = {"wandb": {"project": "birds", "entity": None, "mode": "offline", "tags": ["a"]}}
    found = written(asked, stage, 0, STEPS, WANDB_MODE="online", HOME=str(tmp_path))
    assert found == {"told": [], "lost": 0, "opened": []}
    [file] = stage.glob("wandb/offline-run-*/*.wandb")
    rows, run, metrics = wandb_file(file)
    assert [(row["train/global_step"], row["train/loss"]) for row in rows[:2]] == [(1, 2.5), (2, 2.25)]
    assert rows[2]["eval/loss"] == 2.4 and rows[1]["update_ratio/mlp"] == 0.02
    assert (run.project, run.display_name, run.run_group) == ("birds", "mine-sft", "mine")
    assert {item.key: json.loads(item.value_json) for item in run.config.update}["seed"] == 7
    assert any(metric.glob_name == "*" and metric.step_metric == "train/global_step" for metric in metrics) or any(
        metric.step_metric == "train/global_step" for metric in metrics
    )
    again = written(asked, stage, 2, [(3, {"train/loss": 2.0})], HOME=str(tmp_path))
    assert again["told"] == [] and len(list(stage.glob("wandb/offline-run-*"))) == 2
    identities = {wandb_file(file)[1].run_id for file in stage.glob("wandb/offline-run-*/*.wandb")}
    assert identities == {(stage / "wandb" / "run_id").read_text()}


def wandb_file(path: Path) -> tuple[list[dict[str, float]], Any, list[Any]]:
    """History rows, run record and metric definitions of a file of an offline run."""
    from wandb.proto import wandb_internal_pb2

    rows: list[dict[str, float]] = []
    run, metrics = None, []
    for data in leveldb_records(path.read_bytes()[7:]):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item})
        elif kind == "run":
            run = record.run
        elif kind == "metric":
            metrics.append(record.metric)
    return rows, run, metrics


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """The records of LevelDB's log format, which W&B keeps behind a header of 7 bytes: blocks of 32 KiB, and in them pieces
    with checksum (4 bytes), length (2) and type (1: whole, 2: first, 3: middle, 4: last)."""
    place, pieces = 0, b""
    while place + 7 <= len(content):
        left = 32768 - (place + 7) % 32768
        if left < 7:
            place += left
            continue
        size, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        pieces += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            yield pieces
            pieces = b""


def test_trackio_has_every_figure_at_its_step_and_stays_on_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    stage = tmp_path / "mine" / "sft"
    remote = {"TRACKIO_SPACE_ID": "someone/space", "TRACKIO_DIR": str(tmp_path / "store"), "HOME": str(tmp_path)}
    asked = {"trackio": {"project": "birds", "space": None}}
    assert written(asked, stage, 0, STEPS, **remote) == {"told": [], "lost": 0, "opened": []}
    assert written(asked, stage, 2, [(3, {"train/loss": 2.0})], **remote)["told"] == []
    [file] = (tmp_path / "store").glob("birds*.db")
    with sqlite3.connect(file) as base:
        rows = base.execute("select run_name, step, metrics from metrics order by id").fetchall()
    figures = [(name, step, json.loads(metrics)) for name, step, metrics in rows]
    assert {name for name, _, _ in figures} == {"mine-sft"}
    losses = [(step, metrics["train/loss"]) for _, step, metrics in figures if "train/loss" in metrics]
    assert losses == [(1, 2.5), (2, 2.25), (3, 2.0)]
    assert any(step == 2 and metrics.get("eval/loss") == 2.4 for _, step, metrics in figures)
    assert any(metrics.get("update_ratio/mlp") == 0.02 for _, _, metrics in figures)
