"""The verdicts on a finished stage: each is given for its figures, and a healthy stage has none."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.monitor.verdicts import StageOutcome, verdicts

HEALTHY: dict[str, Any] = {
    "before": {"loss": 3.0, "perplexity": 20.0, "token_accuracy": 0.4},
    "after": {"loss": 2.0, "perplexity": 7.4, "token_accuracy": 0.6},
    "evaluations": [(0, 3.0), (10, 2.5), (20, 2.2), (30, 2.0)],
    "train_losses": [3.0 - n / 30 for n in range(30)],
    "steps": 30,
    "selected_step": 30,
    "validation_rows": 64,
    "answers": [("a?", "one"), ("b?", "two"), ("c?", "one")],
}
DESTROYED = {"loss": 0.0, "perplexity": 5.9e6, "token_accuracy": 0.0, "rewards/accuracies": 1.0, "rewards/margins": 13.5}
DPO = {"loss": 0.693, "perplexity": 5.2, "token_accuracy": 0.61, "rewards/margins": 0.0}


def checks(**changes: Any) -> list[str]:
    """The names of the verdicts on a healthy stage with other figures."""
    return [finding.check for finding in verdicts(StageOutcome(**{**HEALTHY, **changes}))]


def test_a_healthy_stage_has_no_verdict() -> None:
    assert checks() == []


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        ("collapsed", {"before": DPO, "after": DESTROYED, "evaluations": [(0, 0.693), (30, 0.0)]}),
        ("displaced", {"before": DPO, "after": {**DPO, "loss": 0.4, "perplexity": 9.0, "rewards/margins": 1.0}}),
        ("worse_than_start", {"evaluations": [(0, 3.0), (10, 3.2), (30, 3.4)], "after": HEALTHY["before"], "selected_step": 0}),
        ("worse_than_start", {"evaluations": [(0, 3.0), (10, 2.9), (30, 3.4)], "after": {"loss": 3.4}}),
        ("worse_than_best", {"evaluations": [(0, 3.0), (10, 2.0), (30, 2.5)], "after": {"loss": 2.0}, "selected_step": 10}),
        ("worse_than_best", {"evaluations": [(0, 3.0), (10, 2.0), (30, 2.5)], "after": {"loss": 2.5}}),
        ("nothing_learned", {"evaluations": [(0, 3.0), (30, 2.999)], "after": {**HEALTHY["before"], "loss": 2.999}}),
        ("nothing_learned", {"before": {}, "after": {}, "evaluations": [], "train_losses": [6.4, 6.401] * 15}),
        ("nothing_learned", {"evaluations": [(0, 3.0), (30, 3.001)], "after": HEALTHY["before"], "selected_step": 0}),
        ("no_better_than_length", {"after": {"loss": 2.0, "rewards/accuracies": 0.8, "length_baseline": 0.8}}),
        ("few_validation_rows", {"validation_rows": 2}),
        ("equal_answers", {"answers": [("a?", "江南路"), ("b?", "江南路"), ("c?", "江南路 ")]}),
    ],
)  # fmt: skip
def test_each_verdict_is_given_alone_for_its_figures(expected: str, changes: dict[str, Any]) -> None:
    assert checks(**changes) == [expected]


REWARDED = {"evaluations": [(0, 0.4), (30, 0.9)], "metric_name": "exact_match", "losses": [(0, 0.5), (30, 0.502)]}


def test_a_stage_with_rewards_is_judged_by_them() -> None:
    flat = {"train_losses": [0.0] * 30, "before": {"loss": 0.5, "reward": 0.4}, "after": {"loss": 0.502, "reward": 0.95}}
    assert checks(**REWARDED, **flat, train_rewards=[0.4 + n / 60 for n in range(30)]) == []
    still = {**flat, "after": {"loss": 0.502, "reward": 0.4005}}
    assert checks(**REWARDED, **still, train_rewards=[0.4] * 30) == ["nothing_learned"]
    without = {"before": {}, "after": {}, "train_losses": [0.0] * 30}
    assert checks(**REWARDED, **without, train_rewards=[n / 30 for n in range(30)]) == []
    others = {"before": {**DPO, "reward": 0.1}, "after": {**DESTROYED, "reward": 0.9}, "train_losses": [0.0] * 30}
    assert "collapsed" not in checks(**REWARDED, **others, train_rewards=[0.1] * 15 + [0.9] * 15)
    assert "collapsed" in checks(**REWARDED, **{**others, "after": {**DESTROYED, "reward": 0.0}}, train_rewards=[0.1] * 30)


def test_overfitting_is_said_only_where_the_training_loss_fell() -> None:
    figures = {"evaluations": [(0, 3.0), (10, 2.0), (30, 2.5)], "selected_step": 10, "after": {"loss": 2.0}}
    falling = verdicts(StageOutcome(**{**HEALTHY, **figures}))[0].message
    rising = verdicts(StageOutcome(**{**HEALTHY, **figures, "train_losses": [2.0] * 30}))[0].message
    assert "it overfits; the best checkpoint goes on" in falling and "overfits" not in rising


def test_the_loss_of_a_model_that_knows_everything_may_vary() -> None:
    """0.0001 and 0.0003 are equally good, although one is three times the other."""
    known = {"loss": 0.0003, "perplexity": 1.0, "token_accuracy": 1.0}
    assert checks(evaluations=[(0, 3.0), (20, 0.0001), (30, 0.0003)], after=known) == []


@given(
    metrics=st.dictionaries(
        st.sampled_from(["loss", "perplexity", "token_accuracy", "rewards/margins"]),
        st.none() | (st.floats(min_value=0) | st.just(math.nan)),
    ),
    evaluations=st.lists(st.tuples(st.integers(0, 50), (st.floats(min_value=0) | st.just(math.nan))), max_size=5),
    losses=st.lists(st.floats(0, 100), max_size=20),
    selected=st.integers(0, 50),
)
def test_any_figures_give_messages_and_no_failure(
    metrics: dict[str, float | None], evaluations: list[tuple[int, float]], losses: list[float], selected: int
) -> None:
    outcome = StageOutcome(
        before=HEALTHY["before"],
        after=metrics,
        evaluations=sorted(evaluations),
        train_losses=losses,
        steps=len(losses),
        selected_step=selected,
    )
    assert all(finding.message and finding.hint for finding in verdicts(outcome))
