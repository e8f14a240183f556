"""A checkpoint that cannot be read ends the search; a damaged one is passed over and kept; one on request does not count."""

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from fledge.checkpoint.checkpoint import CheckpointError, save_checkpoint
from fledge.checkpoint.find import (
    checkpoint_to_resume,
    latest_before,
    latest_checkpoint,
    prune,
    set_aside_later,
    verify,
)
from fledge.checkpoint.state import Snapshot, TrainState
from fledge.errors import FledgeError
from tests.checkpoint.test_checkpoint import save, snapshot, write_model

UNREADABLE_FILE = "/proc/self/mem"  # Linux answers a read of its first bytes with an I/O error


def _io_error(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()
    (checkpoint / "manifest.json").symlink_to(UNREADABLE_FILE)


def _loop(checkpoint: Path) -> None:
    (checkpoint / "model" / "weights").unlink()
    (checkpoint / "model" / "weights").symlink_to("weights")


def _directory(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()
    (checkpoint / "manifest.json").mkdir()


def _forbidden(checkpoint: Path) -> None:
    (checkpoint / "model" / "weights").chmod(0)


FAULTS = [
    pytest.param(_io_error, "Input/output error", marks=pytest.mark.skipif(not Path(UNREADABLE_FILE).exists(), reason="Linux")),
    pytest.param(_loop, "Too many levels of symbolic links"),
    pytest.param(_directory, "Is a directory"),
    pytest.param(_forbidden, "Permission denied", marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may read all")),
]


@pytest.mark.parametrize(("fault", "cause"), FAULTS)
def test_a_checkpoint_that_cannot_be_read_is_an_error_and_not_a_damaged_one(
    tmp_path: Path, fault: Callable[[Path], None], cause: str
) -> None:
    folder = tmp_path / "c"
    save(folder, 1)
    newest = save(folder, 2)
    fault(newest)
    reported: list[str] = []
    with pytest.raises(FledgeError, match=rf"cannot be read: {cause}") as caught:
        checkpoint_to_resume(folder, lambda path, problem: reported.append(problem))
    assert str(newest) in str(caught.value) and not reported
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000001", "step-00000002"]


def test_too_many_open_files_are_not_taken_for_damage(tmp_path: Path) -> None:
    path = save(tmp_path / "c", 1)
    used = max(map(int, os.listdir("/proc/self/fd"))) + 1 if Path("/proc/self/fd").exists() else 3
    before, held = resource.getrlimit(resource.RLIMIT_NOFILE), list[int]()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 4, before[1]))
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                held.append(os.open(tmp_path, os.O_RDONLY))
        with pytest.raises(FledgeError, match="cannot be read: Too many open files"):
            verify(path)
    finally:
        for handle in held:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert verify(path) is None


def test_a_folder_of_checkpoints_that_is_away_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "c").symlink_to(tmp_path / "unmounted")
    with pytest.raises(FledgeError, match="a link to a place that does not exist now"):
        latest_checkpoint(tmp_path / "c")
    assert latest_checkpoint(tmp_path / "nothing") is None


def test_training_does_not_start_over_where_no_checkpoint_is_whole(tmp_path: Path) -> None:
    for step in (1, 2):
        (save(tmp_path / "c", step) / "model" / "weights").write_bytes(b"short")
    with pytest.raises(FledgeError, match=r"none of the checkpoints(.|\n)*step-00000002: (.|\n)*step-00000001: ") as caught:
        checkpoint_to_resume(tmp_path / "c", lambda path, problem: None)
    assert f"move {tmp_path / 'c'} away" in (caught.value.hint or "")
    (tmp_path / "c").rename(tmp_path / "away")
    assert checkpoint_to_resume(tmp_path / "c", lambda path, problem: None) is None


def test_a_checkpoint_that_was_passed_over_is_kept_under_another_name(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    for step in (1, 2, 3):
        save(folder, step)
    for _ in range(2):
        (save(folder, 4) / "model" / "weights").unlink()
        set_aside_later(folder, 3)
        prune(folder, keep=1, best_step=None, step=3)
    assert sorted(path.name for path in folder.iterdir()) == [
        "damaged-step-00000004",
        "damaged-step-00000004.1",
        "step-00000003",
    ]


def test_a_failed_save_tells_its_own_cause_where_earlier_checkpoints_cannot_be_read(tmp_path: Path) -> None:
    _directory(save(tmp_path / "c", 1))

    def full_disk(path: Path, weights: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"No space left on device(.|\n)*cannot be read now"):
        save_checkpoint(tmp_path / "c", snapshot(2), full_disk)


def _save_on_request(folder: Path, step: int) -> None:
    requested = snapshot(step)
    state = TrainState(step=step, saved_on_request=True)
    save_checkpoint(folder, Snapshot(state, requested.models, requested.tensors), write_model)


def test_a_checkpoint_on_request_takes_no_place_among_the_newest_and_goes_with_the_next_one(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    for step in (3, 6):
        save(folder, step)
    _save_on_request(folder, 7)
    prune(folder, keep=2, best_step=None, step=7)
    assert sorted(path.name[-1] for path in folder.iterdir()) == ["3", "6", "7"]
    found = latest_checkpoint(folder)
    assert found is not None and found[1].step == 7 and found[1].saved_on_request
    save(folder, 9)
    prune(folder, keep=2, best_step=None, step=9)
    assert sorted(path.name[-1] for path in folder.iterdir()) == ["6", "9"]


def test_a_rollback_goes_to_the_checkpoint_that_a_run_without_a_stop_would_go_to(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    for step in (3, 6):
        save(folder, step)
    _save_on_request(folder, 7)
    found = latest_before(folder, 9)
    assert found is not None and found[1].step == 6
    for step in (3, 6):
        (folder / f"step-0000000{step}" / "model" / "weights").unlink()
    found = latest_before(folder, 9)
    assert found is not None and found[1].step == 7


def test_the_first_checkpoint_stays_where_its_weights_are_needed(tmp_path: Path) -> None:
    for step in (0, 1, 2):
        save(tmp_path / "c", step)
    prune(tmp_path / "c", keep=1, best_step=None, step=2, keep_first=True)
    assert sorted(path.name[-1] for path in (tmp_path / "c").iterdir()) == ["0", "2"]


def test_a_state_of_another_version_is_an_error_that_says_so(tmp_path: Path) -> None:
    path = save(tmp_path / "c", 1)
    (path / "state" / "trainer.json").write_text('{"step": 1, "phase_of_the_moon": 3}')
    from fledge.checkpoint.find import read_state

    with pytest.raises(FledgeError, match=r"another version of fledge wrote this checkpoint.*phase_of_the_moon"):
        read_state(path)
