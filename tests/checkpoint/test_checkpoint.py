"""Checkpoints are valid or rejected, and saving never damages earlier ones."""

import json
from pathlib import Path

import pytest
import torch

from fledge.checkpoint.checkpoint import CheckpointError, save_checkpoint
from fledge.checkpoint.find import latest_checkpoint, prune, update_symlink, verify
from fledge.checkpoint.state import Snapshot, TrainState, Weights


def snapshot(step: int) -> Snapshot:
    """A small snapshot of this step."""
    return Snapshot(
        TrainState(step=step), {"model": {"w": torch.full([4], float(step))}}, {"p.step": torch.tensor(float(step))}
    )


def write_model(path: Path, weights: Weights) -> None:
    """Write a file in place of a model directory."""
    path.mkdir()
    (path / "weights").write_bytes(bytes(range(256)) * 40)


def save(folder: Path, step: int) -> Path:
    """Save a checkpoint of this step; returns its path."""
    folder.mkdir(exist_ok=True)
    return save_checkpoint(folder, snapshot(step), write_model)[0]


def test_saved_checkpoint_verifies_and_stores_its_state(tmp_path: Path) -> None:
    path = save(tmp_path / "c", 7)
    assert verify(path) is None
    latest = latest_checkpoint(tmp_path / "c")
    assert latest is not None and latest[0] == path and latest[1].step == 7


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest", "no manifest"])
def test_damaged_checkpoint_is_skipped_and_reported(tmp_path: Path, damage: str) -> None:
    good, bad = save(tmp_path / "c", 1), save(tmp_path / "c", 2)
    file = bad / "model" / "weights"
    content = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(content[:-10])
    elif damage == "flip":
        content[100] ^= 1
        file.write_bytes(content)
    elif damage == "remove":
        file.unlink()
    elif damage == "manifest":
        (bad / "manifest.json").write_text('{"files"')
    else:
        (bad / "manifest.json").unlink()
    reported: list[str] = []
    latest = latest_checkpoint(tmp_path / "c", lambda path, problem: reported.append(f"{path.name} {problem}"))
    assert latest is not None and latest[0] == good
    assert len(reported) == 1 and reported[0].startswith(bad.name)


def test_failed_save_leaves_the_previous_checkpoint_untouched(tmp_path: Path) -> None:
    good = save(tmp_path / "c", 1)

    def full_disk(path: Path, weights: Weights) -> None:
        path.mkdir()
        (path / "half").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"No space left on device(.|\n)*the last saved checkpoint is step 1"):
        save_checkpoint(tmp_path / "c", snapshot(2), full_disk)
    assert [path.name for path in (tmp_path / "c").iterdir()] == [good.name]
    assert verify(good) is None


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in range(1, 7):
        save(tmp_path / "c", step)
    (tmp_path / "c" / ".writing-step-00000009").mkdir()
    prune(tmp_path / "c", keep=2, best_step=3, step=6)
    assert sorted(path.name[-1] for path in (tmp_path / "c").iterdir()) == ["3", "5", "6"]


def test_links_move_and_stay_relative(tmp_path: Path) -> None:
    first, second = save(tmp_path / "c", 1), save(tmp_path / "c", 2)
    update_symlink(tmp_path / "c", "last", first)
    update_symlink(tmp_path / "c", "last", second)
    moved = (tmp_path / "c").rename(tmp_path / "moved")
    assert json.loads((moved / "last" / "manifest.json").read_text())["step"] == 2


def test_pruning_never_keeps_a_damaged_later_checkpoint_instead_of_a_valid_one(tmp_path: Path) -> None:
    for step in (1, 2, 9):
        save(tmp_path / "c", step)
    (tmp_path / "c" / "step-00000009" / "model" / "weights").unlink()
    prune(tmp_path / "c", keep=1, best_step=None, step=2)
    assert [path.name[-1] for path in (tmp_path / "c").iterdir()] == ["2"]
