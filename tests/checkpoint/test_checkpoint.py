"""A checkpoint exists only if it is whole."""

import json
from pathlib import Path

import pytest
import torch

from fledge.checkpoint.checkpoint import (
    CheckpointError,
    Snapshot,
    TrainState,
    Weights,
    latest_checkpoint,
    prune,
    save_checkpoint,
    update_symlink,
    verify,
)


def snapshot(step: int) -> Snapshot:
    return Snapshot(
        TrainState(step=step), {"model": {"w": torch.full([4], float(step))}}, {"p.step": torch.tensor(float(step))}
    )


def write_model(path: Path, weights: Weights) -> None:
    path.mkdir()
    (path / "weights").write_bytes(bytes(range(256)) * 40)


def save(folder: Path, step: int) -> Path:
    folder.mkdir(exist_ok=True)
    return save_checkpoint(folder, snapshot(step), write_model)[0]


def test_what_was_saved_verifies_and_carries_its_state(tmp_path: Path) -> None:
    path = save(tmp_path / "c", 7)
    assert verify(path) is None
    found = latest_checkpoint(tmp_path / "c")
    assert found is not None and found[0] == path and found[1].step == 7


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest", "no manifest"])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path, damage: str) -> None:
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
    named: list[str] = []
    found = latest_checkpoint(tmp_path / "c", lambda path, problem: named.append(f"{path.name} {problem}"))
    assert found is not None and found[0] == good
    assert len(named) == 1 and named[0].startswith(bad.name)


def test_a_save_that_fails_leaves_the_one_before_untouched(tmp_path: Path) -> None:
    good = save(tmp_path / "c", 1)

    def full_disk(path: Path, weights: Weights) -> None:
        path.mkdir()
        (path / "half").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"No space left on device(.|\n)*what is saved is step 1"):
        save_checkpoint(tmp_path / "c", snapshot(2), full_disk)
    assert [path.name for path in (tmp_path / "c").iterdir()] == [good.name]
    assert verify(good) is None


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in range(1, 7):
        save(tmp_path / "c", step)
    (tmp_path / "c" / ".writing-step-00000009").mkdir()
    prune(tmp_path / "c", keep=2, best_step=3, step=6)
    assert sorted(path.name[-1] for path in (tmp_path / "c").iterdir()) == ["3", "5", "6"]


def test_pointers_move_and_stay_relative(tmp_path: Path) -> None:
    first, second = save(tmp_path / "c", 1), save(tmp_path / "c", 2)
    update_symlink(tmp_path / "c", "last", first)
    update_symlink(tmp_path / "c", "last", second)
    moved = (tmp_path / "c").rename(tmp_path / "moved")
    assert json.loads((moved / "last" / "manifest.json").read_text())["step"] == 2


def test_pruning_never_prefers_a_damaged_checkpoint_of_a_later_step(tmp_path: Path) -> None:
    for step in (1, 2, 9):
        save(tmp_path / "c", step)
    (tmp_path / "c" / "step-00000009" / "model" / "weights").unlink()
    prune(tmp_path / "c", keep=1, best_step=None, step=2)
    assert [path.name[-1] for path in (tmp_path / "c").iterdir()] == ["2"]
