"""Lines of text logs that could be taken for something else: samples in fences, banners of evaluation, dashes."""

from itertools import pairwise
from pathlib import Path

import pytest

from fledge.training_log import read_logs, read_settings
from tests.training_log.logs import points, read_text_log

SAMPLE = "Sample: here is the code\n```python\nprint('a cut completion')\n"


def _steps(first: int, last: int) -> str:
    return "".join(f"step {step} loss: {9 - step / 100:.2f}\n" for step in range(first, last + 1))


@pytest.mark.parametrize("places", [(50,), (10, 90), (5, 6), (4, 40, 95)])
def test_a_log_that_prints_cut_samples_is_read_as_a_whole(tmp_path: Path, places: tuple[int, ...]) -> None:
    bounds = [0, *places, 100]
    text = "batch_size = 8\n" + SAMPLE.join(_steps(first + 1, last) for first, last in pairwise(bounds))
    log = read_text_log(tmp_path, text)
    assert [step for step, _ in points(log, "train/loss")] == list(range(1, 101))
    assert log.source == "text log" and log.settings.micro_batch_rows == 8


def test_a_document_with_a_figure_in_its_prose_stays_one(tmp_path: Path) -> None:
    text = f"# Notes\n\nAt step 7 loss: 3.5 was seen.\n\n```\n{_steps(1, 5)}```\n\nI hope for step 9 loss: 1.0\n"
    log = read_text_log(tmp_path, text)
    assert [step for step, _ in points(log, "train/loss")] == [1, 2, 3, 4, 5] and log.source == "text log in a document"


def test_markdown_is_a_document_unless_most_figures_stand_outside(tmp_path: Path) -> None:
    prose = "".join(f"- epoch {epoch} loss: 3.5\n" for epoch in (1, 2, 3))
    for name, inside, source in (("a.md", 5, "text log in a document"), ("b.md", 2, "text log")):
        (tmp_path / name).write_text(f"# Notes\n\n{prose}\n```\n{_steps(1, inside)}```\n")
        (log,) = read_logs(tmp_path / name)
        assert log.source == source


def test_settings_of_code_with_a_fence_in_a_comment(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('"""Use it so:\n\n```\nlr = 1\n```\n"""\nlearning_rate = 1e-3\nepochs = 3\n')
    (tmp_path / "b.txt").write_text(f"learning_rate: 1e-3\nepochs: 3\n{SAMPLE}")
    for name in ("a.py", "b.txt"):
        found = read_settings(tmp_path / name)
        assert (found.learning_rate, found.epochs) == (1e-3, 3)


TRAINING = (
    "***** Running training *****\n  Num examples = 10,000\n  Num Epochs = 3\n  Instantaneous batch size per device = 4\n"
    "  Gradient Accumulation steps = 2\n  Total optimization steps = 3,750\n"
)
EVALUATION = "***** Running {0} *****\n  Num examples = 500\n  Batch size = 8\n"
PREFIXES = (
    "",
    "[INFO|trainer.py:2134] 2024-03-02 12:00:00,123 >> ",
    "[INFO|2025-03-02 12:00:00] trainer.py:2134 >> ",
    "01/01/2024 12:00:00 - INFO - __main__ - ",
    "2024-01-01 12:00:00,123 - train.my_logger - INFO - ",
    "INFO:__main__:",
)
RECORD = "{'loss': 2.1, 'learning_rate': 1e-05, 'epoch': 0.1}\n"


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("word", ["Evaluation", "Prediction"])
def test_a_banner_of_evaluation_is_none_of_training(tmp_path: Path, prefix: str, word: str) -> None:
    evaluation = EVALUATION.format(word)
    for text in (TRAINING + RECORD + evaluation + RECORD, evaluation + TRAINING + RECORD):
        lines = [line if line.startswith("{") else prefix + line for line in text.splitlines(keepends=True)]
        settings = read_text_log(tmp_path, "".join(lines)).settings
        assert (settings.rows, settings.epochs, settings.steps) == (10_000, 3, 3_750)
        assert (settings.micro_batch_rows, settings.accumulation_steps) == (4, 2)


def test_settings_behind_a_banner_of_evaluation_count(tmp_path: Path) -> None:
    text = EVALUATION.format("Evaluation") + RECORD + RECORD + "learning_rate = 1e-3\n"
    settings = read_text_log(tmp_path, text).settings
    assert (settings.learning_rate, settings.rows) == (1e-3, None)


def test_a_dash_behind_a_count_is_no_range(tmp_path: Path) -> None:
    text = "".join(
        f"Epoch {epoch} - {step}/1000 - loss: {loss}\n" for epoch, step, loss in ((1, 100, 2.5), (1, 200, 2.4), (2, 100, 2.3))
    )
    log = read_text_log(tmp_path, text)
    assert points(log, "train/loss") == [(100, 2.5), (200, 2.4), (1100, 2.3)]
    log = read_text_log(tmp_path, "Epoch 3 - 45 sec - loss: 2.5 - 50 sec\nEpoch 4 - 45 sec - loss: 2.25 - 50 sec\n")
    assert points(log, "train/loss") == [(3, 2.5), (4, 2.25)] and not any("Ranges" in note for note in log.notes)


def test_ranges_stay_ranges(tmp_path: Path) -> None:
    log = read_text_log(tmp_path, "step: 500-1666, loss: 4.5 - 5.2\n")
    assert [step for step, _ in points(log, "train/loss")] == [500, 500, 1666, 1666]
