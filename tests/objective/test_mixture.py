"""A mixture of experts adds a penalty to a batch, which neither loss nor perplexity contains."""

import pytest
import torch

from fledge.model.decoder import Decoder
from fledge.objective import CausalLMObjective, LossOutput
from tests.support.decoders import assert_same_gradients, gradients, make_decoder
from tests.support.packed import dpo, pack, pack_pairs, random_pairs, random_sequences

MOE = {"num_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.5, "router_z_loss_coef": 0.25}
OFF = {"num_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.0, "router_z_loss_coef": 0.0}


def _model(moe: dict[str, object] | None = None) -> Decoder:
    return make_decoder(qk_norm=True, moe=moe or MOE)


def _trained(outcome: LossOutput) -> torch.Tensor:
    assert outcome.aux_loss is not None
    return outcome.loss + outcome.aux_loss


def test_the_loss_is_the_cross_entropy_alone_and_the_penalty_is_a_separate_value() -> None:
    batch = pack(random_sequences([32, 9, 20, 33]), packed_length=40).batch(0, 3)
    model = _model()
    outcome = CausalLMObjective()(model, batch)
    hidden, routing = model.forward_with_router_stats(batch.input_ids, batch.position_ids, batch.documents)
    assert routing is not None and outcome.aux_loss is not None and outcome.routing is not None
    logps = model.logits(hidden).log_softmax(-1).gather(-1, batch.targets[..., None])[..., 0]
    torch.testing.assert_close(outcome.loss, -(logps * batch.loss_weights).sum())
    torch.testing.assert_close(outcome.aux_loss, batch.weight * (0.5 * routing.aux_loss + 0.25 * routing.z_loss))
    assert float(outcome.routing.tokens) == batch.num_tokens < batch.input_ids.numel()
    assert torch.equal(outcome.routing.counts.sum(1), torch.full((2,), 2.0 * batch.num_tokens))
    measured = CausalLMObjective().evaluate(model, batch)
    assert measured["loss"].total == pytest.approx(float(outcome.loss.detach()), rel=1e-5)


def test_the_penalty_is_zero_without_weights_and_trains_the_router_with_them() -> None:
    batch = pack(random_sequences([32, 9, 20, 33]), packed_length=40).batch(0, 3)
    on, off = _model(), _model(OFF)
    CausalLMObjective()(on, batch).loss.backward()
    without = gradients(on)
    _trained(CausalLMObjective()(off, batch)).backward()
    assert_same_gradients(gradients(off), without, atol=0.0)
    _trained(CausalLMObjective()(on, batch)).backward()
    name = "layers.0.mlp.gate.weight"
    assert not torch.allclose(gradients(on)[name], without[name], rtol=0.1)


def test_a_preference_is_penalised_for_each_pair() -> None:
    data = pack_pairs(random_pairs(6))
    batch = data.batch(0, len(data))
    model, reference = _model(), _model().requires_grad_(False)
    outcome = dpo(reference)(model, batch)
    routing = model.forward_with_router_stats(batch.input_ids, batch.position_ids, batch.documents)[1]
    assert routing is not None and outcome.aux_loss is not None
    torch.testing.assert_close(outcome.loss.detach(), 6 * torch.tensor(2.0).log(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outcome.aux_loss, 6 * (0.5 * routing.aux_loss + 0.25 * routing.z_loss))


def test_a_detached_outcome_has_no_graph_and_equal_numbers() -> None:
    batch = pack(random_sequences([32, 9]), packed_length=40).batch(0, 1)
    outcome = CausalLMObjective()(_model(), batch)
    kept = outcome.detached()
    assert kept.routing is not None and outcome.routing is not None
    assert not any(t.requires_grad for t in (kept.loss, *vars(kept.routing).values()))
    assert torch.equal(kept.routing.aux_loss, outcome.routing.aux_loss) and torch.equal(
        kept.routing.counts, outcome.routing.counts
    )


def test_a_dense_model_adds_nothing() -> None:
    batch = pack(random_sequences([32, 9]), packed_length=40).batch(0, 1)
    outcome = CausalLMObjective()(make_decoder(), batch)
    assert outcome.aux_loss is None and outcome.routing is None
