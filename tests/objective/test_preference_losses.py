"""Each preference loss is its published formula: on numbers, and on padded pairs of a model."""

import math
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fledge.errors import FledgeError
from fledge.model.decoder import Decoder
from fledge.objective import PREFERENCE_LOSSES, DPOObjective, LossParams, PairLogps
from fledge.objective.preference import Reference
from fledge.objective.preference_losses import log1mexp
from tests.support.decoders import assert_same_gradients, gradients, make_decoder
from tests.support.packed import Pair, dpo, pack_pairs, random_pairs

PAIRS = random_pairs(7)
EACH_LOSS = pytest.mark.parametrize("loss_type", sorted(PREFERENCE_LOSSES))
WITH_REFERENCE = sorted(name for name, loss in PREFERENCE_LOSSES.items() if loss.has_reference)
SETTINGS: dict[str, dict[str, float]] = {"robust": {"label_smoothing": 0.2}, "simpo": {"simpo_gamma": 0.4}}  # of a loss


def _objective(reference: Reference | None, beta: float, loss_type: str) -> DPOObjective:
    return dpo(reference, beta, loss_type, **SETTINGS.get(loss_type, {}))


def _logps(model: Decoder, pair: Pair, answer: list[int], pad_to: int = 40) -> Tensor:
    """Log-probabilities [len(answer)] of a completion: one sequence alone, padded on the right, by the plain head."""
    tokens = torch.zeros(1, pad_to, dtype=torch.long)
    tokens[0, : len(pair.prompt) + len(answer)] = torch.tensor(pair.prompt + answer)
    logps = model.logits(model(tokens[:, :-1]))[0].log_softmax(-1).gather(-1, tokens[0, 1:, None])[:, 0]
    return logps[len(pair.prompt) - 1 : len(pair.prompt) - 1 + len(answer)]


def _expected(loss_type: str, policy: Decoder, reference: Decoder, pair: Pair, beta: float) -> Tensor:
    """The loss of one pair, written out."""
    chosen, rejected = _logps(policy, pair, pair.chosen), _logps(policy, pair, pair.rejected)
    with torch.no_grad():
        ref_chosen, ref_rejected = _logps(reference, pair, pair.chosen), _logps(reference, pair, pair.rejected)
    if loss_type == "simpo":
        return (1 + (-beta * (chosen.mean() - rejected.mean()) + 0.4).exp()).log()
    if loss_type == "orpo":
        odds = [logps.mean().exp() / (1 - logps.mean().exp()) for logps in (chosen, rejected)]
        return -chosen.mean() + beta * (1 + odds[1] / odds[0]).log()
    averaged = (chosen.mean() - ref_chosen.mean()) - (rejected.mean() - ref_rejected.mean())
    delta = (chosen.sum() - ref_chosen.sum()) - (rejected.sum() - ref_rejected.sum())
    kept, flipped = ((1 + (-sign * beta * delta).exp()).log() for sign in (1, -1))
    return {
        "sigmoid": kept,
        "robust": (0.8 * kept - 0.2 * flipped) / 0.6,
        "sigmoid_norm": (1 + (-beta * averaged).exp()).log(),
        "hinge": (1 - beta * delta).clamp(min=0),
        "ipo": (averaged - 1 / (2 * beta)).square(),
    }[loss_type]


@EACH_LOSS
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_loss_and_gradient_of_packed_pairs_equal_the_formula_on_padded_single_pairs(loss_type: str, beta: float) -> None:
    policy, reference, data = make_decoder(1), make_decoder(0), pack_pairs(PAIRS)
    batch = data.batch(0, len(data))
    assert any(len(pair.chosen) != len(pair.rejected) for pair in PAIRS)
    outcome = _objective(reference, beta, loss_type)(policy, batch)
    outcome.loss.backward()
    packed = gradients(policy)
    expected = torch.stack([_expected(loss_type, policy, reference, pair, beta) for pair in PAIRS])
    expected.sum().backward()
    torch.testing.assert_close(outcome.loss, expected.sum(), atol=1e-4, rtol=1e-5)
    assert_same_gradients(packed, gradients(policy), atol=1e-4, rtol=1e-4)
    if loss_type == "hinge" and beta == 0.7:
        assert 0 < int((expected == 0).sum()) < len(PAIRS)  # pairs on both sides of the hinge


@EACH_LOSS
def test_micro_batches_of_pairs_give_the_gradient_of_the_whole_batch(loss_type: str) -> None:
    policy, objective, data = make_decoder(1), _objective(make_decoder(0), 0.3, loss_type), pack_pairs(PAIRS)
    objective(policy, data.batch(0, len(data))).loss.backward()
    expected = gradients(policy)
    for row in range(len(data) + 1):  # the last one is empty
        objective(policy, data.batch(row, 1, stop=len(data))).loss.backward()
    assert_same_gradients(expected, gradients(policy), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("loss_type", WITH_REFERENCE)
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_each_loss_of_a_pair_has_its_known_value_where_the_policy_is_the_reference(loss_type: str, beta: float) -> None:
    model, data = make_decoder(), pack_pairs(PAIRS)
    objective = _objective(deepcopy(model), beta, loss_type)
    outcome = objective(model, data.batch(0, len(data)))
    first = {"hinge": 1.0, "ipo": (1 / (2 * beta)) ** 2}.get(loss_type, math.log(2))
    assert outcome.loss.item() / 7 == pytest.approx(first, rel=1e-6) == pytest.approx(objective.loss_at_reference, rel=1e-6)
    assert outcome.metrics["drift/chosen"].value == outcome.metrics["drift/rejected"].value == 0
    assert outcome.metrics["rewards/margins"].value == 0


@EACH_LOSS
def test_a_few_steps_make_every_chosen_answer_preferred(loss_type: str) -> None:
    policy, data = make_decoder().train(), pack_pairs(PAIRS)
    objective, batch = _objective(deepcopy(policy), 0.5 if loss_type == "orpo" else 0.1, loss_type), data.batch(0, len(data))
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = objective(policy, batch).loss / objective.normalizer(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    outcome = objective(policy, batch)
    assert outcome.loss.item() / 7 < losses[0] - 0.2 * abs(losses[0] if loss_type not in ("simpo", "sigmoid_norm") else 0.05)
    assert outcome.metrics["rewards/accuracies"].value == 1


def _pair(delta: float, lengths: tuple[float, float] = (1.0, 1.0)) -> tuple[Tensor, PairLogps]:
    """One pair with the difference Δ on the chosen side, and the variable that sets Δ."""
    x = torch.tensor([delta], dtype=torch.float64, requires_grad=True)
    policy = torch.stack((x, torch.zeros_like(x)), dim=-1) - 50
    return x, PairLogps(policy, torch.full_like(policy, -50.0).detach(), torch.tensor([lengths], dtype=torch.float64))


@settings(deadline=None, max_examples=50)
@given(delta=st.floats(-200, 200), beta=st.floats(0.01, 2), smoothing=st.floats(0, 0.49))
def test_the_sigmoid_loss_is_its_formula_everywhere_and_falls_towards_its_optimum(
    delta: float, beta: float, smoothing: float
) -> None:
    x, logps = _pair(delta)
    loss = PREFERENCE_LOSSES["sigmoid"](logps, LossParams(beta, smoothing))
    softplus = [max(z, 0) + math.log1p(math.exp(-abs(z))) for z in (-beta * delta, beta * delta)]
    assert loss.item() == pytest.approx((1 - smoothing) * softplus[0] + smoothing * softplus[1], rel=1e-9, abs=1e-12)
    (slope,) = torch.autograd.grad(loss, x)
    sigmoid = math.exp(-softplus[0])
    assert slope.item() == pytest.approx(beta * (sigmoid - (1 - smoothing)), rel=1e-6, abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(delta=st.floats(-200, 200), beta=st.floats(0.01, 2))
def test_the_hinge_is_flat_beyond_a_margin_of_1_and_has_slope_minus_beta_before_it(delta: float, beta: float) -> None:
    x, logps = _pair(delta)
    loss = PREFERENCE_LOSSES["hinge"](logps, LossParams(beta))
    assert loss.item() == pytest.approx(max(0.0, 1 - beta * delta), rel=1e-9, abs=1e-9)
    if abs(1 - beta * delta) > 1e-6:
        (slope,) = torch.autograd.grad(loss, x)
        assert slope.item() == pytest.approx(-beta if beta * delta < 1 else 0.0, rel=1e-9)


@settings(deadline=None, max_examples=50)
@given(delta=st.floats(-200, 200), beta=st.floats(0.01, 2), chosen=st.integers(1, 300), rejected=st.integers(1, 300))
def test_ipo_pulls_the_averaged_difference_to_1_over_2_beta(delta: float, beta: float, chosen: int, rejected: int) -> None:
    x, logps = _pair(delta, (float(chosen), float(rejected)))
    loss = PREFERENCE_LOSSES["ipo"](logps, LossParams(beta))
    distance = delta / chosen - 1 / (2 * beta)
    assert loss.item() == pytest.approx(distance**2, rel=1e-9, abs=1e-9)
    (slope,) = torch.autograd.grad(loss, x)
    assert slope.item() == pytest.approx(2 * distance / chosen, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("loss_type", ["hinge", "ipo", "sigmoid_norm", "simpo", "orpo"])
def test_label_smoothing_of_a_loss_that_has_none_is_an_error(loss_type: str) -> None:
    with pytest.raises(FledgeError, match=f"not defined for the {loss_type} loss"):
        dpo(None, loss_type=loss_type, label_smoothing=0.1)


@settings(deadline=None, max_examples=50)
@given(delta=st.floats(-50, 50), beta=st.floats(0.01, 2), flipped=st.floats(0.01, 0.49))
def test_the_robust_loss_averages_to_the_sigmoid_loss_of_unflipped_labels(delta: float, beta: float, flipped: float) -> None:
    """Chowdhury et al. 2024, eq. 12: (1 − ε) · loss of the pair + ε · loss of the flipped pair = sigmoid loss of the pair."""
    params = LossParams(beta, flipped)
    observed = [PREFERENCE_LOSSES["robust"](_pair(sign * delta)[1], params) for sign in (1, -1)]
    mean = (1 - flipped) * observed[0] + flipped * observed[1]
    clean = PREFERENCE_LOSSES["sigmoid"](_pair(delta)[1], LossParams(beta))
    assert mean.item() == pytest.approx(clean.item(), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("loss_type", "params", "expected"),
    [  # by hand: sums −2 and −6 of 4 and 3 tokens, so means −0.5 and −2; the reference has −3 and −6
        ("sigmoid", LossParams(0.5), math.log1p(math.exp(-0.5))),
        ("sigmoid", LossParams(0.5, 0.1), 0.9 * math.log1p(math.exp(-0.5)) + 0.1 * math.log1p(math.exp(0.5))),
        ("robust", LossParams(0.5, 0.1), (0.9 * math.log1p(math.exp(-0.5)) - 0.1 * math.log1p(math.exp(0.5))) / 0.8),
        ("sigmoid_norm", LossParams(2.0), math.log1p(math.exp(-2 * 0.25))),
        ("hinge", LossParams(0.5), 0.5),
        ("ipo", LossParams(0.5), 0.75**2),
        ("simpo", LossParams(2.0, 0.0, 1.0), math.log1p(math.exp(-2.0))),
        ("orpo", LossParams(0.1), 0.5 + 0.1 * math.log1p((0.135335283 / 0.864664717) / (0.60653066 / 0.39346934))),
    ],
)
def test_each_loss_has_the_value_of_its_formula_on_one_pair(loss_type: str, params: LossParams, expected: float) -> None:
    logps = PairLogps(torch.tensor([[-2.0, -6.0]]), torch.tensor([[-3.0, -6.0]]), torch.tensor([[4.0, 3.0]]))
    assert PREFERENCE_LOSSES[loss_type](logps, params).item() == pytest.approx(expected, rel=1e-5)


@settings(deadline=None, max_examples=50)
@given(x=st.floats(-80, -1e-12))
def test_log1mexp_and_its_gradient_are_exact_near_0_and_far_from_it(x: float) -> None:
    variable = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    value = log1mexp(variable)
    exact = math.log(-math.expm1(x)) if x > -1 else math.log1p(-math.exp(x))
    assert value.item() == pytest.approx(exact, rel=1e-12, abs=1e-300)
    (slope,) = torch.autograd.grad(value, variable)
    assert slope.item() == pytest.approx(-1 / math.expm1(-x), rel=1e-9)


def test_an_answer_that_is_certain_has_a_finite_loss_and_gradient() -> None:
    x = torch.zeros(1, 2, requires_grad=True)
    loss = PREFERENCE_LOSSES["orpo"](PairLogps(x - torch.tensor([[0.0, 5.0]]), x.detach(), torch.ones(1, 2)), LossParams(0.1))
    loss.sum().backward()
    assert loss.isfinite().all() and x.grad is not None and x.grad.isfinite().all()
