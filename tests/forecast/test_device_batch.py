"""What each device computes of an update: its share of the rows, and as many at a time as its own memory takes."""

import json
from pathlib import Path

import pytest

from fledge.cli import main
from fledge.plan.device_batch import DeviceBatch, even_micro_batch
from tests.support import tiny_run

OPEN = """
name: seed
preset: 26m
stages:
  pretrain:
    data: {train: none.jsonl, max_seq_len: 512}
    duration: 3 epochs
    batch: {tokens_per_step: 524288, micro_batch_size: auto}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    tree = tiny_run.tree(tmp_path / "world", tmp_path)
    stages = {"pretrain": {**tree["stages"]["pretrain"], "batch": {"micro_batch_size": 16}}}
    return tiny_run.write(tmp_path / "r.yaml", {**tree, "stages": stages})


def _stage(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict]:
    """The stage on each device, after a plan that fits."""
    assert main(["plan", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["stages"]["pretrain"]["devices"]


def test_rows_are_shared_evenly() -> None:
    assert DeviceBatch.of(16, 16, 8) == DeviceBatch(2, 2) and DeviceBatch.of(16, 16, 8).micro_batches == 1
    assert DeviceBatch.of(64, 16, 4) == DeviceBatch(16, 16)
    assert DeviceBatch.of(30, 16, 1) == DeviceBatch(30, 16) and DeviceBatch.of(30, 16, 1).micro_batches == 2
    assert even_micro_batch(30, 16) == 15 and even_micro_batch(5, 8) == 5


def test_each_of_several_cards_holds_its_own_rows_alone(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (one,) = _stage(capsys, recipe, "--device", "T4")
    (eight,) = _stage(capsys, recipe, "--device", "8xT4")
    assert (one["micro_batch_size"], one["micro_batches"]) == (16, 1)
    assert (eight["micro_batch_size"], eight["micro_batches"]) == (2, 1)
    activations = [device["memory"]["moments"]["training step"]["activations"] for device in (one, eight)]
    assert activations[1] < activations[0] / 4


def test_more_cards_than_rows_are_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(recipe), "--device", "32xT4"]) == 2
    assert "32 processes cannot share the 16 rows of an update" in capsys.readouterr().err


def test_a_card_that_is_not_here_takes_what_fits_there(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "open.yaml").write_text(OPEN, encoding="utf-8")
    t4, h100 = _stage(capsys, tmp_path / "open.yaml", "--tokens", "1B", "--device", "T4", "--device", "H100")
    assert 1 < t4["micro_batch_size"] < h100["micro_batch_size"]
    assert all(one["micro_batch_size"] * one["micro_batches"] == 1024 for one in (t4, h100))
    # with data, on a machine whose memory is far too small, and which has no GPU
    tokens = ("--stages.pretrain.batch", "{tokens_per_step: 65536}", "--runtime.device", "cuda")
    (card,) = _stage(capsys, recipe, "--device", "H100", *tokens)
    assert card["fits"] and card["micro_batch_size"] >= 16


def test_a_micro_batch_that_does_not_divide_the_update_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "open.yaml").write_text(OPEN, encoding="utf-8")
    odd = ["--stages.pretrain.batch.micro_batch_size", "60"]
    assert main(["plan", str(tmp_path / "open.yaml"), "--tokens", "1B", "--device", "T4", *odd]) == 2
    assert "1,024 rows per step are not a multiple of 60" in capsys.readouterr().err


def test_a_smaller_micro_batch_is_offered_as_options_that_the_recipe_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "open.yaml").write_text(OPEN, encoding="utf-8")
    plan = ["plan", str(tmp_path / "open.yaml"), "--tokens", "1B", "--device", "T4"]
    assert main([*plan, "--stages.pretrain.batch.micro_batch_size", "512"]) == 2
    line = next(line for line in capsys.readouterr().out.splitlines() if "→ --stages.pretrain.batch.micro_batch_size" in line)
    options = line.split("→ ")[1].split(": ")[0].split()
    assert "--stages.pretrain.batch.tokens_per_step" in options
    assert main([*plan, *options]) == 0
