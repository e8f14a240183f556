"""Text logs of every trainer: figures, their steps, and what is told about them."""

import math
from pathlib import Path

import pytest

from fledge.training_log import TrainingSettings
from tests.training_log import logs
from tests.training_log.logs import points, read_text_log

LOSSES = {
    "minimind": (logs.MINIMIND, [(0, 8.912), (100, 7.412), (1500, 5.312)]),
    "nanochat": (logs.NANOCHAT, [(0, 11.090355), (10, 9.101)]),
    "litgpt": (logs.LITGPT, [(0, 2.312), (1, 2.5), (2, 2.002)]),
    "torchtune bar": (logs.TORCHTUNE_BAR, [(1, 2.9101), (2, 2.8101), (161, 1.8101)]),
    "torchtune file": (logs.TORCHTUNE_FILE, [(1, 2.9101), (2, 2.8101)]),
    "torchtitan": (logs.TORCHTITAN, [(1, 8.1234), (10, 6.1234)]),
    "hugging face": (logs.HUGGING_FACE, [(8, 2.1), (20, 2.0), (28, 1.9)]),
    "hugging face bar": (logs.HUGGING_FACE_BAR, [(10, 2.1), (20, 2.0)]),
    "megatron": (logs.MEGATRON, [(100, 7.399415)]),
    "lightning": (logs.LIGHTNING, [(10, 2.1), (100, 1.9), (150, 1.8)]),
    "keras": (logs.KERAS, [(100, 0.6932), (200, 0.5932)]),
    "chinese": (logs.CHINESE, [(100, 6.1), (500, 4.77)]),
    "chatlm": (logs.CHATLM, [(50, 6.1), (1650, 5.1), (1700, 5.0)]),
    "classic": (logs.CLASSIC, [(100, 0.5012), (600, 0.4012), (700, 0.3512)]),
    "epochs": (logs.EPOCHS, [(1, 2.1), (2, 1.9)]),
}
OTHERS = [
    ("minimind", "train/lr", (100, 0.000549)),
    ("minimind", "train/epoch", (1500, 1.0)),
    ("nanochat", "eval/bits_per_byte", (20, 2.1)),
    ("nanochat", "system/step_seconds", (10, 0.13022)),
    ("nanochat", "system/tokens_per_second", (10, 4_026_120)),
    ("nanochat", "system/mfu", (10, 0.461)),
    ("nanochat", "train/grad_norm", (10, 0.4421)),
    ("litgpt", "eval/loss", (2, 2.4)),
    ("litgpt", "system/step_seconds", (0, 1.23445)),
    ("torchtune bar", "train/epoch", (161, 2.0)),
    ("torchtune file", "train/lr", (2, 1.9e-5)),
    ("torchtitan", "system/memory_bytes", (10, 2.0**30)),
    ("torchtitan", "system/mfu", (1, 0.004)),
    ("hugging face", "eval/loss", (20, 2.05)),
    ("hugging face bar", "eval/loss", (20, 2.05)),
    ("megatron", "train/loss_scale", (100, 65536)),
    ("megatron", "train/skipped_steps", (100, 1)),
    ("megatron", "eval/loss", (100, 6.412)),
    ("megatron", "eval/perplexity", (100, 609.2)),
    ("lightning", "eval/loss", (100, 2.0)),
    ("keras", "train/token_accuracy", (200, 0.6012)),
    ("chinese", "eval/loss", (100, 5.8)),
    ("chinese", "eval/perplexity", (100, 330.3)),
    ("chinese", "train/grad_norm", (100, 1.2)),
    ("chatlm", "train/epoch_loss", (1650, 5.5)),
    ("chatlm", "eval/bleu", (1650, 2.94)),
    ("epochs", "eval/loss", (2, 2.1)),
]


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_its_steps_are_read(tmp_path: Path, name: str) -> None:
    text, expected = LOSSES[name]
    found = points(read_text_log(tmp_path, text), "train/loss")
    assert [step for step, _ in found] == pytest.approx([step for step, _ in expected])
    assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-12)


@pytest.mark.parametrize(("name", "figure", "point"), OTHERS)
def test_other_figures_are_read_in_the_units_of_fledge(tmp_path: Path, name: str, figure: str, point: tuple) -> None:
    found = dict(points(read_text_log(tmp_path, LOSSES[name][0]), figure))
    assert found[point[0]] == pytest.approx(point[1], rel=1e-9)


def test_not_a_number_stays_one(tmp_path: Path) -> None:
    log = read_text_log(tmp_path, logs.NANOGPT)
    steps, values = zip(*points(log, "train/loss"), strict=True)
    assert steps == (0, 10, 20) and math.isnan(values[1])
    assert points(log, "eval/loss") == [(0, 10.9876), (250, 5.2)]
    assert log.settings.batch_tokens == 491_520 and log.settings.parameters == pytest.approx(123.59e6)


def test_the_banner_of_hugging_face_gives_settings(tmp_path: Path) -> None:
    settings = read_text_log(tmp_path, logs.HUGGING_FACE).settings
    assert (settings.rows, settings.epochs, settings.steps) == (80_000, 5, 2_000)
    assert (settings.batch_rows, settings.micro_batch_rows, settings.accumulation_steps, settings.processes) == (192, 24, 4, 2)
    assert settings.trained_parameters == 124_439_808


def test_arguments_that_a_trainer_prints_are_settings(tmp_path: Path) -> None:
    text = "learning_rate=0.001,\nlr_scheduler_type=SchedulerType.COSINE,\nseed=42,\nstep 1 loss: 2.0\n"
    settings = read_text_log(tmp_path, text).settings
    assert (settings.learning_rate, settings.schedule, settings.seed) == (1e-3, "cosine", 42)


def test_the_end_and_a_crash_are_events(tmp_path: Path) -> None:
    finished = read_text_log(tmp_path, logs.HUGGING_FACE)
    assert finished.ended is True and finished.events[0]["kind"] == "end"
    crashed = read_text_log(tmp_path, logs.HUGGING_FACE_BAR)
    assert crashed.ended is None
    assert [(event["kind"], event["cause"], event["line"]) for event in crashed.events] == [("crash", "out of memory", 9)]


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("Killed", "killed"),
        ("RuntimeError: CUDA error: out of memory", "out of memory"),
        ("NaN or Inf found in input tensor.", "not a number"),
        ("Exception: Current loss scale already at minimum - cannot decrease scale anymore.", "loss scale"),
        ("OSError: [Errno 28] No space left on device", "disk full"),
    ],
)
def test_what_ended_a_run_is_told(tmp_path: Path, line: str, cause: str) -> None:
    log = read_text_log(tmp_path, f"step 1 loss: 2.0\n{line}\n")
    assert [event["cause"] for event in log.events] == [cause]


def test_micro_batches_become_updates_where_the_accumulation_is_known(tmp_path: Path) -> None:
    assert read_text_log(tmp_path, logs.MINIMIND).step_unit == "micro-batch"
    log = read_text_log(tmp_path, logs.MINIMIND, settings=TrainingSettings(accumulation_steps=4))
    assert log.step_unit == "update"
    assert [step for step, _ in points(log, "train/loss")] == [0, 25, 375]
    assert any("micro-batches" in note for note in log.notes)


def test_steps_of_an_epoch_are_told_by_the_settings(tmp_path: Path) -> None:
    text = "epoch:4, step:500, loss: 4.9\nepoch:4, step:1666, loss: 4.8\n"
    settings = TrainingSettings(rows=80_000, micro_batch_rows=24, accumulation_steps=4, processes=2)
    assert [step for step, _ in points(read_text_log(tmp_path, text), "train/loss")] == [500, 1666]
    log = read_text_log(tmp_path, text, settings=settings)
    assert [step for step, _ in points(log, "train/loss")] == pytest.approx([1375, 1666.5])
    assert log.step_unit == "update" and any("begin anew" in note for note in log.notes)


def test_steps_that_fit_the_run_stay(tmp_path: Path) -> None:
    text = "epoch:4, step:1300, loss: 4.9\nepoch:4, step:1666, loss: 4.8\n"
    settings = TrainingSettings(rows=80_000, micro_batch_rows=24, accumulation_steps=4, processes=2)
    log = read_text_log(tmp_path, text, settings=settings)
    assert [step for step, _ in points(log, "train/loss")] == [1300, 1666]


def test_a_resumed_run_counts_what_was_trained_again_once(tmp_path: Path) -> None:
    log = read_text_log(tmp_path, logs.RESUMED)
    assert points(log, "train/loss") == [(100, 3.0), (200, 2.5), (210, 2.6), (300, 2.3)]
    assert [event["kind"] for event in log.events] == ["crash", "resume"]
    assert any("left out" in note for note in log.notes)


def test_a_document_gives_its_first_log_and_the_settings_of_the_run(tmp_path: Path) -> None:
    log = read_text_log(tmp_path, logs.DOCUMENT)
    assert points(log, "train/loss") == [(1375, 4.5), (1375, 5.2), (1666.5, 4.5), (1666.5, 5.2)]
    assert points(log, "train/epoch_loss") == [(1666.5, 4.771)]
    assert points(log, "eval/bleu")[0] == pytest.approx((1666.5, 4.94))
    settings = log.settings
    assert (settings.learning_rate, settings.epochs, settings.batch_rows, settings.rows) == (1e-5, 5, 192, 80_000)
    assert (settings.context, settings.kind, settings.initial, settings.processes) == (256, "sft", "trained", 2)
    assert settings.other["div_factor"] == 50
    assert settings.schedule == "onecycle"
    told = " ".join(log.notes)
    assert "lines 6–8" in told and "lines 37–38" in told and "TrainConfigSFT" in told and "Ranges" in told


def test_words_and_other_numbers_are_no_figures(tmp_path: Path) -> None:
    text = (
        "Loading 32 shards of 1,000 rows\nwarmup steps: 100\nbest val loss: 1.5\nSaving checkpoint at step 400\n"
        "step 1 | loss: 2.5 | best loss: 2.0\nstep 2 | loss: 2.4 | best loss: 2.0\n"
    )
    log = read_text_log(tmp_path, text)
    assert points(log, "train/loss") == [(1, 2.5), (2, 2.4)]
    assert "eval/loss" not in log.series and log.settings.warmup_steps == 100
    assert log.unread["lines without a figure"] == 4


def test_figures_are_named_by_the_user(tmp_path: Path) -> None:
    text = "step 1 | objective value: 2.5\nstep 2 | objective value: 2.25\n"
    log = read_text_log(tmp_path, text, columns={"train/loss": "objective value"})
    assert points(log, "train/loss") == [(1, 2.5), (2, 2.25)]


def test_a_long_log_is_read_as_a_short_one(tmp_path: Path) -> None:
    """Forms of lines that are read by what was understood before give the same as reading each line."""
    lines = [
        f"2026-01-01 10:00:{step % 60:02} step {step} loss: {9 - step / 7:.5f} lr: {step * 1e-6:.2e}" for step in range(1, 60)
    ]
    together = points(read_text_log(tmp_path, "\n".join(lines)), "train/loss")
    alone = [points(read_text_log(tmp_path, line), "train/loss")[0] for line in lines]
    assert together == alone


def test_settings_that_a_later_line_overrides(tmp_path: Path) -> None:
    printed = "learning_rate = 1e-3 # small networks can go higher\nbatch_size = 64\nn_embd = 384\nmax_iters = 5000\n\n"
    lines = ["Overriding: learning_rate = 1.0", "Overriding: n_embd = 64", *(f"iter {step}: loss 2.5" for step in range(9))]
    settings = read_text_log(tmp_path, printed + "\n".join(lines)).settings
    assert (settings.learning_rate, settings.hidden_size, settings.micro_batch_rows, settings.steps) == (1.0, 64, 64, 5000)
    assert "line 6" in settings.origin["learning_rate"]
    alone = read_text_log(tmp_path, printed + "\n".join(lines[2:])).settings
    assert (alone.learning_rate, alone.hidden_size) == (1e-3, 384)


@pytest.mark.parametrize("number", ["-0.0000", "+1.5", "1e-3", "1,234.5"])
def test_numbers_of_any_form_are_read_alike(tmp_path: Path, number: str) -> None:
    log = read_text_log(tmp_path, "\n".join(f"iter {step}: loss 2.5, time {number}ms, mfu 5.00%" for step in range(6)))
    assert len(log.series["system/step_seconds"]) == 6
