"""Every parameter is trained by exactly one optimizer, as its formula says, and its state survives a save or a skip."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fledge.errors import FledgeError
from fledge.model.decoder import Decoder
from fledge.optim import adamw_8bit
from fledge.optim.adamw_8bit import BLOCK, AdamW8bit, dequantize, dynamic_code, quantize
from fledge.optim.build import build_optimizers, optimizer_tensors, restore_optimizers
from fledge.optim.muon import Muon
from fledge.recipe.schema import OptimizerConfig
from tests.support.decoders import make_decoder
from tests.support.small_model import model

NAMES = ["adamw", "muon", "adamw8bit", "adafactor"]


def config(name: str, **more: object) -> OptimizerConfig:
    """Settings of this optimizer."""
    return OptimizerConfig(name=name, **more)  # type: ignore[arg-type]


def loss(decoder: Decoder, seed: int) -> Tensor:
    """Cross-entropy on random tokens."""
    tokens = torch.randint(0, 40, (2, 8), generator=torch.Generator().manual_seed(seed))
    logits = decoder.logits(decoder(tokens[:, :-1]))
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def step(decoder: Decoder, optimizers: list[torch.optim.Optimizer], seed: int) -> None:
    """One training step on random tokens."""
    loss(decoder, seed).backward()
    for optimizer in optimizers:
        optimizer.step()
    decoder.zero_grad()


def random(*shape: int, seed: int = 0) -> Tensor:
    """A random tensor."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def matrices(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    """Random parameters of these shapes with random gradients."""
    parameters = [nn.Parameter(0.02 * random(*shape, seed=number)) for number, shape in enumerate(shapes)]
    for number, parameter in enumerate(parameters):
        parameter.grad = random(*parameter.shape, seed=100 + number)
    return parameters


@pytest.mark.parametrize("name", NAMES)
def test_each_parameter_has_one_optimizer_and_only_matrices_decay(name: str) -> None:
    decoder = model()
    optimizers = build_optimizers(decoder, config(name, weight_decay=0.1))
    owned = [(id(p), group["weight_decay"]) for o in optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(key for key, _ in owned) == sorted(id(p) for p in decoder.parameters())
    decays = dict(owned)
    for full, parameter in decoder.named_parameters():
        assert decays[id(parameter)] == (0.1 if parameter.dim() > 1 and "embed" not in full else 0.0), full
    muon = {id(p) for o in optimizers if isinstance(o, Muon) for g in o.param_groups for p in g["params"]}
    blocks = {id(p) for full, p in decoder.named_parameters() if full.startswith("layers") and p.dim() == 2}
    assert muon == (blocks if name == "muon" else set())
    matrices = {full for full, p in decoder.named_parameters() if full.startswith("layers") and p.dim() == 2}
    small = {id(p) for o in optimizers if not isinstance(o, AdamW8bit) for g in o.param_groups for p in g["params"]}
    if name == "adamw8bit":
        assert small == {id(p) for name, p in decoder.named_parameters() if p.numel() < 4096 or name not in matrices}
        assert any(p.numel() >= 4096 for p in decoder.parameters())


def test_everything_decays_if_weight_decay_on_is_everything() -> None:
    groups = build_optimizers(model(), config("muon", weight_decay=0.3, weight_decay_on="everything"))
    assert {group["weight_decay"] for optimizer in groups for group in optimizer.param_groups} == {0.3}


def test_muon_trains_stacked_experts_but_not_routers_or_frozen_tensors() -> None:
    model_with_experts = make_decoder(moe={"num_experts": 4, "num_experts_per_tok": 2, "num_shared_experts": 1})
    model_with_experts.layers[0].requires_grad_(False)
    parameters = {id(parameter): name for name, parameter in model_with_experts.named_parameters()}
    muon = [o for o in build_optimizers(model_with_experts, config("muon")) if isinstance(o, Muon)]
    names = {parameters[id(p)].removeprefix("layers.1.") for p in muon[0].param_groups[0]["params"]}
    shared = {f"mlp.shared_expert.{name}_proj.weight" for name in ("gate", "up", "down")}
    attention = {f"self_attn.{name}_proj.weight" for name in "qkvo"}
    assert names == attention | shared | {f"mlp.experts.{name}_proj" for name in ("gate", "up", "down")}
    owned = {id(p) for o in build_optimizers(model_with_experts, config("muon")) for g in o.param_groups for p in g["params"]}
    assert owned == {id(p) for p in model_with_experts.parameters() if p.requires_grad}


def test_settings_that_are_still_auto_are_an_error() -> None:
    with pytest.raises(ValueError, match="learning_rate, weight_decay: still auto, not derived yet"):
        build_optimizers(model(), config("adamw", learning_rate="auto", weight_decay="auto"))


# -- state ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_restored_optimizer_continues_bit_for_bit(name: str) -> None:
    uninterrupted = model()
    optimizers = build_optimizers(uninterrupted, config(name, learning_rate=0.01))
    for seed in range(3):
        step(uninterrupted, optimizers, seed)
    resumed = model()
    resumed.load_state_dict(uninterrupted.state_dict())
    saved = load(save({key: tensor.contiguous() for key, tensor in optimizer_tensors(uninterrupted, optimizers).items()}))
    restored_optimizers = build_optimizers(resumed, config(name, learning_rate=0.01))
    restore_optimizers(resumed, restored_optimizers, saved)
    step(uninterrupted, optimizers, 9)
    step(resumed, restored_optimizers, 9)
    for (full, one), two in zip(uninterrupted.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two), full
    after, restored = optimizer_tensors(uninterrupted, optimizers), optimizer_tensors(resumed, restored_optimizers)
    assert after.keys() == restored.keys()
    assert all(torch.equal(after[key], restored[key]) and after[key].dtype == restored[key].dtype for key in after)


def test_optimizer_state_of_another_model_is_an_error() -> None:
    decoder = model()
    with pytest.raises(FledgeError, match=r"layers\.9"):
        restore_optimizers(decoder, build_optimizers(decoder, config("adamw")), {"layers.9.weight/step": torch.zeros(())})


@pytest.mark.parametrize("name", NAMES)
def test_skipped_step_changes_no_bit(name: str) -> None:
    decoder = model()
    optimizers = build_optimizers(decoder, config(name, learning_rate=0.01))
    for seed in range(2):
        step(decoder, optimizers, seed)
    weights = {key: tensor.clone() for key, tensor in decoder.state_dict().items()}
    state = {key: tensor.clone() for key, tensor in optimizer_tensors(decoder, optimizers).items()}
    loss(decoder, 5).backward()
    for parameter in decoder.parameters():
        assert parameter.grad is not None
        parameter.grad[..., 0] = math.nan
    for optimizer in optimizers:
        optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
        optimizer.step()
    assert all(tensor.numpy().tobytes() == weights[key].numpy().tobytes() for key, tensor in decoder.state_dict().items())
    after = optimizer_tensors(decoder, optimizers)
    assert all(tensor.numpy().tobytes() == state[key].numpy().tobytes() for key, tensor in after.items())


@pytest.mark.parametrize("name", NAMES)
def test_step_with_found_inf_zero_equals_an_ordinary_step(name: str) -> None:
    plain, guarded = model(), model()
    ours, theirs = (
        build_optimizers(plain, config(name, learning_rate=0.01)),
        build_optimizers(guarded, config(name, learning_rate=0.01)),
    )
    for optimizer in theirs:
        optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
    for seed in range(3):
        step(plain, ours, seed)
        step(guarded, theirs, seed)
    for (full, one), two in zip(plain.named_parameters(), guarded.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-6, msg=full)


# -- 8 bits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [True, False])
def test_the_code_has_256_values_seven_decades_zero_and_one(signed: bool) -> None:
    code = dynamic_code(signed, torch.device("cpu"))
    assert len(code) == len(code.unique()) == 256
    assert bool((code.diff() > 0).all())
    assert code[-1] == 1 and 0 in code
    assert code[0] == (-code[-2] if signed else 0)
    assert 1e-7 < code[code > 0].min() < 1e-6


@given(st.integers(0, 10**6), st.floats(1e-12, 1e12), st.booleans())
@settings(deadline=None, max_examples=25)
def test_quantization_error_is_bounded_by_the_resolution_of_the_code(seed: int, scale: float, signed: bool) -> None:
    values = random(4, BLOCK, seed=seed) ** 3 * scale
    values = values if signed else values.abs()
    codes, scales = quantize(values, signed)
    back = dequantize(codes, scales, signed)
    assert codes.dtype == torch.uint8 and torch.equal(scales, values.abs().amax(1))
    code = dynamic_code(signed, torch.device("cpu"))
    nearest = (values[..., None] / scales[:, None, None] - code).abs().amin(-1) * scales[:, None]
    assert bool(((back - values).abs() <= nearest + 0.002 * values.abs() + 4e-7 * scales[:, None]).all())
    assert signed or bool((back[values > 0] > 0).all())
    assert torch.equal(dequantize(*quantize(torch.zeros(1, BLOCK), signed), signed), torch.zeros(1, BLOCK))


def test_adamw_8bit_takes_two_bytes_per_parameter_and_follows_adamw() -> None:
    ours, theirs = matrices((64, 128), (65, 100)), matrices((64, 128), (65, 100))
    mine = AdamW8bit([{"params": ours}], lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    reference = torch.optim.AdamW(theirs, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    start = [parameter.detach().clone() for parameter in ours]
    for number in range(20):
        for one, two in zip(ours, theirs, strict=True):
            one.grad = two.grad = random(*one.shape, seed=31 * number + one.numel())
        mine.step()
        reference.step()
        if number == 0:  # nothing was rounded yet
            torch.testing.assert_close(ours[1], theirs[1], atol=1e-7, rtol=1e-6)
    for one, two, was in zip(ours, theirs, start, strict=True):
        assert (one - two).norm() < 0.05 * (two - was).norm()
    size = sum(tensor.nbytes for tensor in mine.state[ours[0]].values())
    assert 2.03 < size / ours[0].numel() < 2.04


def test_adamw_8bit_reaches_the_loss_of_float32_adamw() -> None:
    curves = {}
    for name in ("adamw", "adamw8bit"):
        decoder = model()
        optimizers = build_optimizers(decoder, config(name, learning_rate=0.01))
        curves[name] = []
        for number in range(60):
            step(decoder, optimizers, number % 4)
            curves[name].append(float(loss(decoder, number % 4).detach()))
    ours, theirs = torch.tensor(curves["adamw8bit"]), torch.tensor(curves["adamw"])
    assert theirs[-1] < 0.5 * theirs[0]
    assert (ours[-8:].mean() - theirs[-8:].mean()).abs() < 0.1 * theirs[-8:].mean() + 0.02


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_step_on_cuda_equals_step_on_cpu(name: str) -> None:
    on_cpu, on_cuda = model(), model().cuda()
    ours, theirs = (
        build_optimizers(on_cpu, config(name, learning_rate=0.01)),
        build_optimizers(on_cuda, config(name, learning_rate=0.01)),
    )
    loss(on_cpu, 0).backward()
    for one, two in zip(on_cpu.parameters(), on_cuda.parameters(), strict=True):
        assert one.grad is not None
        two.grad = one.grad.cuda()
    before = {full: parameter.detach().clone() for full, parameter in on_cpu.named_parameters()}
    for optimizer in (*ours, *theirs):
        optimizer.step()
    for (full, one), two in zip(on_cpu.named_parameters(), on_cuda.parameters(), strict=True):
        assert (one - two.cpu()).norm() < 0.05 * (one - before[full]).norm() + 1e-7, full


def test_the_code_of_zero_is_the_one_that_stands_for_zero() -> None:
    assert dynamic_code(True, torch.device("cpu"))[adamw_8bit.ZERO] == 0


@pytest.mark.parametrize("skipped", [False, True])
@pytest.mark.parametrize("at_once", [3, 40, 10_000])
def test_blocks_of_several_parameters_together_have_the_results_that_they_have_alone(
    skipped: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, also where one parameter has no gradient and steps differ."""
    shapes = ((64, 128), (65, 100), (3, 1000), (16, 256), (70, 70))
    results = []
    for joins in (False, True):
        monkeypatch.setitem(adamw_8bit.JOINS_PARAMETERS, "cpu", joins)
        monkeypatch.setitem(adamw_8bit.BLOCKS_AT_ONCE, "cpu", at_once)
        parameters = matrices(*shapes)
        optimizer = AdamW8bit([{"params": parameters}], lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
        for number in range(4):
            for index, parameter in enumerate(parameters):
                parameter.grad = None if index == number == 2 else random(*parameter.shape, seed=31 * number + index)
            optimizer.found_inf = torch.tensor(1.0 if skipped and number == 3 else 0.0) if skipped else None
            optimizer.step()
        results.append([(p.detach(), *(optimizer.state[p][key] for key in sorted(optimizer.state[p]))) for p in parameters])
    for alone, together in zip(*results, strict=True):
        for one, two in zip(alone, together, strict=True):
            torch.testing.assert_close(one, two, atol=1e-9, rtol=1e-6)
    steps = [3.0 if skipped else 4.0] * 5
    steps[2] -= 1
    assert [float(values[-1]) for values in results[1]] == steps


class Launches(TorchDispatchMode):
    """Counts operations."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_an_update_on_a_gpu_takes_as_many_operations_for_eight_matrices_as_for_thirty_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Views of a parameter start nothing on a device; `cat` and `_foreach_copy_` start one launch for many."""
    monkeypatch.setitem(adamw_8bit.JOINS_PARAMETERS, "cpu", True)
    counts = []
    for number in (8, 32):
        parameters = matrices(*[(64, 64)] * number)
        optimizer = AdamW8bit([{"params": parameters}], lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
        with Launches() as launches:
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            launches.count = 0
            optimizer.step()
        counts.append(launches.count)
    alone = 60 * 32  # about what each parameter alone would take
    assert counts[1] - counts[0] < 24 * 16 and counts[1] < alone / 2


@pytest.mark.parametrize("beta2", [0.95, 0.999])
def test_8bit_moments_decay_to_zero_without_gradients(beta2: float) -> None:
    """Half of a block gets gradients only once: its weights must stop moving, as in float32."""
    weights = {name: nn.Parameter(torch.zeros(64, 320)) for name in ("8 bits", "float32")}
    eight = AdamW8bit([{"params": [weights["8 bits"]], "weight_decay": 0.0}], lr=1e-3, betas=(0.9, beta2), eps=1e-8)
    full = torch.optim.AdamW([weights["float32"]], lr=1e-3, betas=(0.9, beta2), eps=1e-8, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    moved = {}
    for step in range(160):
        grad = torch.randn(64, 320, generator=generator)
        if step:
            grad[1::2] = 0
        for parameter in weights.values():
            parameter.grad = grad.clone()
        for optimizer in (eight, full):
            optimizer.step()
        if step == 60:
            moved = {name: parameter.detach().clone() for name, parameter in weights.items()}
    drift = {name: (parameter - moved[name])[1::2].abs().max() for name, parameter in weights.items()}
    assert drift["8 bits"] < 1e-4 and drift["float32"] < 1e-4


def test_expert_without_tokens_is_not_moved_by_remaining_momentum() -> None:
    stack = nn.Parameter(torch.zeros(2, 16, 8))
    optimizer = Muon([stack], lr=0.01, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for step in range(3):
        stack.grad = torch.randn(2, 16, 8, generator=generator)
        if step:
            stack.grad[1] = 0
        before = stack.detach().clone()
        optimizer.step()
        change = (stack - before).flatten(1).norm(dim=1)
        assert change[0] > 0 and (change[1] > 0) == (step == 0)
