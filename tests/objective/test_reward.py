"""A reward model's loss and metrics on packed pairs equal those of each answer alone, whatever the micro-batches."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fledge.model.decoder import Decoder
from fledge.objective import RewardObjective
from fledge.objective.base import Ratio, with_derived
from fledge.objective.reward import last_positions, sequence_rewards
from tests.support.decoders import gradients, make_decoder
from tests.support.packed import Pair, pack_ranked, random_pairs

PAIRS, MARGINS = random_pairs(9, seed=2), [0.0, 0.5, 1.0, 0.0, 2.0, -0.3, 0.0, 0.0, 0.1]
STOP = 5  # the token that ends an answer; 0 is padding


def _ended(pairs: list[Pair]) -> list[Pair]:
    return [Pair(pair.prompt, [*pair.chosen, STOP], [*pair.rejected, STOP]) for pair in pairs]


def _model(seed: int = 0, **changes: object) -> Decoder:
    model = make_decoder(seed, **changes)
    model.become_reward_model(seed)
    return model.eval()


def _alone(model: Decoder, tokens: list[int]) -> Tensor:
    """The reward of a text, read at its last token."""
    assert model.score is not None
    return F.linear(model(torch.tensor([tokens]))[0, -1], model.score.weight)[0]


def _objective(data: object, coefficient: float = 0.0, margins: list[float] | None = None) -> RewardObjective:
    values = torch.tensor(margins or [0.0] * len(PAIRS))
    return RewardObjective(margins=values, pad=0, center_rewards_coefficient=coefficient)


@pytest.mark.parametrize("coefficient", [0.0, 0.01])
def test_the_loss_of_packed_pairs_is_the_formula_on_answers_alone(coefficient: float) -> None:
    model, pairs = _model(), _ended(PAIRS)
    data = pack_ranked(pairs, MARGINS)
    output = _objective(data, coefficient, MARGINS)(model, data.batch(0, len(data)))
    expected = torch.zeros(())
    for pair, margin in zip(pairs, MARGINS, strict=True):
        chosen, rejected = (_alone(model, pair.prompt + answer) for answer in (pair.chosen, pair.rejected))
        expected = expected - F.logsigmoid(chosen - rejected - margin) + coefficient * (chosen + rejected) ** 2
    assert float(output.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"qk_norm": True}])
def test_loss_and_gradients_do_not_depend_on_packing_and_micro_batches(changes: dict[str, object]) -> None:
    model, pairs = _model(**changes), _ended(PAIRS)
    found = []
    for packed_length, rows in ((48, 1), (48, 8), (96, 2), (40, 3)):
        data = pack_ranked(pairs, MARGINS, packed_length)
        objective = _objective(data, 0.01, MARGINS)
        total = 0.0
        for first in range(0, len(data), rows):
            loss = objective(model, data.batch(first, rows, len(data))).loss
            loss.backward()
            total += float(loss.detach())
        found.append((total, gradients(model)))
    for total, grads in found[1:]:
        assert total == pytest.approx(found[0][0], rel=1e-5)
        assert grads.keys() == found[0][1].keys() and "score.weight" in grads
        for name, gradient in grads.items():
            torch.testing.assert_close(gradient, found[0][1][name], atol=2e-6, rtol=1e-4)


def test_a_reward_is_read_at_the_last_token_that_is_no_padding() -> None:
    """An answer may end with the token that fills rows, as where it is the end of a text, too."""
    pairs = [Pair([3, 4], [7, 8, 0], [9, STOP]), Pair([3], [0, 6, 0, 0], [STOP])]
    data = pack_ranked(pairs)
    batch = data.batch(0, len(data))
    rows = batch.input_ids.flatten()[last_positions(batch, pad=0)].tolist()
    by_example = {example: rows[2 * place : 2 * place + 2] for place, example in enumerate(batch.examples)}
    assert by_example == {0: [8, STOP], 1: [6, STOP]}
    assert batch.input_ids.flatten()[last_positions(batch, pad=96)].tolist().count(0) == 2
    empty = data.assemble([None, None])
    assert last_positions(empty, 0).shape == (0,)


def test_metrics_count_what_they_say() -> None:
    model, pairs = _model(), _ended(PAIRS)
    data = pack_ranked(pairs)
    totals: dict[str, Ratio] = {}
    for row in range(len(data)):  # added up over micro-batches
        for name, ratio in _objective(data).evaluate(model, data.batch(row, 1)).items():
            totals[name] = totals[name] + ratio if name in totals else ratio
    values = with_derived({name: ratio.value for name, ratio in totals.items() if ratio.count})
    rewards = torch.stack(
        [torch.stack([_alone(model, pair.prompt + answer) for answer in (pair.chosen, pair.rejected)]) for pair in pairs]
    ).detach()
    margins = rewards[:, 0] - rewards[:, 1]
    longer = torch.tensor([float(len(pair.chosen) - len(pair.rejected)) for pair in pairs])
    share = ((longer > 0).float() + 0.5 * (longer == 0)).mean()
    expected = {
        "loss": -F.logsigmoid(margins).mean(),
        "pairs": len(pairs),
        "rewards/chosen": rewards[:, 0].mean(),
        "rewards/rejected": rewards[:, 1].mean(),
        "rewards/chosen_std": rewards[:, 0].std(correction=0),
        "rewards/rejected_std": rewards[:, 1].std(correction=0),
        "rewards/margins": margins.mean(),
        "rewards/accuracies": (margins > 0).float().mean(),
        "rewards/accuracies_shorter": (margins[longer < 0] > 0).float().mean(),
        "rewards/accuracies_longer": (margins[longer > 0] > 0).float().mean(),
        "lengths/chosen": sum(len(pair.chosen) for pair in pairs) / len(pairs),
        "lengths/rejected": sum(len(pair.rejected) for pair in pairs) / len(pairs),
        "length_baseline": max(share, 1 - share),
        "length_correlation": torch.corrcoef(torch.stack((margins, longer)))[0, 1],
    }
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        assert float(values[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-6), name


def test_equal_rewards_are_not_right() -> None:
    model = _model()
    assert model.score is not None
    torch.nn.init.zeros_(model.score.weight)
    data = pack_ranked(_ended(PAIRS))
    values = _objective(data).evaluate(model, data.batch(0, len(data)))
    assert values["rewards/accuracies"].value == 0.0
    assert values["loss"].value == pytest.approx(math.log(2))


def test_a_mixture_of_experts_is_trained_with_its_router_loss() -> None:
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.01}
    model = _model(moe=moe, qk_norm=True)
    data = pack_ranked(_ended(PAIRS))
    output = _objective(data)(model, data.batch(0, len(data)))
    assert output.aux_loss is not None and float(output.aux_loss.detach()) > 0
    assert output.routing is not None


def test_margins_belong_to_the_pairs_of_a_batch() -> None:
    """Whatever the order in which pairs come, each has its own margin."""
    model, pairs = _model(), _ended(PAIRS)
    data = pack_ranked(pairs, MARGINS)
    objective = _objective(data, margins=MARGINS)
    for row in range(len(data)):
        batch = data.batch(row, 1)
        flat, _ = sequence_rewards(model, batch, 0)
        losses, rewards, _ = objective.pair_losses(model, batch)
        assert torch.equal(rewards.flatten(), flat)
        for place, example in enumerate(batch.examples):
            margin = float((rewards[place, 0] - rewards[place, 1]).detach()) - MARGINS[example]
            assert float(losses[place].detach()) == pytest.approx(math.log1p(math.exp(-margin)), rel=1e-5)
