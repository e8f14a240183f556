import json
from pathlib import Path

import pytest

from fledge.doctor_bench import frozen
from fledge.doctor_bench.baselines import sagemaker, spike_score, trainproof
from fledge.doctor_bench.case_key import CaseKey
from fledge.doctor_bench.command import chosen_groups, main
from fledge.doctor_bench.judging import judge
from fledge.doctor_bench.options import make_parser
from fledge.doctor_bench.records import CaseRecord
from fledge.errors import FledgeError
from fledge.training_log import Series, TrainingLog

np = pytest.importorskip("numpy")


def _log(losses: list[float], **more: list[float]) -> TrainingLog:
    steps = np.arange(1, len(losses) + 1, dtype=float)
    series = {"train/loss": Series(steps, np.asarray(losses, float))}
    series |= {f"train/{name}": Series(steps, np.asarray(values, float)) for name, values in more.items()}
    return TrainingLog(source="made up", path="", series=series)


FALLING = [3.0 * step**-0.2 for step in range(1, 201)]


def test_baselines_read_published_rules() -> None:
    assert trainproof(_log(FALLING)) is None
    assert trainproof(_log([*FALLING[:-1], float("nan")])) == "no finite numbers"
    assert trainproof(_log([*FALLING[:-1], 5.0])) == "learning rate too high"
    assert trainproof(_log(FALLING, lr=[0.0] * 200)) == "learning rate zero"
    assert sagemaker(_log([3.0] * 50)) == "learning rate too low"
    noisy = [loss + 0.01 * (-1) ** step for step, loss in enumerate(FALLING)]
    assert spike_score(_log(noisy)) is None
    assert spike_score(_log([*noisy[:-1], 50.0])) == "learning rate too high"


def _run(folder: Path, events: list[dict[str, object]], error: str | None = None) -> CaseRecord:
    stage = folder / "run" / "sft"
    stage.mkdir(parents=True)
    (stage / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    key = CaseKey(group="dev", shape="sft", condition="loss not finite", level="late", seed=1, is_fault=True)
    return CaseRecord(key=key.text, log="run/sft", error=error)


def test_a_case_is_judged_from_its_log(tmp_path: Path) -> None:
    events = [{"kind": "step", "step": step, "train/loss": loss, "train/lr": 1e-3} for step, loss in enumerate(FALLING, 1)]
    judgement = judge(tmp_path, _run(tmp_path, [{"kind": "start", "step": 0}, *events]))
    assert judgement.failure is None
    assert set(judgement.verdicts) == {"curves", "full"}


def test_the_error_that_a_run_ends_with_is_part_of_its_log(tmp_path: Path) -> None:
    events = [{"kind": "step", "step": step, "train/loss": 3.0, "train/lr": 1e-3} for step in range(1, 9)]
    judgement = judge(tmp_path, _run(tmp_path, events, error="CUDA out of memory"))
    assert judgement.failure is None
    assert judgement.verdicts["curves"].is_alarm


def test_a_run_that_the_bench_could_not_do_is_a_failure(tmp_path: Path) -> None:
    record = _run(tmp_path, [])
    record.failure = "OSError: no space"
    assert "no space" in str(judge(tmp_path, record).failure)


def test_held_out_groups_need_frozen_thresholds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "FILE", tmp_path / "frozen.json")
    options = make_parser().parse_args(["--group", "held-out", "--judge", str(tmp_path)])
    with pytest.raises(FledgeError, match="not frozen"):
        main(options)
    assert frozen.freeze() == frozen.frozen_hash()
    with pytest.raises(FledgeError, match="no runs of these groups"):
        main(options)
    (tmp_path / "frozen.json").write_text('{"thresholds": "0"}')
    with pytest.raises(FledgeError, match="have changed"):
        main(options)


def test_an_unknown_group_is_an_error() -> None:
    with pytest.raises(FledgeError, match="no group 'none'"):
        chosen_groups(make_parser().parse_args(["--group", "none"]))
    assert [group.name for group in chosen_groups(make_parser().parse_args(["--group", "size"]))] == ["size"]
    assert len(chosen_groups(make_parser().parse_args(["--group", "all"]))) > 3
