"""Averaged weights, and how far an update moves each kind of parameter."""

import pytest
import torch
from torch import nn

from fledge.errors import FledgeError
from fledge.monitor.update_ratio import UpdateRatioMonitor, group_of
from fledge.optim.ema import EMA
from fledge.recipe.schema import EMAConfig
from tests.support.small_model import model


def move(decoder: nn.Module, seed: int) -> None:
    """Add random numbers to all parameters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))


def test_average_follows_its_formula() -> None:
    decoder, average = nn.Linear(3, 3), EMA(nn.Linear(3, 3), EMAConfig(decay=0.3), 50)
    expected = None
    for step in range(20):
        move(decoder, step)
        average.update(decoder, step)
        decay = min(0.3, (1 + step) / (10 + step))
        weight = decoder.weight.detach().double()
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
    assert expected is not None
    torch.testing.assert_close(average.tensors()["average/weight"], expected.float(), atol=1e-6, rtol=1e-6)
    assert average.tensors()["average/weight"].dtype == torch.float32


def test_average_starts_after_start_fraction_of_the_steps() -> None:
    decoder = model()
    average = EMA(decoder, EMAConfig(decay=0.9, start_fraction=0.5), 10)
    for step in range(6):
        move(decoder, step)
        average.update(decoder, step)
        assert average.updates == max(0, step - 4)
    assert torch.equal(average.tensors()["average/norm.weight"], decoder.norm.weight)


def test_swapping_weights_in_and_out_restores_them_bit_for_bit() -> None:
    decoder = model()
    average = EMA(decoder, EMAConfig(decay=0.9), 10)
    with average.swapped_in(decoder):
        assert torch.equal(decoder.norm.weight, model().norm.weight)  # nothing averaged yet: its own
    for step in range(3):
        average.update(decoder, step)
        move(decoder, step)
    own = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    with pytest.raises(KeyError), average.swapped_in(decoder):
        for name, tensor in decoder.named_parameters():
            assert torch.equal(tensor, average.tensors()[f"average/{name}"])
            assert not torch.equal(tensor, own[name])
        raise KeyError
    assert all(tensor.numpy().tobytes() == own[name].numpy().tobytes() for name, tensor in decoder.state_dict().items())


@pytest.mark.parametrize("before", [0, 3])
def test_restored_average_continues_bit_for_bit(before: int) -> None:
    decoder, config = model(), EMAConfig(decay=0.9)
    uninterrupted, resumed = EMA(decoder, config, 10), EMA(decoder, config, 10)
    for step in range(before):
        move(decoder, step)
        uninterrupted.update(decoder, step)
    resumed.restore({name: tensor.clone() for name, tensor in uninterrupted.tensors().items()})
    for step in range(before, before + 3):
        move(decoder, step)
        uninterrupted.update(decoder, step)
        resumed.update(decoder, step)
    one, two = uninterrupted.tensors(), resumed.tensors()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_restoring_from_another_model_or_without_average_is_an_error() -> None:
    average = EMA(model(), EMAConfig(decay=0.9), 10)
    with pytest.raises(FledgeError, match="no averaged weights"):
        average.restore({})
    other = nn.Linear(2, 2)
    foreign = EMA(other, EMAConfig(decay=0.9), 10)
    foreign.update(other, 0)
    with pytest.raises(FledgeError, match="another model"):
        average.restore(foreign.tensors())


def test_start_fraction_without_decay_is_an_error() -> None:
    with pytest.raises(ValueError, match="start_fraction has no effect without decay"):
        EMAConfig(start_fraction=0.5)
    with pytest.raises(ValueError, match="EMA needs a decay"):
        EMA(model(), EMAConfig(), 10)


def test_monitor_gives_the_update_ratio_of_each_parameter_group() -> None:
    decoder = model()
    watch = UpdateRatioMonitor(decoder)
    before = {name: parameter.detach().clone() for name, parameter in decoder.named_parameters()}
    watch.before()
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.mul_({"embed": 1.5, "attention": 0.5, "mlp": 1.0, "norm": 2.0, "head": 1.25}[group_of(name)])
    ratios = watch.after()
    assert {group: round(float(value), 5) for group, value in ratios.items()} == {
        "embed": 0.5, "attention": 0.5, "mlp": 0.0, "norm": 1.0, "head": 0.25,
    }  # fmt: skip
    watch.before()
    move(decoder, 1)
    ratios = watch.after()
    now = dict(decoder.named_parameters())
    names = [name for name in now if group_of(name) == "attention"]
    assert len(names) == 8 and all("self_attn" in name and "norm" not in name for name in names)
    scale = {"embed": 1.5, "attention": 0.5, "mlp": 1.0, "norm": 2.0, "head": 1.25}
    was = torch.cat([(before[name] * scale["attention"]).flatten() for name in names])
    change = torch.cat([now[name].detach().flatten() for name in names]) - was
    assert float(ratios["attention"]) == pytest.approx(
        float(change.square().mean().sqrt() / was.square().mean().sqrt()), rel=1e-5
    )


def test_zero_weights_have_ratio_zero_and_after_requires_before() -> None:
    layer = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(layer.weight)
    watch = UpdateRatioMonitor(layer)
    watch.before()
    nn.init.ones_(layer.weight)
    assert {group: float(value) for group, value in watch.after().items()} == {"other": 0.0}
    with pytest.raises(ValueError, match="without before"):
        watch.after()
