"""Runs that were resumed or begun again in the same log: what was trained again counts once, and is told."""

from pathlib import Path

import numpy as np
import pytest

from fledge.training_log import TrainingLog, TrainingSettings
from fledge.training_log.axis import MOST_TOLD
from tests.training_log.logs import points, read_text_log


def resumes(log: TrainingLog) -> list[float]:
    """The steps of the events that tell a restart."""
    return [event["step"] for event in log.events if event["kind"] == "resume"]


def minimind(epoch: int, step: int, loss: float) -> str:
    """A line of minimind, of 2 epochs with 300 micro-batches."""
    return f"Epoch:[{epoch}/2]({step}/300), loss: {loss:.3f}, lr: 0.000549000000, epoch_time: 30.0min\n"


FIRST = [(epoch, step, 9 - epoch - step / 1000) for epoch in (1, 2) for step in (100, 200, 300)]


def test_an_epoch_that_falls_back_is_a_new_beginning(tmp_path: Path) -> None:
    again = [(1, 100, 5.0), (1, 200, 4.9)]
    log = read_text_log(tmp_path, "".join(minimind(*row) for row in [*FIRST, *again]))
    assert points(log, "train/loss") == [(100, 5.0), (200, 4.9)]
    assert len(resumes(log)) == 1
    assert any("line 7 steps fall back to 100" in note and "6 records" in note for note in log.notes)


def test_a_run_that_was_resumed_within_an_epoch(tmp_path: Path) -> None:
    log = read_text_log(tmp_path, "".join(minimind(*row) for row in [*FIRST, (2, 200, 4.0), (2, 300, 3.9)]))
    assert [step for step, _ in points(log, "train/loss")] == [100, 200, 300, 400, 500, 600]
    assert dict(points(log, "train/loss"))[500] == 4.0


def test_steps_of_a_restart_are_updates_as_all_others(tmp_path: Path) -> None:
    text = "".join(minimind(*row) for row in [*FIRST, (2, 200, 4.0)])
    log = read_text_log(tmp_path, text, settings=TrainingSettings(accumulation_steps=100))
    assert resumes(log) == [pytest.approx(4.99)]


@pytest.mark.parametrize("first", [[(0, 50), (0, 100), (1, 50), (1, 100)], [(0, 50), (0, 100), (1, 50)], [(0, 50), (0, 100)]])
def test_steps_that_begin_anew_in_each_epoch_of_both_runs(tmp_path: Path, first: list[tuple[int, int]]) -> None:
    again = [(0, 50), (0, 100), (1, 50), (1, 100)]
    rows = [(*row, 5.0) for row in first] + [(*row, 4.0) for row in again]
    log = read_text_log(tmp_path, "".join(f"epoch:{epoch}, step:{step}, loss:{loss}\n" for epoch, step, loss in rows))
    assert points(log, "train/loss") == [(50, 4.0), (100, 4.0), (150, 4.0), (200, 4.0)]
    assert len(resumes(log)) == 1


def test_epochs_alone_that_fall_back(tmp_path: Path) -> None:
    rows = [(1, 2.1), (2, 1.9), (3, 1.8), (1, 3.1), (2, 2.9)]
    log = read_text_log(tmp_path, "".join(f"Epoch: {epoch} | Train Loss: {loss} | Time: 0m 12s\n" for epoch, loss in rows))
    assert points(log, "train/loss") == [(1, 3.1), (2, 2.9)] and len(resumes(log)) == 1


def test_records_without_steps_are_counted_anew(tmp_path: Path) -> None:
    epochs = [0.25, 0.5, 0.75, 1.0, 0.25, 0.5]
    text = "".join(f"{{'loss': {place / 10}, 'epoch': {epoch}}}\n" for place, epoch in enumerate(epochs, 1))
    log = read_text_log(tmp_path, text)
    assert points(log, "train/loss") == [(1, 0.5), (2, 0.6)] and len(resumes(log)) == 1


def hugging_face(total: int, steps: range, first: float) -> str:
    """What Hugging Face's trainer prints: a bar, and records with the epoch, of which `total` steps are 2."""
    lines = [f"  0%|          | 0/{total} [00:00<?, ?it/s]"]
    for step in steps:
        lines.append(f" {100 * step // total}%|█         | {step}/{total} [00:10<01:30,  1.1it/s]")
        if step % 10 == 0:
            lines.append(f"{{'loss': {first - step / 1000}, 'learning_rate': 1e-05, 'epoch': {2 * step / total:.2f}}}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("total", [100, 80])
def test_the_bar_of_a_second_run(tmp_path: Path, total: int) -> None:
    log = read_text_log(tmp_path, hugging_face(100, range(1, 101), 3.0) + hugging_face(total, range(1, total + 1), 2.0))
    steps, losses = zip(*points(log, "train/loss"), strict=True)
    assert steps == tuple(range(10, total + 1, 10)) and max(losses) < 2
    assert len(resumes(log)) == 1 and log.settings.epochs is None


def test_the_bar_of_a_resumed_run(tmp_path: Path) -> None:
    log = read_text_log(tmp_path, hugging_face(100, range(1, 71), 3.0) + hugging_face(100, range(51, 101), 2.0))
    steps, losses = zip(*points(log, "train/loss"), strict=True)
    assert steps == tuple(range(10, 101, 10))
    assert losses[4] > 2.9 and losses[5] < 2


def test_a_bar_of_the_run_beside_whole_epochs(tmp_path: Path) -> None:
    rows = [(100 * epoch, epoch) for epoch in (1, 2, 3)]
    text = "".join(f" 10%|█ | {step}/300 [00:10<01:30, 1.1it/s]\n{{'loss': {4 - n}, 'epoch': {n}.0}}\n" for step, n in rows)
    assert points(read_text_log(tmp_path, text), "train/loss") == [(100, 3), (200, 2), (300, 1)]


def test_a_drop_after_the_total_is_a_border_of_epochs(tmp_path: Path) -> None:
    steps = [100, 200, 300, 400, 500, 600] * 3
    log = read_text_log(tmp_path, "".join(f"step {step}/600 loss {9 - n / 10}\n" for n, step in enumerate(steps)))
    assert [step for step, _ in points(log, "train/loss")] == list(range(100, 1801, 100))
    assert not resumes(log) and any("600 steps an epoch" in note for note in log.notes)


def test_a_total_between_two_records_is_reached(tmp_path: Path) -> None:
    steps = [100, 200, 300] * 2
    log = read_text_log(tmp_path, "".join(f"step {step}/350 loss {9 - n / 10}\n" for n, step in enumerate(steps)))
    assert [step for step, _ in points(log, "train/loss")] == [100, 200, 300, 450, 550, 650]


def test_a_drop_before_the_total_is_a_restart(tmp_path: Path) -> None:
    steps = [100, 200, 300, 100, 200, 300, 400]
    log = read_text_log(tmp_path, "".join(f"step {step}/600 loss {9 - n / 10}\n" for n, step in enumerate(steps)))
    assert [step for step, _ in points(log, "train/loss")] == [100, 200, 300, 400] and len(resumes(log)) == 1


def test_a_log_that_falls_back_at_every_second_line(tmp_path: Path) -> None:
    """Two processes write it: it is read in one go, and not told line by line."""
    count = 20_000
    text = "".join(f"step {step + 1} loss: 2.5\nstep {step} loss: 2.5\n" for step in range(1, count))
    log = read_text_log(tmp_path, text)
    assert np.all(np.diff(log.series["train/loss"].steps) > 0)
    assert sum("fall back" in note for note in log.notes) == MOST_TOLD + 1
