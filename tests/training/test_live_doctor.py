"""The doctor while a stage trains: what it tells, when, and that nothing depends on it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fledge.data import StageDataset
from fledge.findings import Finding
from fledge.monitor.run_logger import LogTargets, RunLogger
from fledge.pipeline import Pipeline
from fledge.plan.horizon import TrainingHorizon
from fledge.recipe import recipe_from_dict
from fledge.recipe.schema import SftStage
from fledge.run import Console, StageDirectory, read_events
from fledge.run.alerts import Alerts
from fledge.tokenizer import Tokenizer
from fledge.training import live_doctor
from fledge.training.batch_source import DatasetSource
from fledge.training.live_doctor import LiveDoctor
from fledge.training.trainer import Trainer
from fledge.training_log.fledge_run import read_stage
from tests.doctor.data_figures.support import changed, dialogues
from tests.support import small_runs
from tests.support.decoders import make_decoder
from tests.support.run_directory import events, final_results
from tests.support.sources import jsonl, prepare

STEPS = 400
PLAN = {"kind": "sft", "steps": STEPS, "effective_batch_rows": 8, "context": 256, "parameters": 100_000}
CAUSE = "learning rate zero"


@pytest.fixture(scope="module")
def data(chatml: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> StageDataset:
    """Conversations of random words, all of them different."""
    return prepare("sft", jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", dialogues(160)), chatml, max_seq_len=256)


class Watched:
    """A stage of a run that is watched: its logger, its doctor, and events as a trainer writes them."""

    def __init__(
        self, folder: Path, data: StageDataset, tokenizer: Tokenizer, step: int = 0, *, rate: float = 3e-3, **doctor: Any
    ) -> None:
        directory = StageDirectory(folder / "run" / "sft")
        directory.root.mkdir(parents=True, exist_ok=True)
        (directory.root / "plan.json").write_text(json.dumps(PLAN | {"learning_rate": rate}), encoding="utf-8")
        optimizer = {"name": "adamw", "learning_rate": 3e-3, "betas": [0.9, 0.95], "weight_decay": 0.1}
        stage = SftStage.model_validate(
            {"kind": "sft", "data": {"train": "rows.jsonl", "max_seq_len": 256}, "optimizer": optimizer, "doctor": doctor}
        )
        self.doctor = LiveDoctor(
            stage=stage, train=data.train, validation=None, tokenizer=tokenizer, directory=directory,
            model=make_decoder(vocab=tokenizer.vocab_size), total_steps=STEPS,
        )  # fmt: skip
        horizon = TrainingHorizon(
            steps=STEPS, rows=8 * STEPS, micro_batch_size=8, gradient_accumulation_steps=1, initial_accumulation_steps=1
        )
        self.source = DatasetSource(data.train, horizon, 8, lambda batch: batch.num_target_tokens)
        alerts = Alerts("mine", "info", folder / "alerts.jsonl", None, print)
        targets = LogTargets(directory=directory, alerts=alerts, observers=(self.doctor,))
        self.logger = RunLogger(targets, step, stage, Console(quiet=True))
        self.events, self.alerts = directory.events, folder / "alerts.jsonl"

    def train(self, first: int, last: int, rate: float = 3e-3, looks: bool = True) -> None:
        """Write the `step` events of a loss that falls, from step `first` to `last`, and look after each."""
        draw = np.random.default_rng(first)
        for step in range(first, last + 1):
            loss = 2.0 + 4.0 * (step + 1) ** -0.5 + 0.05 * draw.standard_normal()
            figures = {"loss": loss, "lr": rate, "grad_norm": 1.0 + 0.1 * draw.random(), "epoch": step * 8 / 160}
            self.logger.write("step", step, **{f"train/{name}": float(value) for name, value in figures.items()})
            if looks:
                self.look(step)

    def look(self, step: int, **more: Any) -> float:
        """Look after a step."""
        return self.doctor.look(step, self.logger, self.source.batch, **more)

    def told(self) -> list[tuple[int, str]]:
        """(step, cause) of what was told so far."""
        return [(event["step"], event["cause"]) for event in read_events(self.events) if event["kind"] == "finding"]


def test_a_healthy_stage_is_told_nothing(tmp_path: Path, data: StageDataset, chatml: Tokenizer) -> None:
    watched = Watched(tmp_path, data, chatml)
    assert watched.look(0) > 0
    watched.train(1, 200)
    assert watched.told() == [] and not watched.alerts.exists()


def test_a_fault_of_the_targets_is_told_before_the_first_step(tmp_path: Path, data: StageDataset, chatml: Tokenizer) -> None:
    end = chatml.eot_id
    faulty = changed(data, lambda tokens, weights: (tokens, np.where(tokens == end, 0, weights)))
    watched = Watched(tmp_path, faulty, chatml)
    watched.look(0)
    assert watched.told() == [(0, "end token never supervised")]
    (event,) = [event for event in read_events(watched.events) if event["kind"] == "finding"]
    assert set(Finding(check="", severity="info", message="", confidence="certain").as_dict()) <= set(event)
    assert event["severity"] == "error" and event["confidence"] == "certain" and event["steps"] is None
    assert event["guards"] == [] and "data/ends_supervised" in event["evidence"]
    (alert,) = [json.loads(line) for line in watched.alerts.read_text(encoding="utf-8").splitlines()]
    assert alert["message"] == event["message"] and alert["level"] == "error"
    watched.train(1, 120)
    assert watched.told() == [(0, "end token never supervised")], "it is told once"


def test_looks_come_at_their_steps_and_never_without_an_interval(tmp_path: Path, data: StageDataset, chatml: Tokenizer) -> None:
    watched = Watched(tmp_path, data, chatml, every=40)
    assert [step for step in range(130) if watched.look(step)] == [0, 20, 40, 50, 80, 120]
    assert watched.look(120, is_last=True) == 0.0 and watched.look(123, is_last=True) > 0
    never = Watched(tmp_path / "never", data, chatml, every=0)
    assert not any(never.look(step, is_last=step == 100) for step in (0, 20, 100))


def test_looks_become_rarer_where_they_would_take_too_long(
    tmp_path: Path, data: StageDataset, chatml: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_doctor, "FREE_SECONDS", 0.0)
    watched = Watched(tmp_path, data, chatml, every=1)
    assert [step for step in range(60) if watched.look(step)] == [0]
    assert watched.look(60, is_last=True) > 0


def test_what_is_only_likely_is_told_when_two_looks_find_it_and_what_is_certain_at_once(
    tmp_path: Path, data: StageDataset, chatml: Tokenizer
) -> None:
    watched = Watched(tmp_path, data, chatml, every=10, rate=3.0)
    watched.train(1, 60, rate=3.0)
    told = watched.told()
    assert [cause for _, cause in told] == ["learning rate too high"] and told[0][0] <= 30
    zero = Watched(tmp_path / "zero", data, chatml, every=10)
    zero.train(1, 20, rate=0.0)
    assert CAUSE in [cause for step, cause in zero.told() if step == 10]


def test_a_resumed_stage_repeats_nothing_and_one_that_goes_back_says_what_is_gone(
    tmp_path: Path, data: StageDataset, chatml: Tokenizer
) -> None:
    watched = Watched(tmp_path, data, chatml, every=10)
    watched.train(1, 40, rate=0.0)
    told = watched.told()
    assert len(told) == 1
    watched.logger.close()
    resumed = Watched(tmp_path, data, chatml, step=35, every=10)
    assert resumed.told() == told
    resumed.train(36, 60, rate=0.0)
    assert resumed.told() == told
    resumed.logger.rewind(told[0][0] - 1, 1)
    assert resumed.told() == []
    resumed.train(told[0][0], 40, rate=0.0)
    assert [cause for _, cause in resumed.told()] == [CAUSE]


def test_what_a_guard_has_told_is_written_with_its_name_and_not_sent_again(
    tmp_path: Path, data: StageDataset, chatml: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(live_doctor.GUARDS, CAUSE, ("divergence",))
    watched = Watched(tmp_path, data, chatml, every=10)
    watched.logger.report(Finding(check="divergence", severity="warning", message="it rose"), 1, "guard", action="warn")
    watched.train(1, 40, rate=0.0)
    (event,) = [event for event in read_events(watched.events) if event["kind"] == "finding"]
    assert event["cause"] == CAUSE and event["guards"] == ["divergence"]
    assert len(watched.alerts.read_text(encoding="utf-8").splitlines()) == 1, "only that of the guard"


def test_an_examination_that_fails_ends_the_watching_and_not_the_run(
    tmp_path: Path, data: StageDataset, chatml: Tokenizer
) -> None:
    watched = Watched(tmp_path, data, chatml)
    watched.doctor.look(0, watched.logger, _unreadable)
    (alert,) = [event for event in read_events(watched.events) if event["kind"] == "alert"]
    assert alert["check"] == "doctor" and "RuntimeError: no rows" in alert["message"]
    assert watched.look(20) == watched.look(100, is_last=True) == 0.0


def _unreadable(step: int) -> Any:
    raise RuntimeError("no rows")


def test_the_guards_of_the_table_and_its_causes_exist() -> None:
    from fledge.diagnosis.diagnose import CAUSES, SYMPTOMS
    from fledge.monitor.remedies import REMEDIES
    from fledge.recipe.schema import GrpoStage, RewardStage

    names = {one.name for one in (*CAUSES, *SYMPTOMS)}
    assert {*live_doctor.GUARDS, *live_doctor.OF_THE_PLAN} <= names
    stages = (SftStage, RewardStage, GrpoStage)
    guards = {name for stage in stages for name in type(stage.model_fields["guards"].default).model_fields}
    used = {check for checks in live_doctor.GUARDS.values() for check in checks}
    assert used <= guards | set(REMEDIES)


# -- real runs ----------------------------------------------------------------------------------------------------------


def _run(folder: Path, rows: Path, steps: int = 24, **stage: Any) -> Pipeline:
    section = {
        "kind": "sft", "data": {"train": str(rows / "codes.jsonl"), "validation": 0.1, "max_seq_len": 64},
        "batch": {"micro_batch_size": 4}, "optimizer": {"learning_rate": 1e-3}, "duration": f"{steps} steps",
        "checkpoint": {"every_steps": 8}, "evaluation": {"every_steps": 8}, **stage,
    }  # fmt: skip
    tree = {
        "name": "small", "output": str(folder), "seed": 3, "runtime": small_runs.RUNTIME, "tokenizer": {"vocab_size": 400},
        "model": {**small_runs.MODEL, "dropout": 0.1}, "stages": {"sft": section},
    }  # fmt: skip
    return Pipeline(recipe_from_dict(tree), Console(quiet=True))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small files of rows."""
    folder = tmp_path_factory.mktemp("rows")
    small_runs.write_rows(folder)
    return folder


def test_a_run_learns_the_same_with_and_without_the_doctor_and_when_it_is_resumed(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate is far too high; the resumed run, killed after step 20, goes on from step 16."""
    faulty: dict[str, Any] = {"optimizer": {"learning_rate": 0.1}}
    watched = _run(tmp_path / "on", rows, doctor={"every": 4}, **faulty).run()
    assert final_results(watched, ("sft",)) == final_results(
        _run(tmp_path / "off", rows, doctor=False, **faulty).run(), ("sft",)
    )
    told = [event["cause"] for event in events(watched, "sft", "finding")]
    assert told.count("learning rate too high") == 1 and not events(tmp_path / "off" / "small", "sft", "finding")
    phases = [event["system/phases"] for event in events(watched, "sft", "system")]
    assert any("doctor" in one for one in phases)

    step = Trainer.step

    def dies(self: Trainer) -> None:
        if self.state.step == 20:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(Trainer, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "again", rows, doctor={"every": 4}, **faulty).run()
    monkeypatch.setattr(Trainer, "step", step)
    again = _run(tmp_path / "again", rows, doctor={"every": 4}, **faulty).run(resume=True)
    assert final_results(again, ("sft",)) == final_results(watched, ("sft",))
    assert sorted(event["cause"] for event in events(again, "sft", "finding")) == sorted(told)


def test_the_doctor_of_a_run_sees_what_a_reader_of_its_events_sees(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doctors: list[LiveDoctor] = []
    replay = LiveDoctor.replay

    def remembered(self: LiveDoctor, kept: Any) -> None:
        doctors.append(self)
        replay(self, kept)

    monkeypatch.setattr(LiveDoctor, "replay", remembered)
    run = _run(tmp_path, rows, steps=6).run()
    read, seen = read_stage(run / "sft"), doctors[-1].columns.series()
    assert {"train/loss", "train/lr", "eval/loss", "system/step_seconds", "system/phases/data"} <= set(seen)
    assert set(read.series) == set(seen)
    for name, series in read.series.items():
        np.testing.assert_array_equal(series.steps, seen[name].steps, err_msg=name)
        np.testing.assert_array_equal(series.values, seen[name].values, err_msg=name)
    assert [event["kind"] for event in read.events] == [event["kind"] for event in doctors[-1].columns.events]
