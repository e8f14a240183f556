"""KTO on packed labelled answers is the formula of the paper on single padded answers, for any micro-batches."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fledge.data import Batch
from fledge.model.decoder import Decoder
from fledge.objective import KTOObjective, sequence_log_probabilities
from fledge.objective.base import Ratio
from fledge.objective.kto import ANSWER, UNRELATED, sequences_at
from fledge.objective.preference import compute_ref_log_probs
from fledge.objective.preference_losses import kto_loss
from tests.support.decoders import assert_same_gradients, gradients, make_decoder
from tests.support.packed import Answer, pack_answers, random_answers

ANSWERS = random_answers(9)
DATA = pack_answers(ANSWERS)


def _logp(model: Decoder, prompt: list[int], completion: list[int]) -> Tensor:
    tokens = torch.tensor([prompt + completion])
    logps = model.logits(model(tokens[:, :-1]))[0].log_softmax(-1).gather(-1, tokens[0, 1:, None])[:, 0]
    return logps[len(prompt) - 1 :].sum()


def _kto(reference: Any, **more: Any) -> KTOObjective:
    labels = torch.tensor([one.desirable for one in ANSWERS])
    return KTOObjective(**{"beta": 0.3, "labels": labels, "reference": reference, **more})


def _in_window(objective: KTOObjective, model: Decoder, batches: Iterable[Batch]) -> KTOObjective:
    return objective.in_window(model, lambda: [(batch, True) for batch in batches], list)


def _expected(
    policy: Decoder, reference: Decoder, *, beta: float, weights: tuple[float, float] = (1.0, 1.0)
) -> tuple[Tensor, Tensor, Tensor]:
    """(losses, z, log-ratios) written out: Ethayarajh et al. 2024, eq. 7-8."""

    def ratio(one: Answer, completion: list[int]) -> Tensor:
        with torch.no_grad():
            before = _logp(reference, one.prompt, completion)
        return _logp(policy, one.prompt, completion) - before

    ratios = torch.stack([ratio(one, one.answer) for one in ANSWERS])
    with torch.no_grad():
        z = torch.stack([ratio(one, one.unrelated) for one in ANSWERS]).mean().clamp(min=0)
    values = [
        weights[0] * (1 - F.sigmoid(beta * (r - z))) if one.desirable else weights[1] * (1 - F.sigmoid(beta * (z - r)))
        for one, r in zip(ANSWERS, ratios, strict=True)
    ]
    return torch.stack(values), z, ratios


def _moved(seed: int = 3) -> Decoder:
    """A policy near the reference `make_decoder(0)` that makes the unrelated answers likelier: its KL estimate is above 0."""
    model = make_decoder(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):
        (-sum(_logp(model, one.prompt, one.unrelated) for one in ANSWERS) / len(ANSWERS)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, 1.4)])
def test_loss_and_gradient_equal_the_formula_for_any_micro_batches(weights: tuple[float, float]) -> None:
    policy, reference = _moved(), make_decoder(0)
    losses, z, ratios = _expected(policy, reference, beta=0.3, weights=weights)
    assert z > 0.1
    losses.sum().backward()
    expected = gradients(policy)
    for size in (len(DATA), 2, 1):
        batches = [DATA.batch(row, size, stop=len(DATA)) for row in range(0, len(DATA), size)]
        objective = _in_window(_kto(reference, desirable_weight=weights[0], undesirable_weight=weights[1]), policy, batches)
        assert objective.window is not None and objective.window.kl == pytest.approx(float(z), rel=1e-5)
        outputs = [objective(policy, batch) for batch in batches]
        torch.stack([output.loss for output in outputs]).sum().backward()
        assert sum(float(output.loss.detach()) for output in outputs) == pytest.approx(float(losses.detach().sum()), rel=1e-5)
        assert_same_gradients(expected, gradients(policy), atol=1e-5, rtol=1e-4)
        totals: dict[str, Ratio] = {}
        for output in outputs:
            for name, ratio in output.metrics.items():
                totals[name] = totals[name] + ratio if name in totals else ratio
        desirable = torch.tensor([one.desirable for one in ANSWERS])
        rewards = 0.3 * ratios.detach()
        right = torch.where(desirable, rewards > 0.3 * z, rewards < 0.3 * z).float().mean()
        for name, value in {
            "kl": z,
            "rewards/chosen": rewards[desirable].mean(),
            "rewards/rejected": rewards[~desirable].mean(),
            "rewards/margins": rewards[desirable].mean() - rewards[~desirable].mean(),
            "rewards/accuracies": right,
            "lengths/rejected": torch.tensor([float(len(one.answer)) for one in ANSWERS if not one.desirable]).mean(),
        }.items():
            assert float(totals[name].value) == pytest.approx(float(value), rel=1e-4, abs=1e-6), name


def test_the_kl_estimate_is_never_below_0_and_has_no_gradient() -> None:
    policy, reference = make_decoder(0), _moved()
    _, z, _ = _expected(policy, reference, beta=0.3)
    objective = _in_window(_kto(reference), policy, [DATA.batch(0, len(DATA))])
    assert objective.window is not None and objective.window.kl == float(z) == 0
    assert not any(parameter.grad is not None for parameter in policy.parameters())


def test_a_table_of_the_reference_gives_the_identical_loss() -> None:
    policy, reference = make_decoder(1), make_decoder(0)
    batches = [DATA.batch(row, 1) for row in range(len(DATA))]
    table = compute_ref_log_probs(reference, batches, len(ANSWERS), torch.device("cpu"))
    for place in (ANSWER, UNRELATED):
        expected = [_logp(reference, one.prompt, (one.answer, one.unrelated)[place]) for one in ANSWERS]
        torch.testing.assert_close(table[:, place], torch.stack(expected).detach(), atol=1e-4, rtol=1e-5)
    losses = []
    for given in (reference, table):
        objective = _in_window(_kto(given), policy, batches)
        losses.append(torch.stack([objective(policy, batch).loss for batch in batches]))
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-5)


def test_at_step_0_the_loss_is_half_the_weight_of_the_labels_and_nothing_is_preferred() -> None:
    model, batch = make_decoder(), DATA.batch(0, len(DATA))
    objective = _in_window(_kto(deepcopy(model), desirable_weight=2.0), model, [batch])
    output = objective(model, batch)
    count = sum(one.desirable for one in ANSWERS)
    expected = (2.0 * count + (len(ANSWERS) - count)) / 2 / len(ANSWERS)
    assert output.loss.item() / len(ANSWERS) == pytest.approx(expected) == pytest.approx(objective.loss_at_reference)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "kl"):
        assert output.metrics[name].value.item() == pytest.approx(0, abs=1e-6), name


def test_a_batch_with_one_label_has_a_finite_loss_and_adds_nothing_to_the_other_label() -> None:
    policy, data = make_decoder(1), pack_answers([one for one in ANSWERS if one.desirable])
    objective = _kto(make_decoder(0), labels=torch.ones(len(ANSWERS), dtype=torch.bool))
    output = objective(policy, data.batch(0, len(data)))
    assert output.loss.isfinite() and output.metrics["rewards/rejected"].count == 0
    assert output.metrics["rewards/rejected"].total == 0


def test_a_place_of_the_examples_is_computed_as_it_is_in_the_whole_batch() -> None:
    model, batch = make_decoder(), DATA.batch(0, len(DATA))
    sums, _ = sequence_log_probabilities(model, batch)
    for place in (ANSWER, UNRELATED):
        part = sequences_at(batch, place)
        assert part.input_ids.shape == (batch.input_ids.shape[0], batch.input_ids.shape[1] // 2)
        alone, _ = sequence_log_probabilities(model, part)
        torch.testing.assert_close(alone, sums[place::2], atol=1e-5, rtol=1e-5)


def test_an_evaluation_measures_the_likelihood_of_desirable_answers() -> None:
    policy, batch = make_decoder(1), DATA.batch(0, len(DATA))
    objective = _in_window(_kto(make_decoder(0)), policy, [batch])
    values = {name: ratio.value for name, ratio in objective.evaluate(policy, batch).items()}
    good = [one for one in ANSWERS if one.desirable]
    tokens = sum(len(one.answer) for one in good)
    with torch.no_grad():
        nll = -sum(float(_logp(policy, one.prompt, one.answer)) for one in good)
    assert values["tokens"] == tokens and values["answers"] == len(ANSWERS)
    assert values["perplexity"] == pytest.approx(torch.tensor(nll / tokens).exp().item(), rel=1e-4)
    losses, _, _ = _expected(policy, make_decoder(0), beta=0.3)
    assert values["loss"] == pytest.approx(float(losses.detach().mean()), rel=1e-4)


def test_the_loss_has_the_value_of_its_formula_on_two_answers() -> None:
    losses = kto_loss(torch.tensor([2.0, 2.0]), torch.tensor([True, False]), 0.5, 0.4)
    expected = [1 - F.sigmoid(torch.tensor(0.4 * 1.5)), 1 - F.sigmoid(torch.tensor(-0.4 * 1.5))]
    torch.testing.assert_close(losses, torch.stack(expected))


def test_a_few_steps_raise_desirable_answers_above_undesirable_ones() -> None:
    policy = make_decoder().train()
    reference, batch = deepcopy(policy), DATA.batch(0, len(DATA))
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    for _ in range(15):
        objective = _in_window(_kto(reference), policy, [batch])
        (objective(policy, batch).loss / objective.normalizer(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
    metrics = _in_window(_kto(reference), policy, [batch])(policy, batch).metrics
    assert metrics["rewards/accuracies"].value > 0.8 and metrics["rewards/margins"].value > 0.3
