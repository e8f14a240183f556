"""What trials are compared by: whether it is measured, whether its values can be compared, where it is read."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fledge.errors import FledgeError
from fledge.run import StageDirectory
from fledge.run.console import Console
from fledge.sweep.metric import DEFINED_BY, GOALS, INSTEAD, MEASURED, Metric
from fledge.sweep.space import parse_parameter
from fledge.sweep.sweep import Sweep, SweepSettings

SETS = {"facts": {"kind": "prompts", "path": "facts.yaml"}, "choices": {"kind": "multiple_choice", "path": "c.jsonl"}}


def _sweep(folder: Path, kind: str, search: str, metric: str | None = None, **stage: Any) -> Sweep:
    """A sweep over a recipe whose last stage is of a kind."""
    stages = {"pretrain": {"data": {"train": "a.jsonl"}}, "last": {"kind": kind, "data": {"train": "b.jsonl"}, **stage}}
    file = folder / "r.yaml"
    file.write_text(yaml.safe_dump({"stages": stages}, sort_keys=False), encoding="utf-8")
    settings = SweepSettings(files=(str(file),), out=folder / "sweep", space=(parse_parameter(search),), metric=metric)
    return Sweep(settings, Console(quiet=True))


@pytest.mark.parametrize(
    ("kind", "search", "metric", "instead"),
    [
        ("preference", "stages.last.beta=0.05,0.5", None, "rewards/accuracies"),
        ("preference", "stages.last.beta=0.05..0.5", "loss", "rewards/accuracies"),
        ("preference", "stages.last.loss_type=sigmoid,hinge", None, "rewards/accuracies"),
        ("preference", "stages.last.loss_type=sigmoid,simpo", "rewards/accuracies", "logps/accuracies"),
        ("preference", "stages.last.sft_loss_weight=0.0..1.0", None, "rewards/accuracies"),
        ("kto", "stages.last.desirable_weight=0.5,1.0", None, "rewards/accuracies"),
        ("reward", "stages.last.center_rewards_coefficient=0.0,0.1", None, "rewards/accuracies"),
        ("grpo", "stages.last.rewards=[exact_match],[valid_json]", None, "exact_match"),
        ("sft", "tokenizer.vocab_size=4000,8000", None, "bits_per_byte"),
    ],
)
def test_values_that_define_the_metric_are_not_ranked_by_it(
    tmp_path: Path, kind: str, search: str, metric: str | None, instead: str
) -> None:
    own = {"rewards": ["exact_match"]} if kind == "grpo" else {}
    with pytest.raises(FledgeError, match="defines the metric") as caught:
        _sweep(tmp_path, kind, search, metric, **own)
    assert caught.value.where == f"--search {parse_parameter(search).describe()}"
    assert f": --metric {instead}," in (caught.value.hint or "")
    assert _sweep(tmp_path, kind, search, instead, **own).metric.name == instead
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("kind", "search", "metric"),
    [
        ("preference", "stages.last.optimizer.learning_rate=1e-6,1e-5", None),
        ("preference", "stages.last.beta=0.05,0.5", "perplexity"),
        ("preference", "tokenizer.vocab_size=4000,8000", None),  # of whole answers, however many tokens they have
        ("sft", "stages.last.label_smoothing=0.0,0.1", None),  # an evaluation has none
        ("sft", "stages.last.optimizer.learning_rate=1e-6,1e-5", "facts/passed"),
        ("sft", "stages.last.optimizer.learning_rate=1e-6,1e-5", "choices/accuracy_norm"),
    ],
)
def test_other_values_are(tmp_path: Path, kind: str, search: str, metric: str | None) -> None:
    assert _sweep(tmp_path, kind, search, metric, evaluation={"sets": SETS}).metric.name == (metric or "loss")


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("bleu", "the stage last does not measure 'bleu'"),
        ("rewards/accuracies", "does not measure 'rewards/accuracies'"),
        ("facts/accuracy", "does not measure 'facts/accuracy'"),
        ("other/passed", "no evaluation set 'other'"),
        ("length", "no metric of which one way is better"),
    ],
)
def test_a_metric_that_is_not_measured_is_told_before_anything_is_trained(tmp_path: Path, metric: str, message: str) -> None:
    with pytest.raises(FledgeError, match=message) as caught:
        _sweep(tmp_path, "sft", "stages.last.duration=1 epochs,2 epochs", metric, evaluation={"sets": SETS})
    assert caught.value.where == "--metric"


def test_trials_of_drawn_answers_are_compared_by_their_reward(tmp_path: Path) -> None:
    search = "stages.last.optimizer.learning_rate=1e-6,1e-5"
    sweep = _sweep(tmp_path, "grpo", search, rewards=["exact_match"])
    assert sweep.metric.name == "reward" and sweep.metric.higher_is_better and not sweep.prune
    assert _sweep(tmp_path, "grpo", search, "loss", rewards=["exact_match"]).prune
    unmeasured = {"evaluation": {"generated_answers": None}, "metric_for_best_model": "loss"}
    with pytest.raises(FledgeError, match="does not measure 'reward'"):
        _sweep(tmp_path, "grpo", search, rewards=["exact_match"], **unmeasured)


def test_a_share_of_pairs_is_read_from_the_validation_data_and_other_strokes_from_sets(tmp_path: Path) -> None:
    directory = StageDirectory(tmp_path)
    directory.evaluations.mkdir(parents=True)
    values = {"loss": 0.7, "rewards/accuracies": 0.75, "samples": []}
    (directory.evaluations / "after.json").write_text(json.dumps(values), encoding="utf-8")
    assert Metric(name="rewards/accuracies").value(directory) == 0.75 and Metric(name="loss").value(directory) == 0.7
    assert Metric(name="rewards/accuracies").parts == ("", "rewards/accuracies")
    assert Metric(name="facts/passed").parts == ("facts", "passed")


def test_every_kind_of_stage_has_its_metrics() -> None:
    from fledge.data import FORMATS

    assert set(MEASURED) == set(INSTEAD) == set(FORMATS)
    assert set(GOALS) <= set(FORMATS) and set(DEFINED_BY) <= set(FORMATS)
    for kind, metrics in DEFINED_BY.items():
        assert set(metrics) <= {*MEASURED[kind], GOALS.get(kind, "loss")}
