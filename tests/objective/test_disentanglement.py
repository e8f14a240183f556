"""The disentanglement band tells what a small step does to the log-probabilities of chosen and rejected answers."""

from typing import Any

import pytest
import torch

from fledge.model.decoder import Decoder
from fledge.objective import sequence_log_probabilities
from fledge.objective.disentanglement import disentanglement
from fledge.training.validation import ValidationSet, validate
from tests.support.decoders import make_decoder
from tests.support.packed import Pair, dpo, pack_pairs, random_pairs

PAIRS = random_pairs(4, seed=3)
NEARLY_EQUAL = [Pair(pair.prompt, pair.chosen, [*pair.chosen[:-2], 5, 2]) for pair in PAIRS]


def _sums(model: Decoder, pairs: list[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    data = pack_pairs(pairs)
    sums = sequence_log_probabilities(model, data.batch(0, len(data)))[0].view(-1, 2)
    return sums[:, 0].sum(), sums[:, 1].sum()


@pytest.mark.parametrize("pairs", [PAIRS, NEARLY_EQUAL])
@pytest.mark.parametrize("more", [{}, {"sft_loss_weight": 2.0}])
def test_a_small_step_moves_both_answers_as_the_band_says(pairs: list[Pair], more: dict[str, Any]) -> None:
    model, reference, data = make_decoder(1), make_decoder(1), pack_pairs(pairs)
    batch, objective = data.batch(0, len(data)), dpo(reference, 0.1, "sigmoid", **more)
    figures = disentanglement(objective, model, batch)
    before = [float(value) for value in _sums(model, pairs)]
    objective(model, batch).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-5 * parameter.grad  # pyright: ignore
    rises, falls = (float(value) - old for value, old in zip(_sums(model, pairs), before, strict=True))
    if "disentanglement/band_low" not in figures:
        assert figures["disentanglement/cosine"] <= 0 and rises > 0 > falls
    else:
        assert (rises > 0) == (figures["disentanglement/ratio"] > figures["disentanglement/band_low"])
        assert (falls < 0) == (figures["disentanglement/ratio"] < figures["disentanglement/band_high"])
    if not more:
        assert figures["disentanglement/ratio"] == pytest.approx(1.0)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_figures_are_inner_products_of_the_two_gradients() -> None:
    model, data = make_decoder(1), pack_pairs(NEARLY_EQUAL)
    found = disentanglement(dpo(make_decoder(0), 0.1, "sigmoid"), model, data.batch(0, len(data)))
    gradients = []
    for value in _sums(model, NEARLY_EQUAL):
        gradients.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()), retain_graph=True)])
        )
    chosen, rejected = gradients
    inner = chosen @ rejected
    assert inner > 0
    assert found["disentanglement/band_low"] == pytest.approx(float(inner / (chosen @ chosen)), rel=1e-4)
    assert found["disentanglement/band_high"] == pytest.approx(float((rejected @ rejected) / inner), rel=1e-4)
    assert found["disentanglement/cosine"] == pytest.approx(float(inner / chosen.norm() / rejected.norm()), rel=1e-4)


def test_a_weight_on_the_chosen_answers_raises_the_ratio() -> None:
    model, data = make_decoder(1), pack_pairs(PAIRS)
    batch = data.batch(0, len(data))
    ratios = [
        disentanglement(dpo(make_decoder(1), 0.1, "sigmoid", sft_loss_weight=weight), model, batch)["disentanglement/ratio"]
        for weight in (0.0, 0.5, 1.0)
    ]
    assert ratios[0] == pytest.approx(1.0) and ratios[0] < ratios[1] < ratios[2]


def test_validation_adds_the_figures_of_its_first_batch_and_leaves_no_gradient() -> None:
    model, data, objective = make_decoder(1).train(), pack_pairs(PAIRS), dpo(make_decoder(0), 0.1, "sigmoid")
    plain = validate(model, ValidationSet(data, objective, 99), 2)
    found = validate(
        model, ValidationSet(data, objective, 99, lambda model, batch: disentanglement(objective, model, batch)), 2
    )
    assert {name: found[name] for name in plain} == plain and set(found) - set(plain) >= {"disentanglement/ratio"}
    assert all(parameter.grad is None for parameter in model.parameters()) and model.training
