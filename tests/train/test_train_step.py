"""One update: gradients of the whole window however it is split, skipped where they are not finite, and measured rightly."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from fledge.errors import FledgeError
from fledge.model.decoder import Decoder
from fledge.objective import CausalLMObjective, LossOutput
from fledge.optim.build import build_optimizers, optimizer_tensors
from fledge.optim.grad_scaler import GradScaler
from fledge.plan.horizon import TrainingHorizon
from fledge.recipe.schema import OptimizerConfig
from fledge.train.batch_loader import BatchLoader, StepBatch
from fledge.train.train_step import HalfBatchStats, OutOfMemory, TrainStep, derive_seed, is_out_of_memory, noise_scale
from tests.support.decoders import assert_same_gradients, make_decoder
from tests.support.packed import pack, random_sequences

CPU = torch.device("cpu")
LENGTHS = [32, 9, 20, 33, 5, 17, 30, 28, 25, 31, 12, 39]  # eight rows of 40
SPLITS = [(8, 1), (4, 2), (1, 8)]
DENSE: dict[str, Any] = {"qk_norm": True}
MIXTURE = {
    "qk_norm": True,
    "moe": {"num_experts": 4, "num_experts_per_tok": 2, "load_balancing": "bias", "router_z_loss_coef": 0.0},
}


def _window(micro: int, step: int = 0, rows: int = 8) -> StepBatch:
    """Windows of eight rows with unequal weights, read `micro` at a time."""
    data = pack(random_sequences(LENGTHS), row_length=40)
    assert len(data) == 8
    extent = TrainingHorizon(steps=-(-rows // 8), rows=rows, micro=micro, accumulation=8 // micro, start=8 // micro)
    feed = BatchLoader(data, extent, micro, lambda batch: batch.weight, CPU)
    try:
        return feed.window(step)[0]
    finally:
        feed.close()


def _updater(model: Decoder, clip: float | None = None, scale: GradScaler | None = None, **more: Any) -> TrainStep:
    optimizers = build_optimizers(model, OptimizerConfig(**{"learning_rate": 0.01, **more}))
    return TrainStep(model, CausalLMObjective(), optimizers, clip, 7, scale)


def _caught(updater: TrainStep) -> dict[str, Tensor]:
    """What the optimizers are given, gradient by gradient, once they step."""
    caught: dict[str, Tensor] = {}

    def keep(*what: Any) -> None:
        for name, parameter in updater.model.named_parameters():
            if parameter.grad is not None:
                caught[name] = parameter.grad.clone()

    for optimizer in updater.optimizers:
        optimizer.register_step_pre_hook(keep)
    return caught


def _bits(updater: TrainStep) -> dict[str, bytes]:
    tensors = {**updater.model.state_dict(), **optimizer_tensors(updater.model, list(updater.optimizers))}
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


# -- the window's gradient ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [8, 13], ids=["full", "partial last"])
@pytest.mark.parametrize("sizes", [DENSE, MIXTURE], ids=["dense", "mixture"])
def test_every_split_of_a_window_gives_the_same_gradients_loss_and_norm(sizes: dict[str, Any], rows: int) -> None:
    step = 0 if rows == 8 else 1
    results: list[tuple[dict[str, Tensor], float, float]] = []
    for micro, accumulation in SPLITS:
        window = _window(micro, step, rows)
        assert len(window.batches) == (accumulation if rows == 8 else -(-5 // micro))
        model = make_decoder(**sizes).train()
        updater = _updater(model)
        caught = _caught(updater)
        update = updater(window, 0.01)
        results.append((caught, float(update.loss), float(update.norm)))
    for caught, loss, norm in results[1:]:
        assert_same_gradients(caught, results[0][0], atol=1e-6)
        assert loss == pytest.approx(results[0][1], abs=1e-6)
        assert norm == pytest.approx(results[0][2], rel=1e-5)
    given, _, norm = results[0]
    squares = sum(float(gradient.double().square().sum()) for gradient in given.values())
    assert norm == pytest.approx(math.sqrt(squares), rel=1e-5)


def test_the_loss_is_the_mean_over_the_window_and_the_gradient_is_its_own() -> None:
    window, model = _window(2), make_decoder().train()
    total, loss = 0.0, torch.zeros(())
    for batch in window.batches:
        logits = model.logits(model(batch.input_ids, batch.position_ids, batch.documents))
        logs = logits.log_softmax(-1).gather(-1, batch.targets[..., None])[..., 0]
        loss, total = loss - (logs * batch.loss_weights).sum(), total + float(batch.loss_weights.sum())
    (loss / total).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    updater = _updater(model)
    caught = _caught(updater)
    update = updater(window, 0.01)
    assert float(update.loss) == pytest.approx(float(loss.detach() / total), rel=1e-6)
    assert_same_gradients(caught, expected, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_auxiliary_loss_of_a_mixture_is_trained_and_not_reported() -> None:
    given, losses = [], []
    for weight in (0.0, 0.5):
        moe = {"num_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": weight}
        updater = _updater(make_decoder(qk_norm=True, moe=moe).train())
        caught = _caught(updater)
        losses.append(float(updater(_window(4), 0.01).loss))
        given.append(caught["layers.0.mlp.gate.weight"])
    assert losses[0] == losses[1]
    assert float((given[0] - given[1]).norm()) > 0.01 * float(given[0].norm())


# -- clipping, rates, steps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, 1e-3, 1e3])
def test_gradients_are_clipped_to_the_norm_and_no_further(clip: float | None) -> None:
    plain, clipped = _updater(make_decoder().train()), _updater(make_decoder().train(), clip)
    whole, cut = _caught(plain), _caught(clipped)
    norm = float(plain(_window(4), 0.01).norm)
    assert float(clipped(_window(4), 0.01).norm) == norm > 1e-3  # as it was before clipping
    factor = 1.0 if clip is None else min(1.0, clip / norm)
    assert_same_gradients(cut, {name: factor * gradient for name, gradient in whole.items()}, atol=1e-9, rtol=1e-4)


def test_an_update_moves_by_the_rate_that_it_is_given() -> None:
    moved = []
    for rate in (0.01, 0.002):
        model = make_decoder().train()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        update = _updater(model, weight_decay=0.0)(_window(4), rate)
        assert update.rate == rate
        moved.append(sum(float((a - b.detach()).norm()) for a, b in zip(before, model.parameters(), strict=True)))
    assert moved[0] == pytest.approx(5 * moved[1], rel=1e-3)


def test_dropout_follows_seed_step_and_micro_batch_and_nothing_else() -> None:
    def loss(step: int, seed: int = 7, noise: int = 0) -> float:
        torch.manual_seed(noise)
        model = make_decoder(dropout=0.3).train()
        updater = TrainStep(model, CausalLMObjective(), build_optimizers(model, OptimizerConfig()), None, seed)
        window = _window(4)
        return float(updater(StepBatch(step, *list(vars(window).values())[1:]), 0.0).loss)

    assert loss(3) == loss(3, noise=99)
    assert len({loss(3), loss(4), loss(3, seed=8)}) == 3


def test_neighbouring_micro_batches_have_seeds_far_apart() -> None:
    seeds = [derive_seed(seed, step, number) for seed in range(4) for step in range(30) for number in range(8)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)
    assert min(abs(a - b) for a, b in pairwise(seeds)) > 2**32


# -- what is not finite ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["adamw", "muon", "adamw8bit"])
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "fp16's scale"])
def test_gradients_that_are_not_finite_change_no_bit(name: str, bad: float, scaled: bool) -> None:
    scale = GradScaler(CPU) if scaled else None
    updater = _updater(make_decoder(hidden_size=64).train(), 1.0, scale, name=name)
    updater(_window(4), 0.01)
    before = _bits(updater)
    hook = next(updater.model.parameters()).register_hook(lambda gradient: gradient * bad)
    update = updater(_window(4), 0.01, log_details=True)
    hook.remove()
    assert bool(update.overflow) and not math.isfinite(float(update.norm))
    assert _bits(updater) == before
    assert all(parameter.grad is None for parameter in updater.model.parameters())
    assert set(map(float, update.groups.values())) == {0.0}
    assert scale is None or (scale.state()["skipped"] == 1 and float(update.scale or 0) == 2 * float(scale.scale))
    assert not bool(updater(_window(4), 0.01).overflow)
    assert _bits(updater) != before


def test_a_loss_scale_changes_neither_gradients_nor_what_is_reported() -> None:
    plain, scaled = _updater(make_decoder().train(), 0.5), _updater(make_decoder().train(), 0.5, GradScaler(CPU))
    ours, theirs = _caught(plain), _caught(scaled)
    one, two = plain(_window(2), 0.01, log_details=True), scaled(_window(2), 0.01, log_details=True)
    assert_same_gradients(theirs, ours, atol=1e-7, rtol=1e-4)
    assert (one.scale, one.skipped) == (None, None) and float(two.scale or 0) == 65536
    assert float(one.loss) == float(two.loss) and float(one.norm) == pytest.approx(float(two.norm), rel=1e-5)
    assert one.half is not None and two.half is not None
    assert float(one.half.norm) == pytest.approx(float(two.half.norm), rel=1e-5)


# -- halves of a window ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro", [4, 2, 1])
def test_the_first_half_is_measured_as_if_it_were_the_window(micro: int) -> None:
    window = _window(micro)
    update = _updater(make_decoder().train())(window, 0.01, log_details=True)
    middle, half = len(window.batches) // 2, update.half
    assert half is not None
    parts = (window.batches[:middle], window.batches[middle:])
    for part, loss, weight in zip(parts, half.losses, half.weights, strict=True):
        total = sum(batch.weight for batch in part)
        alone = _updater(make_decoder().train())(
            StepBatch(0, (0, 1), (0, 1), part, len(part), None, total, 0, 0, (), 0.0), 0.01
        )
        assert weight == pytest.approx(total) and float(loss) == pytest.approx(float(alone.loss), rel=1e-5)
        if part is parts[0]:
            assert float(half.norm) == pytest.approx(float(alone.norm), rel=1e-5)
    whole = sum(float(a) * b for a, b in zip(half.losses, half.weights, strict=True)) / sum(half.weights)
    assert float(update.loss) == pytest.approx(whole, rel=1e-6)


def test_one_micro_batch_has_no_halves_and_nobody_watching_pays_nothing() -> None:
    assert _updater(make_decoder().train())(_window(8), 0.01, log_details=True).half is None
    update = _updater(make_decoder().train())(_window(2), 0.01)
    assert update.half is None and update.groups == {}


def test_the_noise_scale_of_gradients_with_known_covariance_comes_out() -> None:
    """Gradients g + noise of covariance diag(c) / tokens, averaged over 20 and 60 of 80 tokens: B = Σc / |g|²."""
    generator = torch.Generator().manual_seed(0)
    signal, spread = torch.linspace(0.5, 1.5, 50).double(), torch.linspace(0.1, 40, 50).double()
    expected = float(spread.sum() / signal.square().sum())
    norms = torch.zeros(2, dtype=torch.float64)
    draws, weights = 4000, (20.0, 60.0)
    for _ in range(draws):
        parts = [
            signal + (spread / weight).sqrt() * torch.randn(50, generator=generator, dtype=torch.float64) for weight in weights
        ]
        whole = (parts[0] * weights[0] + parts[1] * weights[1]) / sum(weights)
        norms += torch.stack((parts[0].square().sum(), whole.square().sum())) / draws
    half = HalfBatchStats((torch.zeros(()), torch.zeros(())), norms[0].sqrt(), weights)
    estimated = noise_scale(half, float(norms[1].sqrt()))
    assert estimated == pytest.approx(expected, rel=0.05)


def test_the_noise_scale_is_exact_for_two_norms_and_none_where_it_is_not_positive() -> None:
    def of(small: float, large: float, weights: tuple[float, float] = (10.0, 30.0)) -> float | None:
        return noise_scale(HalfBatchStats((torch.zeros(()), torch.zeros(())), torch.tensor(small), weights), large)

    assert of(math.sqrt(2 + 40 / 10), math.sqrt(2 + 40 / 40)) == pytest.approx(20, rel=1e-5)  # |G|² = 2, tr Σ = 40
    assert of(1.0, 2.0) is None  # fewer tokens, less noise: nothing to be learned from this step
    assert of(3.0, 1.0) is None  # |G|² would be negative
    assert of(math.inf, 1.0) is None and of(math.nan, 1.0) is None and of(1.0, math.nan) is None


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_failed_allocations_are_told_from_other_errors(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_another_error_keeps_its_name() -> None:
    class Broken:
        def __call__(self, *what: Any) -> LossOutput:
            raise RuntimeError("shapes")

        def weight(self, batch: Any) -> float:
            return 1.0

    updater = _updater(make_decoder())
    updater.objective = Broken()  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="shapes"):
        updater(_window(4), 0.01)


LIMITED = """
import resource, sys
from fledge.errors import FledgeError
from fledge.train.train_step import OutOfMemory
from tests.train.test_train_step import limited_{case}

def limit(free):
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + free, resource.RLIM_INFINITY))

limited_{case}(limit)
print("as promised")
"""


def limited_gradients(limit: Callable[[int], None]) -> None:
    """A forward or backward pass that needs more than there is."""
    window = _window(8)
    for free, far in ((20 << 20, False), (92 << 20, True)):  # 83 MiB are enough for the forward pass, 104 for both
        updater = _updater(make_decoder(intermediate_size=8192).train())
        updater(window, 0.01)  # the optimizer has its state
        begun: list[bool] = []
        updater.model.norm.weight.register_post_accumulate_grad_hook(lambda parameter, begun=begun: begun.append(True))
        before, unlimited = _bits(updater), 10**12
        limit(free)
        try:
            updater(window, 0.01)
        except OutOfMemory as error:
            assert "allocate" in str(error), error
        else:
            raise AssertionError("it fitted")
        limit(unlimited)
        assert bool(begun) == far
        assert _bits(updater) == before
        assert all(parameter.grad is None for parameter in updater.model.parameters())
        updater(_window(8), 0.01)
        assert _bits(updater) != before


def limited_state(limit: Callable[[int], None]) -> None:
    """Gradients fit, the optimizer's state does not."""
    model = make_decoder(vocab=200_000).train()
    updater = _updater(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    limit(30 << 20)  # the first moment of the table fits, the second does not
    try:
        updater._step_optimizers(0.01, torch.tensor(False))
    except FledgeError as error:
        assert "no memory left" in error.what and error.where == "optimizer.name" and "adamw8bit" in str(error.hint)
    else:
        raise AssertionError("it fitted")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits its address space as Linux does")
@pytest.mark.parametrize("case", ["gradients", "state"])
def test_memory_that_runs_out_is_told_and_nothing_has_changed(case: str) -> None:
    """Real failures of the allocator, in a process whose address space is limited."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    code = LIMITED.format(case=case)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0 and "as promised" in done.stdout, done.stderr[-2000:]
