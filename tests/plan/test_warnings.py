"""Settings that work and lead to nothing are told before the run, each with the key to change; a sensible plan is silent."""

from pathlib import Path
from typing import Any

import pytest

from fledge.plan.warnings import PlanError
from fledge.prepare import Preparation, PreparedStage
from fledge.recipe import recipe_from_dict
from tests.support import tiny_run
from tests.support.sources import jsonl

WORDS = [
    "the",
    "small",
    "bird",
    "keeps",
    "a",
    "red",
    "box",
    "by",
    "the",
    "lake",
    "and",
    "reads",
    "one",
    "letter",
    "every",
    "day",
]


def prepared(tmp_path: Path, rows: int = 400, validation: Any = 40, kind: str = "sft", **stage: Any) -> PreparedStage:
    """A stage with `rows` training rows of about 20 tokens, and `validation` rows in a file of their own (0: none)."""

    def row(n: int) -> dict[str, str]:
        text = " ".join(WORDS[(n * (k + 1)) % len(WORDS)] for k in range(12))
        return {"prompt": f"question {n}", "response": f"{n} {text}", "chosen": f"{n} {text}", "rejected": f"no {n}"}

    train = jsonl(tmp_path / "train.jsonl", [row(n) for n in range(rows)])
    held_out = jsonl(tmp_path / "validation.jsonl", [row(n) for n in range(10_000, 10_000 + validation)]) if validation else 0
    data = {"train": str(train), "validation": str(held_out) if held_out else 0, "max_seq_len": 64}
    model = stage.pop("model", tiny_run.MODEL)
    whole = {
        "data": data, "batch": {"micro_batch_size": 4}, "optimizer": {"learning_rate": 1e-3}, "duration": "3 epochs", **stage,
    }  # fmt: skip
    tree = {
        "name": "r",
        "output": str(tmp_path),
        "tokenizer": {"vocab_size": 400},
        "model": model,
        "stages": {"s": {"kind": kind, **whole}},
    }
    preparation = Preparation(recipe_from_dict(tree), lambda text: None)
    return preparation.prepare("s", preparation.tokenizer())


def test_a_sensible_plan_has_no_warning(tmp_path: Path) -> None:
    assert prepared(tmp_path).warnings == []


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"rows": 12}, "duration", "3 epochs are "),
        ({"duration": "4 steps", "optimizer": {"learning_rate": 1e-2}}, "duration", "the stage has only 4 updates of 4 rows"),
        ({"rows": 12, "batch": {"micro_batch_size": 64}, "duration": "40 steps"}, "batch.micro_batch_size", ""),
        ({"rows": 40, "batch": {"micro_batch_size": 8, "gradient_accumulation_steps": 9}, "duration": "40 steps"},
         "batch.micro_batch_size", "an update reads 72 rows, but an epoch has only"),
        ({"validation": 2}, "data.validation", "2 validation rows: too few"),
        ({"kind": "preference"}, "init_from", "random weights"),
        ({"optimizer": {"learning_rate": 2e-6}}, "optimizer.learning_rate", "too small for"),
        ({"optimizer": {"learning_rate": 1.0}}, "optimizer.learning_rate", "training may diverge"),
        ({"rows": 3, "batch": {"micro_batch_size": 1}, "duration": "40 steps",
          "model": {**tiny_run.MODEL, "hidden_size": 128, "intermediate_size": 512}}, "data.train", "learn the rows by heart"),
    ],
)  # fmt: skip
def test_each_doubtful_setting_names_the_key_to_change(tmp_path: Path, changes: dict[str, Any], key: str, words: str) -> None:
    stage = prepared(tmp_path, **changes)
    if key == "batch.micro_batch_size" and not words:  # it is capped, and said in the plan
        assert stage.plan.micro_batch_size == len(stage.data.train) < 64
        assert f"micro-batches of {len(stage.data.train)} rows instead of 64" in stage.plan.notes[0]
        return
    found = [warning for warning in stage.warnings if warning.where == f"stages.s.{key}"]
    assert len(found) == 1, [warning.message for warning in stage.warnings]
    assert words in found[0].message and found[0].hint and found[0].severity == "warning"


@pytest.mark.parametrize("duration", ["3 epochs", "2k tokens", "5 steps"])
def test_an_absurd_micro_batch_is_capped_and_the_updates_stay(tmp_path: Path, duration: str) -> None:
    """One update of all rows of the stage, without thousands of empty ones; steps stay steps."""
    stage = prepared(tmp_path, rows=30, batch={"micro_batch_size": 4000}, duration=duration)
    assert stage.plan.micro_batch_size < 100 and stage.horizon.micro_batch_size == stage.plan.micro_batch_size
    assert stage.plan.steps == (5 if "steps" in duration else 1)
    assert stage.horizon.rows <= stage.plan.steps * stage.plan.micro_batch_size


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"schedule": {"warmup": 100}, "duration": "5 steps"}, "schedule.warmup: warm-up takes 100 steps"),
        ({"batch": {"gradient_accumulation_steps": 4, "warmup": {"ramp_steps": 90}}, "duration": "5 steps"},
         "batch.warmup.ramp_steps: batch warm-up takes 90 steps"),
        ({"ema": {"decay": 0.9, "start_fraction": 0.99}, "duration": "5 steps"}, "ema.start_fraction: averaging"),
        ({"validation": 0, "select_checkpoint": "best", "duration": "5 steps"}, "data.validation: early_stopping and"),
    ],
)  # fmt: skip
def test_a_plan_that_fails_still_tells_what_else_is_doubtful(tmp_path: Path, changes: dict[str, Any], error: str) -> None:
    with pytest.raises(PlanError) as caught:
        prepared(tmp_path, kind="preference", **changes)
    assert caught.value.text().startswith(f"stages.s.{error}")
    keys = [finding.where for finding in caught.value.others]
    assert "stages.s.init_from" in keys and "stages.s.duration" in keys
