"""The evaluation hook: the best loss, and losses that are no number."""

import math
from dataclasses import replace
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.checkpoint.state import TrainState
from fledge.data import Batch
from fledge.model.protocol import LanguageModel
from fledge.objective import CausalLMObjective
from fledge.objective.base import Ratio
from fledge.recipe.schema import PretrainStage, SftStage
from fledge.run import read_events
from fledge.training.hooks import Evaluation
from fledge.training.validation import ValidationSet
from tests.support.packed import pack, random_sequences
from tests.training.test_hooks import STAGE, STEPS, train

LOSSES = st.lists(st.one_of(st.floats(0.0, 10.0), st.sampled_from([math.nan, math.inf, -math.inf])), min_size=1, max_size=9)


class Overflowing(CausalLMObjective):
    """The objective of a model whose validation loss overflows: the sum of the loss is multiplied by `factor`."""

    factor = 1.0

    def evaluate(self, model: LanguageModel, batch: Batch) -> dict[str, Ratio]:
        """The metrics of the batch with the multiplied loss."""
        metrics = super().evaluate(model, batch)
        return {**metrics, "loss": replace(metrics["loss"], total=metrics["loss"].total * self.factor)}


def evaluation(factor: float, **stage: object) -> Evaluation:
    """The hook of a stage whose validation loss is multiplied by a factor."""
    objective = Overflowing()
    objective.factor = factor
    validation = ValidationSet(pack(random_sequences([20, 25, 30]), packed_length=40), objective, 99)
    values = {**STAGE, "evaluation": {"every_steps": 2}, **stage}
    return Evaluation(stage=PretrainStage.model_validate(values), total_steps=STEPS, validation=validation)


@given(losses=LOSSES)
@settings(deadline=None)
def test_the_best_loss_is_the_lowest_finite_one(losses: list[float]) -> None:
    hook, state = evaluation(1.0), TrainState(by_source=[])
    for step, loss in enumerate(losses):
        state.step = step
        hook._update_best(state, {"loss": loss})
    finite = [(loss, step) for step, loss in enumerate(losses) if math.isfinite(loss)]
    expected = min(finite) if finite else (None, None)
    assert (state.best_metric, state.best_step) == expected
    assert state.evals_since_best == (len(losses) if expected[1] is None else len(losses) - 1 - expected[1])


def test_a_validation_loss_that_is_no_number_is_an_alert_and_never_the_best(tmp_path: Path) -> None:
    patience = {"early_stopping": {"patience": 2, "target_loss": 100.0}}
    state = train(tmp_path, evaluation(math.nan, **patience))
    assert (state.step, state.best_step, state.best_metric) == (4, None, None)  # evaluated at steps 2 and 4
    assert state.stop_reason == "validation loss has not improved for 2 evaluations"
    alerts = [event for event in read_events(tmp_path / "events.jsonl") if event["kind"] == "alert"]
    assert [(alert["check"], alert["severity"], alert["step"]) for alert in alerts] == [
        ("non_finite_evaluation", "error", 2),
        ("non_finite_evaluation", "error", 4),
    ]
    assert "the validation loss is nan" in alerts[0]["message"]


def test_where_scores_are_equal_the_lower_loss_is_better() -> None:
    answers = {"evaluation": {"generated_answers": {}}, "kind": "sft", "metric_for_best_model": "exact_match"}
    stage = SftStage.model_validate({**STAGE, **answers})
    hook, state = replace(evaluation(1.0), stage=stage), TrainState(by_source=[])
    found = []
    for step, (score, loss) in enumerate([(0.0, 5.0), (0.0, 4.0), (0.0, 4.5), (0.2, 6.0), (0.2, math.nan), (0.2, 5.5)]):
        state.step = step
        hook._update_best(state, {"exact_match": score, "loss": loss})
        found.append(state.best_step)
    assert found == [0, 1, 1, 3, 3, 5] and (state.best_metric, state.loss_at_best, state.evals_since_best) == (0.2, 5.5, 0)


def test_the_start_counts_once_when_a_run_is_resumed_before_its_first_evaluation() -> None:
    hook, state = replace(evaluation(1.0), initial={"loss": 3.0}), TrainState(by_source=[])
    assert hook.due(state)
    hook._update_best(state, hook.initial)
    assert not hook.due(state) and state.evals_since_best == 0


def test_a_finite_validation_loss_is_recorded_and_raises_no_alert(tmp_path: Path) -> None:
    state = train(tmp_path, evaluation(1.0))
    assert state.step == STEPS and state.best_step is not None and torch.isfinite(torch.tensor(state.best_metric))
    assert not [event for event in read_events(tmp_path / "events.jsonl") if event["kind"] == "alert"]
