"""Logs that show a part of what happened: rates of every 500th step, a crash before the run went on, counts that may be running
totals, steps from 0, overflows of a precision that is not known."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fledge.diagnosis.diagnose import diagnose
from fledge.diagnosis.facts import tokens_of_update
from fledge.doctor import DoctorOptions, examine
from fledge.training_log import TrainingSettings
from fledge.training_log.records import Series
from tests.diagnosis.made_logs import FRESH, case_of, falling, linear_rates, log_of, noisy, pretraining, tuning, whole

OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def _told(case) -> dict[str, Any]:
    """Name of a cause, or of what follows from one → its finding."""
    found = diagnose(case).found
    return {one.cause: one.sign.finding for one in found} | {two.check: two for one in found for two in one.consequences}


def _examined(file: Path, **given: str) -> dict[str, Any]:
    return _told(examine(file, DoctorOptions(depth="curves", given=given))[0].case)


def _state(folder: Path, records: list[dict[str, Any]], steps: int) -> Path:
    state = {"log_history": records, "max_steps": steps, "global_step": steps, "num_train_epochs": 2}
    (folder / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    return folder / "trainer_state.json"


def _lines(folder: Path, records: list[dict[str, Any]]) -> Path:
    (folder / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return folder / "log.jsonl"


# -- rates between the points of a log ------------------------------------------------------------------------------------


def _sparse(rates, every: int, **settings):
    """A tuning of 3,000 steps, of which every so many are logged, with rates as a function of steps."""
    at = np.arange(every, 3001.0, every)
    loss = falling(at, 2.0, 1.2, 300)
    log = log_of(loss, TrainingSettings(learning_rate=5e-5, steps=3000.0, **settings), source="Hugging Face")
    return replace(log, series={"train/loss": Series(at, loss), "train/lr": Series(at, rates(at))})


PEAK = 5e-5
SHAPES = {
    "linear": lambda at: linear_rates(at, PEAK, 0, 3000),
    "linear after a warm-up": lambda at: linear_rates(at, PEAK, 100, 3000),
    "linear after a long warm-up": lambda at: linear_rates(at, PEAK, 700, 3000),
    "cosine": lambda at: np.minimum(PEAK * at / 90, PEAK * (1 + np.cos(math.pi * at / 3000)) / 2),
    "inverse root": lambda at: PEAK * np.minimum(at / 100, (100 / at) ** 0.5),
}
NOT_PLANNED = "learning rate not as planned"


@pytest.mark.parametrize("schedule", [None, "linear", "cosine"])
@pytest.mark.parametrize("every", [10, 70, 250, 500, 900])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_peak_that_no_point_shows_is_as_planned(shape, every, schedule):
    told = _told(case_of(_sparse(SHAPES[shape], every, schedule=schedule)))
    assert NOT_PLANNED not in told and "learning rate too low" not in told


@pytest.mark.parametrize("schedule", [None, "linear"])
@pytest.mark.parametrize("every", [1, 10, 70])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_peak_far_below_the_set_one_is_not_as_planned(shape, every, schedule):
    log = _sparse(lambda at: SHAPES[shape](at) / 20, every, schedule=schedule)
    assert _told(case_of(log))[NOT_PLANNED].confidence == "certain"


@pytest.mark.parametrize(("share", "is_told"), [(1.0, False), (0.5, True), (3.0, True)])
def test_a_constant_column_shows_its_rate_however_few_its_points(share, is_told):
    log = _sparse(lambda at: np.full(len(at), share * PEAK), 500, schedule="constant")
    assert (NOT_PLANNED in _told(case_of(log))) == is_told


def test_a_log_that_goes_on_from_a_checkpoint_does_not_show_the_peak():
    log = _sparse(SHAPES["linear"], 10)
    late = {name: one.between(2000, 3000) for name, one in log.series.items()}
    assert NOT_PLANNED not in _told(case_of(replace(log, series=late)))


def test_a_trainer_state_with_few_points(tmp_path):
    at = np.arange(500, 3001, 500)
    records = [
        {"step": int(one), "epoch": 2 * one / 3000, "loss": 2 - one / 6000, "learning_rate": PEAK * (1 - one / 3000)}
        for one in at
    ]
    assert NOT_PLANNED not in _examined(_state(tmp_path, records, 3000), learning_rate="5e-5", schedule="linear")


# -- crashes --------------------------------------------------------------------------------------------------------------


def _text(folder: Path, *parts: range | str) -> Path:
    """A log of lines with a loss at steps of ranges, and of other lines."""
    lines = []
    for part in parts:
        if isinstance(part, str):
            lines.append(part)
        else:
            lines += [f"step {step} loss {2 + 3 / (1 + step / 50):.4f}" for step in part]
    (folder / "train.log").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "train.log"


def test_a_crash_after_which_the_run_was_resumed_is_not_its_end(tmp_path):
    told = _examined(_text(tmp_path, range(10, 300, 10), OOM, range(210, 1000, 10)))
    assert "out of memory" not in told and "stopped by an error" not in told


@pytest.mark.parametrize(
    "line",
    ["node1:77:99 [0] NCCL WARN Call to connect failed", "Traceback (most recent call last):\n  at\nValueError: no sample"],
)
def test_a_warning_or_an_error_that_was_caught_is_not_the_end(tmp_path, line):
    told = _examined(_text(tmp_path, range(10, 300, 10), line, range(300, 1000, 10)))
    assert "stopped by an error" not in told


def test_a_crash_behind_the_last_record_is_the_end(tmp_path):
    first = _text(tmp_path, range(10, 300, 10), OOM, range(210, 1000, 10), OOM.replace("2.00", "3.00"))
    told = _examined(first)["out of memory"]
    assert told.confidence == "certain" and "3.00" in told.message
    again = _text(tmp_path, range(10, 300, 10), OOM, "step 290 loss 2.4412")  # a progress bar is drawn once more
    assert _examined(again)["out of memory"].confidence == "certain"


def test_records_that_a_buffer_held_back_leave_a_crash_possible(tmp_path):
    few = _examined(_text(tmp_path, range(10, 200, 10), OOM, range(200, 400, 10)))["out of memory"]
    assert few.confidence == "possible" and "CUDA out of memory" in few.message
    assert "out of memory" not in _examined(_text(tmp_path, range(10, 200, 10), OOM, range(200, 4000, 10)))


# -- tokens ---------------------------------------------------------------------------------------------------------------


def _counts(values, every: int = 1) -> float | None:
    return tokens_of_update(Series(every * np.arange(1.0, len(values) + 1), np.asarray(values, float)))


def test_counts_of_tokens_are_told_from_running_totals(rng):
    steps = np.arange(1.0, 401)
    sizes = rng.integers(20_000, 40_000, 400)
    assert _counts(np.full(399, 32_768.0)) == 32_768
    assert _counts(sizes) == pytest.approx(30_000, rel=0.05)
    assert _counts(np.cumsum(sizes)) == pytest.approx(30_000, rel=0.05)
    assert _counts(32_768 * 10 * steps, every=10) == 32_768
    assert _counts(1e9 + 32_768 * steps) == pytest.approx(32_768)  # a log that goes on from a checkpoint
    assert _counts(32_768 * np.append(steps[:200], steps[:200])) == pytest.approx(32_768)  # a total that begins anew
    assert _counts(np.floor(steps / 100) * 1e6) == pytest.approx(1e4, rel=0.2)  # a total in millions
    assert _counts(np.minimum(4096 * 2.0 ** (steps // 20), 65_536)) == 65_536  # a batch that grows
    assert _counts([32_768.0] * 3) == 32_768 and _counts([1e5, 2e5, 3e5]) == 1e5
    assert _counts([1e5]) is None and _counts([3e5, 3.1e5, 3.3e5]) is None and _counts([0.0] * 20) is None


def test_tokens_of_each_update_are_no_running_total(tmp_path, rng):
    records = [
        {"step": step, "loss": 2 + 4 / (1 + step / 20) + rng.normal(0, 0.03), "tokens": 32_768, "lr": 1e-3}
        for step in range(1, 400)
    ]
    options = DoctorOptions(depth="curves", given={"vocab_size": "32000", "kind": "pretrain", "parameters": "2e7"})
    case = examine(_lines(tmp_path, records), options)[0].case
    assert "batch too small" not in _told(case)
    assert case.value("plan/batch_tokens") == 32_768 and case.value("plan/tokens_per_parameter") in (None, 32_768 * 399 / 2e7)


# -- weight decay ---------------------------------------------------------------------------------------------------------


def _long_pretraining(rng, columns: bool, **settings):
    at = np.arange(600.0, 600_001, 600)
    low, peak = 6e-5, 6e-4
    rates = np.minimum(peak * at / 2000, low + (peak - low) * (1 + np.cos(math.pi * at / 600_000)) / 2)
    gpt2 = TrainingSettings(
        kind="pretrain", initial="fresh", learning_rate=peak, min_learning_rate=low, steps=600_000.0, warmup_steps=2000.0,
        weight_decay=0.1, optimizer="adamw", vocab_size=50_304.0, **settings,
    )  # fmt: skip
    loss = noisy(rng, falling(at, 10.9, 2.85, 600), 0.005)
    log = log_of(loss, gpt2, source="text")
    series = {"train/loss": Series(at, loss)} | ({"train/lr": Series(at, rates)} if columns else {})
    return replace(log, series=series)


@pytest.mark.parametrize("columns", [True, False])
def test_a_usual_decay_over_a_long_pretraining_is_sound(rng, columns):
    assert "weight decay too strong" not in _told(case_of(_long_pretraining(rng, columns)))


def test_a_usual_decay_of_trained_weights_is_possible(rng):
    log = _long_pretraining(rng, True)
    log = replace(log, settings=replace(log.settings, initial="trained"))
    assert _told(case_of(log))["weight decay too strong"].confidence == "possible"


def test_a_usual_decay_with_a_loss_that_rises_again_is_told(rng):
    log = _long_pretraining(rng, True)
    loss = log.series["train/loss"]
    rising = loss.values + 2.0 * np.clip(np.arange(len(loss)) / len(loss) - 0.3, 0, None)
    log = replace(log, series={**log.series, "train/loss": Series(loss.steps, rising)})
    assert _told(case_of(log))["weight decay too strong"].confidence == "likely"


def test_rates_that_are_not_logged_add_up_to_those_of_a_falling_schedule(rng):
    sums = {}
    for columns in (True, False):
        case = case_of(_long_pretraining(rng, columns, schedule="cosine"))
        diagnose(case)
        sums[columns] = case.value("plan/summed_rates")
    assert sums[False] == pytest.approx(sums[True], rel=0.02)
    level = case_of(log_of(np.full(100, 2.0), replace(whole(FRESH, 100), schedule="constant", learning_rate=1e-3)))
    diagnose(level)
    assert level.value("plan/summed_rates") == pytest.approx(0.1)


# -- numbers that are none, steps from 0 ------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_at_step_0(tmp_path):
    records = [{"step": step, "loss": math.nan if step == 0 else 2 + 3 / (1 + step / 20)} for step in range(200)]
    finding = _examined(_lines(tmp_path, records))["bad numbers in single rows"]
    assert finding.confidence == "likely" and "step 0" in finding.message


def test_no_warmup_in_a_log_that_begins_at_step_0(rng):
    at = np.arange(1, 801.0)
    log = replace(pretraining(rng, warmup_steps=0.0))
    hurt = log.series["train/loss"].values + 3 * np.exp(-((at - 20) ** 2) / 100)
    series = {**log.series, "train/loss": Series(at, hurt), "train/lr": Series(at, linear_rates(at, 4e-3, 1, 800))}
    from_0 = {name: Series(one.steps - 1, one.values) for name, one in series.items()}
    assert _told(case_of(replace(log, series=from_0)))["no warm-up"].confidence == "likely"


def _with_norms(rng, bad, precision=None):
    log = tuning(rng, 300, precision=precision)
    norms = log.series["train/grad_norm"]
    values = np.where(np.isin(norms.steps, bad), math.inf, norms.values)
    return case_of(replace(log, series={**log.series, "train/grad_norm": Series(norms.steps, values)}))


@pytest.mark.parametrize(
    ("bad", "precision", "sure"),
    [
        ((1, 2), None, None),  # the loss scale of fp16 finds its size
        ((1, 2, 150, 220), None, "possible"),
        ((150, 220), "bf16", "likely"),
        ((150, 220), "fp16", None),
    ],
)
def test_gradients_alone_that_are_no_numbers_may_be_overflows(rng, bad, precision, sure):
    finding = _told(_with_norms(rng, bad, precision)).get("bad numbers in single rows")
    assert (finding and finding.confidence) == sure
    if finding and sure == "possible":
        assert finding.evidence["first_step"] == 150 and finding.evidence["share"] == pytest.approx(2 / 300)


# -- waiting --------------------------------------------------------------------------------------------------------------


def test_waiting_for_data_is_mended_by_no_setting_of_the_recipe(rng):
    log = pretraining(rng)
    at = log.series["train/loss"].steps
    waits = {"system/step_seconds": Series(at, np.full(800, 0.1)), "system/phases/data": Series(at, np.full(800, 0.06))}
    finding = _told(case_of(replace(log, series={**log.series, **waits})))["waiting for data"]
    assert finding.patch is None and "dataloader_num_workers" in finding.hint
