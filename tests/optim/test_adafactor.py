"""Adafactor is PyTorch's, with steps that can be skipped; settings without effect are refused, and small rates are told."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from fledge.optim.adafactor import Adafactor
from fledge.optim.build import build_optimizers, optimizer_tensors
from fledge.plan.critic.rates import RELATIVE_RATES
from fledge.recipe import recipe_from_dict
from fledge.recipe.schema import OptimizerConfig
from tests.support.small_model import model


def parameters() -> list[nn.Parameter]:
    """A matrix and a vector with gradients."""
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((6, 9), (9,))]
    for parameter in made:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return made


def test_steps_are_those_of_pytorch() -> None:
    ours, theirs = parameters(), parameters()
    optimizers = Adafactor(ours, lr=1e-2), torch.optim.Adafactor(theirs, lr=1e-2)
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.step()
    assert all(torch.equal(one, two) for one, two in zip(ours, theirs, strict=True))


def test_an_update_is_relative_to_the_size_of_the_weights() -> None:
    moves = []
    for size in (1.0, 100.0):
        (matrix, _) = parameters()
        matrix.data.mul_(size)
        before = matrix.detach().clone()
        Adafactor([matrix], lr=1e-2, weight_decay=0.0).step()
        moves.append(float((matrix.detach() - before).norm() / before.norm()))
    assert moves[0] == pytest.approx(moves[1], rel=1e-3) and 0 < moves[0] <= 0.0101


def test_a_skipped_step_changes_nothing() -> None:
    made = parameters()
    optimizer = Adafactor(made, lr=1e-2)
    optimizer.step()
    before = [parameter.detach().clone() for parameter in made]
    state = {key: value.clone() for entry in optimizer.state.values() for key, value in entry.items()}
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(one, two) for one, two in zip(before, made, strict=True))
    after = {key: value for entry in optimizer.state.values() for key, value in entry.items()}
    assert all(torch.equal(state[key], after[key]) for key in state)


def test_its_state_is_much_smaller_than_the_weights() -> None:
    decoder = model()
    optimizers = build_optimizers(decoder, OptimizerConfig(name="adafactor"))
    for parameter in decoder.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    weights = sum(parameter.numel() for parameter in decoder.parameters())
    assert sum(tensor.numel() for tensor in optimizer_tensors(decoder, optimizers).values()) < weights / 4
    assert RELATIVE_RATES == ("adafactor",)


@pytest.mark.parametrize(
    ("optimizer", "problem"),
    [
        ({"name": "adafactor", "betas": [0.5, 0.9]}, "betas has no effect with adafactor"),
        ({"name": "adafactor", "eps": 1e-6}, "eps has no effect with adafactor"),
    ],
)
def test_settings_without_effect_are_refused(optimizer: dict[str, object], problem: str) -> None:
    stage: dict[str, object] = {"data": {"train": "rows.jsonl"}, "optimizer": optimizer}
    with pytest.raises(Exception, match=problem):
        recipe_from_dict({"name": "x", "stages": {"sft": stage}})
    unchanged = {**stage, "optimizer": {"name": "adafactor", "betas": [0.9, 0.95], "eps": 1e-8}}  # as a run writes them
    assert recipe_from_dict({"name": "x", "stages": {"sft": unchanged}}).stages["sft"].optimizer.name == "adafactor"


def test_an_adapter_which_begins_at_zero_is_refused() -> None:
    stage = {"data": {"train": "rows.jsonl"}, "optimizer": {"name": "adafactor"}, "adapter": {}}
    with pytest.raises(Exception, match="half of an adapter begins as zero"):
        recipe_from_dict({"name": "x", "stages": {"sft": stage}})


def test_no_rate_is_derived_for_it() -> None:
    with pytest.raises(ValidationError, match="auto is not derived for adafactor"):
        OptimizerConfig(name="adafactor", learning_rate="auto")
