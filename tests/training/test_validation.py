"""Validation adds up what the objective evaluates, each metric over its own denominator, and knows no kinds of stages."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fledge.data import Batch
from fledge.distributed.context import DistributedContext
from fledge.errors import FledgeError
from fledge.model.decoder import Decoder
from fledge.objective import CausalLMObjective, LossOutput, Ratio
from fledge.objective.base import bits_per_unit, integer_total, perplexity, with_derived
from fledge.training.train_step import StopRequested
from fledge.training.validation import ValidationSet, local_row_batches, metrics_line, row_batches, validate
from tests.support.decoders import make_decoder
from tests.support.packed import dpo, pack, pack_pairs, random_pairs, random_sequences

LENGTHS = [32, 9, 20, 33, 5, 17, 30, 28, 25, 31, 12, 39]  # eight rows of 40
DATA = pack(random_sequences(LENGTHS), packed_length=40)


@dataclass(frozen=True)
class _ByExample:
    """An objective with a loss per example, a metric per row, and a metric with denominator zero."""

    def normalizer(self, batch: Batch) -> float:
        return float(len(batch.examples))

    def __call__(self, model: Decoder, batch: Batch) -> LossOutput:
        raise AssertionError("validation evaluates")

    def evaluate(self, model: Decoder, batch: Batch) -> dict[str, Ratio]:
        examples = float(len(batch.examples))
        return {
            "loss": Ratio(float(sum(batch.examples)), examples),
            "examples_per_row": Ratio(examples, float(len(batch.input_ids))),
            "examples": Ratio(examples, 1.0, integer_total),
            "of_nothing": Ratio(0.0, 0.0),
        }

    def in_window(self, *what: Any) -> "_ByExample":
        return self


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_every_metric_has_its_own_denominator_and_a_metric_without_one_is_left_out(micro: int) -> None:
    metrics = validate(make_decoder(), ValidationSet(DATA, _ByExample(), 99), micro)
    assert metrics == {"loss": 5.5, "examples_per_row": 1.5, "examples": 12}
    assert isinstance(metrics["examples"], int)


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_metrics_of_a_language_model_do_not_depend_on_how_the_rows_are_split(micro: int) -> None:
    model = make_decoder(dropout=0.5).train()
    objective = CausalLMObjective(0.1, token_bytes=torch.full((97,), 3.0))
    metrics, expected = (
        validate(model, ValidationSet(DATA, objective, 5), micro),
        objective.evaluate(model, DATA.assemble(range(5))),
    )
    assert metrics == pytest.approx({name: ratio.value for name, ratio in expected.items()}, rel=1e-5)
    assert metrics["perplexity"] == math.exp(metrics["loss"])
    assert metrics["bits_per_byte"] == pytest.approx(metrics["loss"] / math.log(2) / 3)
    assert model.training and not any(p.grad is not None for p in model.parameters())


def test_pairs_are_measured_per_pair_and_their_chosen_answers_per_token() -> None:
    data, model = pack_pairs(random_pairs(9)), make_decoder(1)
    metrics = validate(model, ValidationSet(data, dpo(make_decoder(0)), 99), 2)
    expected = dpo(make_decoder(0)).evaluate(model, data.assemble(range(len(data))))
    expected_values = with_derived({name: ratio.value for name, ratio in expected.items()})
    assert metrics == pytest.approx(expected_values, rel=1e-4)
    assert metrics["pairs"] == 9 and metrics["loss"] != pytest.approx(math.log(metrics["perplexity"]), rel=0.1)


def test_rows_without_any_target_are_an_error() -> None:
    sequences = random_sequences([20, 30])
    for sequence in sequences:
        sequence.weights.zero_()
    with pytest.raises(FledgeError, match="no targets") as caught:
        validate(make_decoder(), ValidationSet(pack(sequences, packed_length=40), CausalLMObjective(), 9), 2)
    assert caught.value.where == "data.validation"


def test_validation_stops_between_two_batches_when_requested() -> None:
    answers = iter([False, False, True])
    with pytest.raises(StopRequested):
        validate(make_decoder(), ValidationSet(DATA, CausalLMObjective(), 9), 2, lambda: next(answers))
    assert next(answers, None) is None


@given(rows=st.integers(1, 12), micro=st.integers(1, 9), size=st.integers(1, 5))
def test_the_ranks_share_every_row_once_and_get_equally_many_batches(rows: int, micro: int, size: int) -> None:
    counted: list[Batch] = []
    batches = []
    for rank in range(size):
        mine = list(local_row_batches(DATA, rows, micro, DistributedContext(rank, size)))
        batches.append(len(mine))
        counted += [batch for batch, counts in mine if counts]
    alone = list(row_batches(DATA, rows, micro))
    assert len(set(batches)) == 1 and len(counted) == len(alone)
    assert sum(len(batch.input_ids) for batch in counted) == min(rows, len(DATA))
    for batch in alone:
        assert sum(torch.equal(batch.input_ids, other.input_ids) for other in counted) == 1


def test_the_console_shows_the_metrics_that_an_objective_has() -> None:
    known = {"loss": 2.302585, "perplexity": 10.0, "token_accuracy": 0.4, "tokens": 7}
    assert metrics_line(known) == "loss 2.3026, perplexity 10, token accuracy 40.0%"
    assert metrics_line({**known, "rewards/accuracies": 0.75}).endswith("40.0%, pairs right 75.0%")
    assert metrics_line({"examples": 3.0, "loss": 0.5}) == "loss 0.5000"


def test_the_reductions_equal_their_formulas_on_exact_values() -> None:
    assert perplexity(3 * math.log(7), 3) == pytest.approx(7) and perplexity(1e6, 1) == math.exp(700)
    assert bits_per_unit(8 * math.log(2), 4) == pytest.approx(2)
    assert Ratio(1.0, 2.0) + Ratio(2.0, 4.0) == Ratio(3.0, 6.0) and Ratio(3.0, 6.0).value == 0.5
    assert Ratio(7.0, 2.0, integer_total).zeroed() == Ratio(0.0, 0.0, integer_total)
