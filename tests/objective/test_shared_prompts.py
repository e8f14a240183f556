"""Pairs whose answers share their prompt have the losses and gradients of pairs that do not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.data import PackedDataset
from fledge.model.adapter_reference import AdapterReference
from fledge.model.adapters import adapter_weights, attach_adapter
from fledge.model.decoder import Decoder
from fledge.model.protocol import Adapter
from fledge.objective import RewardObjective, sequence_log_probabilities
from fledge.objective.base import LossOutput, with_derived
from fledge.objective.disentanglement import disentanglement
from fledge.objective.preference import by_pair, compute_ref_log_probs
from fledge.objective.preference_losses import PREFERENCE_LOSSES
from fledge.recipe.schema import AdapterConfig
from tests.support.adapters import scatter
from tests.support.decoders import gradients, make_decoder
from tests.support.packed import Pair, dpo, pack_pairs, pack_ranked, random_pairs

CPU = torch.device("cpu")
PAIRS = random_pairs(9, seed=3)
UNUSUAL = [
    Pair([5], [7, 8], [9]),  # a prompt of one token shares nothing
    Pair([5, 6, 7], [8], [9]),  # completions of one token
    Pair([5, 6, 7], [8, 9, 10], [8, 9, 11, 12]),  # equal first tokens
    Pair([5, 6, 7, 8], [9], [9, 10]),  # one answer begins with the other
    Pair([1, 2], list(range(3, 23)), [3]),
]
SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {"loss_type": name} for name in PREFERENCE_LOSSES},
    "robust": {"loss_type": "robust", "label_smoothing": 0.1},
    "cDPO": {"loss_type": "sigmoid", "label_smoothing": 0.2},
    "with the SFT loss": {"loss_type": "sigmoid", "sft_loss_weight": 0.7},
}
Objective = Callable[..., LossOutput]


def learn(model: Decoder, objective: Objective, data: PackedDataset, rows: int) -> tuple[LossOutput, dict[str, Any]]:
    """The output for all rows of the data, and the gradients, some rows at a time."""
    outputs = []
    for first in range(0, len(data), rows):
        outputs.append(objective(model, data.batch(first, min(rows, len(data) - first))))
        outputs[-1].loss.backward()
    metrics = outputs[0].metrics
    for other in outputs[1:]:
        metrics = {name: ratio + other.metrics[name] for name, ratio in metrics.items()}
    return LossOutput(sum(output.loss.detach() for output in outputs), metrics), gradients(model)  # type: ignore[arg-type]


def assert_equal(
    model: Decoder,
    objective: Objective,
    plain: PackedDataset,
    rows: int = 100,
    *,
    bound: float = 1e-6,
    checks_metrics: bool = True,
) -> None:
    """Check that loss, gradients and metrics do not depend on sharing: errors are at most `bound` of the norm of a gradient."""
    shared = plain.sharing_beginnings()
    (one, expected), (other, found) = learn(model, objective, plain, 100), learn(model, objective, shared, rows)
    torch.testing.assert_close(other.loss, one.loss, rtol=1e-6, atol=1e-5)
    total = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    assert expected.keys() == found.keys() and total > 0
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= bound * max(gradient.norm(), total / 10), name
    left, right = (with_derived({name: ratio.value for name, ratio in each.metrics.items()}) for each in (one, other))
    assert left.keys() == right.keys()
    for name in left if checks_metrics else ():
        torch.testing.assert_close(right[name], left[name], rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("rows", [1, 100])
def test_loss_metrics_and_every_gradient_are_those_of_pairs_that_share_nothing(name: str, rows: int) -> None:
    plain = pack_pairs([*PAIRS, *UNUSUAL])
    batch = plain.sharing_beginnings().batch(0, 1)
    assert len(batch.examples) > 1 and int(batch.documents.max()) > 2**32
    assert_equal(make_decoder(1), dpo(make_decoder(0), **SETTINGS[name]), plain, rows)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_random_pairs_have_equal_gradients(data: st.DataObject) -> None:
    tokens = st.lists(st.integers(0, 3), min_size=1, max_size=9)
    pairs = data.draw(st.lists(st.builds(Pair, tokens, tokens, tokens), min_size=1, max_size=6))
    loss = data.draw(st.sampled_from(["sigmoid", "simpo", "orpo"]))
    objective = dpo(make_decoder(0), loss_type=loss, sft_loss_weight=0.5)
    # rounding decides which of two equal answers is counted as the better one
    assert_equal(make_decoder(1), objective, pack_pairs(pairs), bound=3e-6, checks_metrics=False)


@pytest.mark.parametrize("attention", ["blocked", "sdpa", "segments", "reference"])
@pytest.mark.parametrize("changes", [{}, {"qk_norm": True}, {"tie_word_embeddings": True}])
def test_every_attention_and_kind_of_decoder_can(attention: str, changes: dict[str, Any]) -> None:
    model = make_decoder(1, **changes)
    model.set_attention_backend(attention)
    assert_equal(model, dpo(make_decoder(0, **changes)), pack_pairs([*PAIRS, *UNUSUAL]), bound=2e-6)


def test_blocks_that_are_computed_again_give_the_same() -> None:
    model = make_decoder(1).train()
    model.set_attention_backend("segments")
    model.activation_checkpoint_every = 1
    assert_equal(model, dpo(make_decoder(0)), pack_pairs(PAIRS))


def test_a_table_made_of_shared_or_of_plain_rows_is_the_live_reference() -> None:
    policy, reference, plain = make_decoder(1), make_decoder(0, dropout=0.5).train(), pack_pairs([*PAIRS, *UNUSUAL])
    shared, count = plain.sharing_beginnings(), len(PAIRS) + len(UNUSUAL)
    tables = [
        compute_ref_log_probs(reference, [data.batch(row, 1) for row in range(len(data))], count, CPU)
        for data in (plain, shared)
    ]
    torch.testing.assert_close(tables[1], tables[0], atol=1e-5, rtol=1e-6)
    for row in range(len(shared)):
        batch = shared.batch(row, 1)
        live, precomputed = dpo(reference)(policy, batch), dpo(tables[1])(policy, batch)
        assert torch.equal(live.loss, precomputed.loss)


@pytest.mark.parametrize("kind", [{"r": 4}, {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3}], ids=["LORA", "prefix"])
def test_an_adapter_and_its_switched_off_reference_see_the_prompt_too(kind: dict[str, Any]) -> None:
    model = make_decoder(1)
    attach_adapter(model, Adapter(AdapterConfig(**kind), None, None), seed=1)
    start = {name: tensor.clone() for name, tensor in adapter_weights(model).items()}
    with torch.no_grad():
        scatter(adapter_weights(model))
    assert_equal(model, dpo(AdapterReference(model, start)), pack_pairs([*PAIRS, *UNUSUAL]), bound=3e-6)


def test_evaluations_and_the_disentanglement_of_gradients_are_equal() -> None:
    model, plain = make_decoder(1), pack_pairs(PAIRS)
    objective, shared = dpo(make_decoder(0)), plain.sharing_beginnings()
    one, other = plain.batch(0, len(plain)), shared.batch(0, len(shared))
    left, right = ({name: r.value for name, r in objective.evaluate(model, batch).items()} for batch in (one, other))
    assert right == pytest.approx(left, rel=1e-4, abs=1e-4, nan_ok=True)
    assert disentanglement(objective, model, other) == pytest.approx(disentanglement(objective, model, one), rel=1e-4)


def test_rewards_are_read_at_the_ends_of_answers_that_share_their_prompt() -> None:
    model = make_decoder(1)
    model.become_reward_model(1)
    pairs = [Pair(p.prompt, [*p.chosen, 1], [*p.rejected, 1]) for p in [*PAIRS, *UNUSUAL]]
    margins = [0.1 * number for number in range(len(pairs))]
    objective = RewardObjective(margins=torch.tensor(margins), pad=0, center_rewards_coefficient=0.01)
    assert_equal(model.eval(), objective, pack_ranked(pairs, margins), bound=2e-6)


def test_experts_get_each_token_of_a_prompt_once() -> None:
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.5}
    model, plain = make_decoder(1, qk_norm=True, moe=moe), pack_pairs(PAIRS)
    shared, objective = plain.sharing_beginnings(), dpo(make_decoder(0, qk_norm=True, moe=moe))
    one, other = (objective(model, data.batch(0, len(data))) for data in (plain, shared))
    torch.testing.assert_close(other.loss, one.loss, rtol=1e-6, atol=1e-5)
    assert one.routing is not None and other.routing is not None
    saved = int(plain.examples.shared_lengths.sum())
    assert float(one.routing.tokens - other.routing.tokens) == saved > 0
    assert torch.equal(other.routing.counts.sum(1), torch.full((2,), 2.0 * (plain.num_tokens - saved)))
    assert one.aux_loss is not None and other.aux_loss is not None
    assert not torch.allclose(one.aux_loss, other.aux_loss, rtol=1e-3)  # the load of fewer tokens is another load


def test_the_answers_of_a_pair_do_not_see_each_other() -> None:
    model, pair = make_decoder(1), Pair([5, 6, 7, 8], [9, 10, 11], [12, 13])
    found = []
    for rejected in ([12, 13], [14, 13, 15]):
        data = pack_pairs([Pair(pair.prompt, pair.chosen, rejected)]).sharing_beginnings()
        found.append(by_pair(sequence_log_probabilities(model, batch := data.batch(0, 1))[0], batch)[0, 0])
    assert torch.equal(found[0], found[1])
    swapped = pack_pairs([pair.swapped()]).sharing_beginnings().batch(0, 1)
    torch.testing.assert_close(
        by_pair(sequence_log_probabilities(model, swapped)[0], swapped)[0, 1], found[0], rtol=1e-5, atol=1e-5
    )


def test_dropout_draws_one_mask_for_the_prompt_of_both_answers() -> None:
    model = make_decoder(1, dropout=0.5).train()
    pair = Pair([5, 6, 7, 8], [9, 10], [9, 10])
    batch = pack_pairs([pair]).sharing_beginnings().batch(0, 1)
    torch.manual_seed(0)
    first = model(*batch.model_inputs)
    torch.manual_seed(0)
    assert torch.equal(model(*batch.model_inputs), first)
    chosen, rejected = by_pair(sequence_log_probabilities(model, batch)[0], batch)[0]
    assert chosen != rejected  # equal answers: what they have of their own is masked apart
