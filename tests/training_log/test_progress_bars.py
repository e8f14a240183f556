"""Which of several progress bars counts the steps of the training."""

from pathlib import Path

from tests.training_log.logs import points, read_text_log

LOADING = (
    "Loading checkpoint shards: 100%|██| 2/2 [00:05<00:00, 2.6s/it]\nMap: 100%|██| 10000/10000 [00:01<00:00, 5000 examples/s]\n"
)


def bar(step: int, total: int) -> str:
    """A progress bar."""
    return f" 10%|█ | {step}/{total} [00:10<01:30, 1.1it/s]\n"


def record(loss: float, name: str = "loss") -> str:
    """A record of Hugging Face's trainer."""
    return f"{{'{name}': {loss}, 'learning_rate': 1e-05, 'epoch': 0.1}}\n"


def test_bars_that_are_over_before_the_first_record(tmp_path: Path) -> None:
    log = read_text_log(tmp_path, LOADING + bar(10, 100) + record(2.1))
    assert points(log, "train/loss") == [(10, 2.1)] and log.settings.epochs is None
    log = read_text_log(tmp_path, LOADING + bar(10, 100) + record(2.1) + bar(20, 100) + record(2.0))
    assert points(log, "train/loss") == [(10, 2.1), (20, 2.0)]


def test_bars_of_evaluation_before_and_between(tmp_path: Path) -> None:
    evaluation = "".join(bar(step, 250) for step in (0, 100, 200, 250)) + record(2.2, "eval_loss")
    text = LOADING + evaluation
    for step in (10, 20, 30):
        text += bar(step, 100) + record(3 - step / 100) + evaluation
    log = read_text_log(tmp_path, text)
    assert points(log, "train/loss") == [(10, 2.9), (20, 2.8), (30, 2.7)]


def test_the_loss_on_the_bar_itself(tmp_path: Path) -> None:
    epochs = "".join(f" 50%|█ | {done}/2 [00:10<01:30, 1.1it/s]\n" for done in (0, 1))
    text = LOADING + epochs + "".join(f" 10%|█ | {step}/9 [00:10<01:30, 1.1it/s, loss=2.5]\n" for step in (1, 2, 3))
    assert [step for step, _ in points(read_text_log(tmp_path, text), "train/loss")] == [1, 2, 3]


def test_a_record_behind_both_bars_of_an_epoch_is_of_the_training(tmp_path: Path) -> None:
    text = "".join(bar(50, 50) + bar(7, 7) + f"Epoch {epoch} train loss: {3 - epoch}\n" for epoch in (1, 2))
    assert points(read_text_log(tmp_path, text), "train/loss") == [(50, 2), (100, 1)]
