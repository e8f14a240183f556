"""Folders of runs as stages leave them, small enough to read."""

import json
from pathlib import Path
from typing import Any

import pytest

from fledge.evaluate.records import ItemResult, MetricValue, SetResult, write_set_result
from fledge.evaluate.verdict import Reason, Verdict
from fledge.recipe import recipe_from_dict, to_yaml


def set_result(name: str, values: list[float], metric: str = "passed", kind: str = "prompts") -> SetResult:
    """A set with one metric, of these values."""
    mean = MetricValue(value=sum(values) / len(values), count=len(values), higher_is_better=metric == "passed")
    items = tuple(ItemResult(id=f"{name}-{n}", prompt=str(n), values={metric: value}) for n, value in enumerate(values))
    return SetResult(name=name, kind=kind, fingerprint="same", metrics={metric: mean}, items=items)


def write_run(root: Path, loss: float, *, rate: float = 1e-3, decision: Any = "release", finished: bool = True) -> Path:
    """A run of one stage `sft` of 20 steps with a validation loss at the end, evaluated at steps 10 and 20."""
    stage = root / "sft"
    (stage / "checkpoints" / "step-00000020" / "model").mkdir(parents=True)
    tree = {
        "name": root.name, "output": str(root.parent), "model": {"hidden_size": 64, "num_attention_heads": 4},
        "stages": {"sft": {"kind": "sft", "data": {"train": "rows.jsonl"}, "duration": "20 steps",
                           "optimizer": {"learning_rate": rate}}},
    }  # fmt: skip
    (root / "recipe.yaml").write_text(to_yaml(recipe_from_dict(tree)), encoding="utf-8")
    files: dict[str, Any] = {
        "environment.json": {}, "sft/plan.json": {"kind": "sft", "steps": 20, "tokens": 5000, "parameters": 1234},
        "sft/eval/before.json": {"loss": 5.0, "bits_per_byte": 2.0, "samples": []},
    }  # fmt: skip
    if finished:
        verdict = Verdict(
            decision=decision,
            reasons=(Reason(check="learned", decision=decision, message="the stage has learned", hint="nothing"),),
            thresholds={"max_loss": {"value": 1.5, "from": "recipe"}},
        )
        files["sft/eval/after.json"] = {"loss": loss, "bits_per_byte": loss / 3, "samples": []}
        files["sft/result.json"] = {
            "order": 0, "model": "checkpoints/step-00000020/model", "step": 20, "seconds": 3.0, "wall_seconds": 4.0,
            "stop": None, "best_step": 20, "trained_parameters": 1234, "parameters": 1234, "verdicts": [],
            "verdict": verdict.as_dict(),
        }  # fmt: skip
        files["summary.json"] = {"name": root.name, "seconds": 4.0, "stages": ["sft"], "tokenizer": {}}
    for name, value in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(value), encoding="utf-8")
    events = [{"kind": "step", "step": step, "train/loss": loss + 1} for step in (10, 20 if finished else 12)] + [
        {"kind": "eval", "step": step, "eval/loss": loss + (20 - step) / 10} for step in ((10, 20) if finished else (10,))
    ]
    events.sort(key=lambda event: event["step"])
    (stage / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    return root


def add_set(run: Path, moment: str, result: SetResult) -> None:
    """Write the result of a set of the stage."""
    write_set_result(run / "sft" / "eval" / moment, result)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `runs` with a worse run `a`, a better one `b`, and one that is training, `c`; the current folder holds it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs"
    a, b = write_run(folder / "a", 1.0), write_run(folder / "b", 0.5, rate=3e-3, decision="keep training")
    write_run(folder / "c", 2.0, finished=False)
    for run, right in ((a, 10), (b, 40)):
        add_set(run, "before", set_result("world", [0.0] * 50))
        add_set(run, "after", set_result("world", [1.0] * right + [0.0] * (50 - right)))
        add_set(run, "before", set_result("texts", [1.0 + n / 100 for n in range(20)], "bits_per_byte", "text"))
        add_set(run, "after", set_result("texts", [1.3 + n / 90 for n in range(20)], "bits_per_byte", "text"))
    add_set(a, "step-00000010", set_result("world", [1.0] * 5 + [0.0] * 45))
    add_set(a, "after", set_result("alone", [1.0, 0.0]))
    return folder
