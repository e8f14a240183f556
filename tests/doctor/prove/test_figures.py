"""What runs are judged by: signs of labels, speeds, and figures of runs without a model."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fledge.data import PackedDataset
from fledge.data.storage import Examples
from fledge.doctor.prove import _outcomes
from fledge.doctor.prove_effect import Scale, with_worst
from fledge.doctor.prove_recipes import ProofRecipes
from fledge.doctor.prove_runs import Observation, ProofRuns
from fledge.doctor.prove_yardsticks import YARDSTICKS, HeldOut, Subject
from fledge.run import Console, StageDirectory


def held_out_of(run: Path) -> HeldOut:
    """The held-out documents of a run."""
    runs = ProofRuns(recipes=ProofRecipes.of(run, "talk"), console=Console(quiet=True))
    found = runs.held_out([runs.variant({})])
    runs.clean()
    return found


def sequences(count: int, per_example: int, labels: list[bool] | None = None) -> PackedDataset:
    """So many sequences of four tokens."""
    tokens, weights = np.arange(4 * count) % 50, np.ones(4 * count, np.float32)
    examples = Examples(
        tokens=tokens, weights=weights, offsets=np.arange(0, 4 * count + 1, 4), sequences_per_example=per_example,
        labels=None if labels is None else np.array(labels),
    )  # fmt: skip
    return PackedDataset(examples, 32, 0, 0, split_documents=False)


def test_an_undesirable_answer_is_learned_where_it_is_lowered(slow_run: Path) -> None:
    data = sequences(6, 2, [True, False, False])  # each answer, and an unrelated one
    held_out = replace(held_out_of(slow_run), data=data, examples={"good": 0, "bad": 1, "worse": 2}, start=None)
    subject = Subject(directory=StageDirectory(slow_run / "talk"), held_out=held_out)
    subject.logps = [(2.0, 3), (9.0, 3), (-5.0, 3), (-9.0, 3), (1.0, 3), (-9.0, 3)]
    assert YARDSTICKS["pair_accuracy"].measure(subject) == {"good": 1, "bad": 1, "worse": 0}
    losses = YARDSTICKS["preference_loss"].measure(subject)
    assert losses["bad"] < np.log(2) < losses["worse"]
    pairs = replace(held_out, data=sequences(6, 2))
    subject = Subject(directory=subject.directory, held_out=pairs)
    subject.logps = [(2.0, 3), (9.0, 3), (-5.0, 3), (-9.0, 3), (1.0, 3), (-9.0, 3)]
    assert YARDSTICKS["pair_accuracy"].measure(subject) == {"good": 0, "bad": 1, "worse": 1}


def test_the_time_of_a_token_is_that_of_single_updates_without_the_start(slow_run: Path, tmp_path: Path) -> None:
    speeds = [10.0, 10.0, *[1000.0] * 18]
    lines = [
        {"kind": "system", "step": n, "system/tokens_per_second": 100.0, "system/step_tokens_per_second": one}
        for n, one in enumerate(speeds, 1)
    ]
    directory = StageDirectory(tmp_path)
    directory.events.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    subject = Subject(directory=directory, held_out=held_out_of(slow_run))
    assert YARDSTICKS["microseconds_per_token"].measure(subject) == {"run": pytest.approx(1000)}


def observed(name: str, value: float, *, failed: str = "", weights: str = "same") -> Observation:
    return Observation(values={name: {"run": value}}, failed=failed, weights="" if failed else weights)


def test_equal_weights_say_nothing_about_the_time() -> None:
    speed = YARDSTICKS["microseconds_per_token"]
    pairs = [(observed(speed.scale.name, a), observed(speed.scale.name, b)) for a, b in ((10, 9), (11, 10.9), (9, 9.5))]
    (effect,) = _outcomes(pairs, [speed])
    assert not effect.identical and effect.interval[0] < 0 < effect.interval[1] and effect.outcome == "cannot tell"
    reward = YARDSTICKS["reward"]
    (same,) = _outcomes([(observed("reward", 1.0), observed("reward", 1.0))] * 3, [reward])
    assert same.identical and same.interval == (0, 0)


@pytest.mark.parametrize(("name", "given"), [("reward", -0.8), ("reward_loss", 1.4)])
def test_a_run_without_a_model_is_never_better_than_one(name: str, given: float) -> None:
    yardstick = YARDSTICKS[name]
    worst = {"reward": 0.0, "reward_loss": float(np.log(2))}[name]
    pairs = [(observed(name, given + shift), observed(name, worst, failed="no numbers")) for shift in (0.0, 0.01, -0.01)]
    (effect,) = _outcomes(pairs, [yardstick])
    assert effect.outcome != "helps" and max(effect.of_seeds) <= 0
    (turned,) = _outcomes([(second, first) for first, second in pairs], [yardstick])
    assert turned.outcome != "makes it worse" and min(turned.of_seeds) >= 0


def test_a_value_that_is_no_number_is_the_worst_of_its_document() -> None:
    scale = Scale(name="loss", label="loss", unit="", higher_is_better=False, useful=0.01)
    runs = [{"a": 2.0, "b": 3.0}, {"a": 0.7, "b": 1.0}, {"a": 1.0, "b": 0.7}]
    assert with_worst(scale, runs, [(), ("a",), ("b",)]) == [{"a": 2.0, "b": 3.0}, {"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 3.0}]
    assert with_worst(scale, [{"a": 0.7}, {"a": 0.2}], [("a",), ()]) == [{"a": 0.7}, {"a": 0.2}]
    found = Observation(values={"loss": {"a": 0.7, "b": 1.0}}, no_numbers={"loss": ["a"]})
    assert list(found.stand_ins("loss")) == ["a"] and list(found.stand_ins("other")) == []
