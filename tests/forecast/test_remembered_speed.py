"""The speed of a finished stage: what is remembered of it for later plans."""

import json
from pathlib import Path

import pytest

from fledge.autotune.compute_config import ComputeConfig
from fledge.distributed.context import DistributedContext
from fledge.forecast.forecast import know_recipe
from fledge.plan.history import past_stages
from fledge.plan.stage_forecast import StageInputs, work_of
from fledge.prediction import conclude_prediction
from fledge.recipe import recipe_from_dict
from fledge.run import Console, StageDirectory

COMPUTE = ComputeConfig(device="cpu", precision="fp32", attention="blocked", compile=False, threads=1)
STEPS = 40


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))  # the machine that runs tests may be busy


def _inputs(kind: str) -> StageInputs:
    stage = {"kind": kind, "data": {"train": "x.jsonl", "max_seq_len": 64}, "duration": f"{STEPS} steps"}
    recipe = recipe_from_dict({"stages": {"s": stage}, "runtime": {"device": "cpu"}})
    return know_recipe(recipe, Console(quiet=True), tokens={"s": 64_000}).stages["s"].inputs


def _conclude(folder: Path, inputs: StageInputs, ranks: DistributedContext) -> None:
    event = {"kind": "system", "system/step_seconds": 1.0, "system/phases": {}, "system/peak_memory_bytes": 1}
    lines = [json.dumps({**event, "step": step}) + "\n" for step in range(1, STEPS + 1)]
    (folder / "events.jsonl").write_text("".join(lines), encoding="utf-8")
    conclude_prediction(StageDirectory(folder), inputs, COMPUTE, ranks, print)


def test_the_speed_of_several_processes_is_not_remembered_as_that_of_one(tmp_path: Path) -> None:
    inputs = _inputs("sft")
    _conclude(tmp_path, inputs, DistributedContext(rank=0, world_size=2))
    assert past_stages() == []
    _conclude(tmp_path, inputs, DistributedContext())
    (past,) = past_stages()
    assert past.flops_per_second == pytest.approx(work_of(inputs, "fp32").flops / STEPS)


def test_the_speed_is_of_the_work_of_updates(tmp_path: Path) -> None:
    inputs = _inputs("preference")
    _conclude(tmp_path, inputs, DistributedContext())
    (past,), work = past_stages(), work_of(inputs, "fp32")
    assert 0 < work.precomputed == work.reference
    assert past.flops_per_second == pytest.approx((work.flops - work.reference) / STEPS)  # it is computed before them
