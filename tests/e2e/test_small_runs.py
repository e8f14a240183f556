"""Runs so small that the losses of two batches differ by several nats: no guard ends a healthy one, each finds a mad one. What
became of the model is said on the console, in result.json and in the headline of the report."""

from pathlib import Path
from typing import Any

import pytest

from fledge.errors import FledgeError
from fledge.report import write_report
from fledge.run import Console
from fledge.run.text_files import read_json
from tests.support import small_runs
from tests.support.run_directory import events


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows half of the dialogues by heart. The rows are in the folder of its run."""
    return small_runs.start_model(tmp_path_factory.mktemp("small"))


def rows(start: Path, name: str) -> str:
    """The path of a file of rows."""
    return str(next(parent for parent in start.parents if (parent / "known.jsonl").exists()) / f"{name}.jsonl")


def fine_tune(start: Path, output: Path, batch: int, rate: float, seed: int) -> Path:
    """One epoch of SFT on the rows that are half known; returns the run directory."""
    stage = {
        "kind": "sft", "init_from": str(start), "data": {"train": rows(start, "mixed"), "validation": "5%"},
        "batch": {"micro_batch_size": batch}, "optimizer": {"learning_rate": rate}, "duration": "1 epochs",
    }  # fmt: skip
    return small_runs.train(output, stage, seed=seed)


@pytest.mark.parametrize(("batch", "rate", "seed"), [(1, 1e-4, 1), (1, 2e-3, 2), (2, 1e-3, 3), (8, 3e-4, 4)])
def test_a_healthy_small_run_is_neither_stopped_nor_rolled_back(
    start: Path, tmp_path: Path, batch: int, rate: float, seed: int
) -> None:
    run = fine_tune(start, tmp_path, batch, rate, seed)
    losses = [event["train/loss"] for event in events(run, "sft", "step")]
    if batch == 1:
        assert max(losses) - min(losses) > 3, "the rows should differ as much as half-known rows do"
    assert not [event for event in events(run, "sft", "guard") if event["action"] != "warn"]


def test_a_mad_learning_rate_is_found_at_the_update_it_begins_with(start: Path, tmp_path: Path) -> None:
    with pytest.raises(FledgeError, match=r"training diverged: .* 3 rollbacks did not help") as caught:
        fine_tune(start, tmp_path, batch=4, rate=10.0, seed=1)
    assert "rows" not in (caught.value.hint or ""), "no rows are named, so the hint must not speak of them"
    first = events(tmp_path / "small", "sft", "guard")[0]
    assert first["check"] == "divergence" and first["first_bad_step"] <= 3


def told(run: Path, kind: str) -> tuple[set[str], str]:
    """The verdicts on the stage, and the text of the report."""
    found = {finding["check"] for finding in read_json(run / kind / "result.json")["verdicts"]}
    return found, write_report(run).read_text(encoding="utf-8")


def stage(start: Path, kind: str, name: str, rate: float, duration: str, **more: Any) -> dict[str, Any]:
    """A stage with half of its rows for validation."""
    return {
        "kind": kind, "init_from": str(start), "data": {"train": rows(start, name), "validation": "50%"},
        "batch": {"micro_batch_size": 2}, "optimizer": {"learning_rate": rate}, "duration": duration, **more,
    }  # fmt: skip


def test_a_preference_stage_that_destroys_the_model_is_told(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    destroying = stage(start, "preference", "pairs", 5e-2, "30 steps", guards={"divergence": "ignore"})
    run = small_runs.train(tmp_path, destroying, Console(live=False))
    after = read_json(run / "preference" / "eval" / "after.json")
    assert after["rewards/accuracies"] == 1.0, "by its own figures the stage is a success"
    found, page = told(run, "preference")
    assert "collapsed" in found
    assert "error: the model is destroyed: token accuracy 100.0%" in capsys.readouterr().err
    assert "The model is destroyed: token accuracy 100.0" in page and "模型已损坏" in page


def test_sft_that_overfits_is_told_and_its_best_checkpoint_goes_on(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overfitting = stage(start, "sft", "few", 2e-2, "120 steps", batch={"micro_batch_size": 4})
    overfitting["data"]["validation"] = rows(start, "others")
    run = small_runs.train(tmp_path, overfitting, Console(live=False))
    result = read_json(run / "sft" / "result.json")
    assert 0 < result["best_step"] < result["step"] and f"step-{result['best_step']:08d}" in result["model"]
    found, page = told(run, "sft")
    assert "worse_than_best" in found and "collapsed" not in found
    console = capsys.readouterr().err
    assert f"worse than its best since step {result['best_step']}" in console and "it overfits" in console
    assert "it overfits; the best checkpoint goes on" in page and "过拟合；沿用最好的检查点" in page


def test_sft_that_learns_nothing_is_told(start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = small_runs.train(tmp_path, stage(start, "sft", "codes", 1e-7, "8 steps"), Console(live=False))
    found, page = told(run, "sft")
    assert found == {"nothing_learned"}
    assert "nothing was learned: the validation loss was" in capsys.readouterr().err
    assert "Nothing was learned in 8 steps" in page and "没有学到东西" in page


def test_a_stage_that_makes_the_model_worse_passes_its_start_on(start: Path, tmp_path: Path) -> None:
    """Validation rows that the model knows by heart; training rows of another kind."""
    worse = stage(start, "sft", "codes", 5e-3, "16 steps")
    worse["data"]["validation"] = rows(start, "known")
    run = small_runs.train(tmp_path, worse)
    result = read_json(run / "sft" / "result.json")
    assert (result["best_step"], result["model"]) == (0, "checkpoints/step-00000000/model")
    found, page = told(run, "sft")
    assert found == {"worse_than_start"} and "the model it started from goes on" in page


def test_a_healthy_stage_has_no_verdict(start: Path, tmp_path: Path) -> None:
    run = small_runs.train(tmp_path, stage(start, "sft", "codes", 2e-3, "24 steps"))
    assert told(run, "sft")[0] == set()
