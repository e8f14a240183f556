"""One update: equal gradients however its batch is split, left out where they are not finite, and measured rightly."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from fledge.data import Batch
from fledge.errors import FledgeError
from fledge.model.decoder import Decoder
from fledge.objective import CausalLMObjective, LossOutput, Ratio
from fledge.optim.build import build_optimizers, optimizer_tensors
from fledge.optim.grad_scaler import GradScaler
from fledge.plan.horizon import TrainingHorizon
from fledge.recipe.schema import OptimizerConfig
from fledge.training.batch_source import DatasetSource, StepBatch
from fledge.training.train_step import HalfBatchStats, OutOfMemory, TrainStep, derive_seed, is_out_of_memory, noise_scale
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


def _batch(micro_batch_size: int, step: int = 0, rows: int = 8) -> StepBatch:
    """The batch of a step of eight rows with unequal weights, split into micro-batches."""
    data = pack(random_sequences(LENGTHS), packed_length=40)
    assert len(data) == 8
    accumulation = 8 // micro_batch_size
    horizon = TrainingHorizon(
        steps=-(-rows // 8),
        rows=rows,
        micro_batch_size=micro_batch_size,
        gradient_accumulation_steps=accumulation,
        initial_accumulation_steps=accumulation,
    )
    return DatasetSource(data, horizon, micro_batch_size, lambda batch: batch.weight).batch(step)


def _train_step(
    model: Decoder, max_grad_norm: float | None = None, grad_scaler: GradScaler | None = None, **optimizer: Any
) -> TrainStep:
    optimizers = build_optimizers(model, OptimizerConfig(**{"learning_rate": 0.01, **optimizer}))
    return TrainStep(model, CausalLMObjective(), optimizers, max_grad_norm=max_grad_norm, seed=7, grad_scaler=grad_scaler)


def _applied_gradients(train_step: TrainStep) -> dict[str, Tensor]:
    """The gradients that the optimizers get, filled when they step."""
    applied: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        for name, parameter in train_step.model.named_parameters():
            if parameter.grad is not None:
                applied[name] = parameter.grad.clone()

    for optimizer in train_step.optimizers:
        optimizer.register_step_pre_hook(keep)
    return applied


def _bits(train_step: TrainStep) -> dict[str, bytes]:
    tensors = {**train_step.model.state_dict(), **optimizer_tensors(train_step.model, list(train_step.optimizers))}
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


# -- the gradient of a step batch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [8, 13], ids=["full", "partial last"])
@pytest.mark.parametrize("sizes", [DENSE, MIXTURE], ids=["dense", "mixture"])
def test_every_split_into_micro_batches_gives_the_same_gradients_loss_and_norm(sizes: dict[str, Any], rows: int) -> None:
    step = 0 if rows == 8 else 1
    results: list[tuple[dict[str, Tensor], float, float]] = []
    for micro, accumulation in SPLITS:
        batch = _batch(micro, step, rows)
        assert len(batch.batches) == (accumulation if rows == 8 else -(-5 // micro))
        model = make_decoder(**sizes).train()
        train_step = _train_step(model)
        applied = _applied_gradients(train_step)
        output = train_step(batch, 0.01)
        results.append((applied, float(output.loss), float(output.grad_norm)))
    for applied, loss, norm in results[1:]:
        assert_same_gradients(applied, results[0][0], atol=1e-6)
        assert loss == pytest.approx(results[0][1], abs=1e-6)
        assert norm == pytest.approx(results[0][2], rel=1e-5)
    applied_gradients, _, norm = results[0]
    squares = sum(float(gradient.double().square().sum()) for gradient in applied_gradients.values())
    assert norm == pytest.approx(math.sqrt(squares), rel=1e-5)


def test_the_loss_is_the_mean_over_the_step_batch_and_the_gradients_belong_to_the_mean() -> None:
    batch, model = _batch(2), make_decoder().train()
    total, loss = 0.0, torch.zeros(())
    for micro_batch in batch.batches:
        logits = model.logits(model(micro_batch.input_ids, micro_batch.position_ids, micro_batch.documents))
        logps = logits.log_softmax(-1).gather(-1, micro_batch.targets[..., None])[..., 0]
        loss = loss - (logps * micro_batch.loss_weights).sum()
        total += float(micro_batch.loss_weights.sum())
    (loss / total).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    train_step = _train_step(model)
    applied = _applied_gradients(train_step)
    output = train_step(batch, 0.01)
    assert float(output.loss) == pytest.approx(float(loss.detach() / total), rel=1e-6)
    assert_same_gradients(applied, expected, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_auxiliary_loss_of_a_mixture_is_trained_and_not_reported() -> None:
    gate_gradients, losses = [], []
    for weight in (0.0, 0.5):
        moe = {"num_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": weight}
        train_step = _train_step(make_decoder(qk_norm=True, moe=moe).train())
        applied = _applied_gradients(train_step)
        losses.append(float(train_step(_batch(4), 0.01).loss))
        gate_gradients.append(applied["layers.0.mlp.gate.weight"])
    assert losses[0] == losses[1]
    assert float((gate_gradients[0] - gate_gradients[1]).norm()) > 0.01 * float(gate_gradients[0].norm())


class _Counting(CausalLMObjective):
    """Next-token prediction with metrics that have denominators of their own: rows, and targets of even tokens."""

    def __call__(self, model: Decoder, batch: Batch) -> LossOutput:
        even = (batch.targets % 2 == 0) & (batch.loss_weights > 0)
        metrics = {
            "documents_per_row": Ratio(batch.documents.amax(1).float().sum(), float(len(batch.documents))),
            "weight_of_even_targets": Ratio((batch.loss_weights * even).sum(), even.sum()),
            "of_nothing": Ratio(torch.zeros(()), 0.0),
        }
        return replace(super().__call__(model, batch), metrics=metrics)


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_each_metric_of_an_update_is_divided_by_its_own_denominator(micro: int) -> None:
    step_batch, model = _batch(micro), make_decoder().train()
    train_step = TrainStep(model, _Counting(), build_optimizers(model, OptimizerConfig()), max_grad_norm=None, seed=7)
    metrics = train_step(step_batch, 0.01).metrics
    batches = step_batch.batches
    documents = torch.cat([batch.documents for batch in batches])
    weights = torch.cat([batch.loss_weights[(batch.targets % 2 == 0) & (batch.loss_weights > 0)] for batch in batches])
    assert float(metrics["documents_per_row"]) == pytest.approx(float(documents.amax(1).float().mean()), rel=1e-6)
    assert float(metrics["weight_of_even_targets"]) == pytest.approx(float(weights.mean()), rel=1e-6)
    assert math.isnan(float(metrics["of_nothing"]))


# -- clipping, rates, steps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, 1e-3, 1e3])
def test_gradients_are_clipped_to_the_norm_and_no_further(clip: float | None) -> None:
    plain, clipped = _train_step(make_decoder().train()), _train_step(make_decoder().train(), clip)
    unclipped, clipped_gradients = _applied_gradients(plain), _applied_gradients(clipped)
    norm = float(plain(_batch(4), 0.01).grad_norm)
    assert float(clipped(_batch(4), 0.01).grad_norm) == norm > 1e-3  # as it was before clipping
    factor = 1.0 if clip is None else min(1.0, clip / norm)
    assert_same_gradients(
        clipped_gradients, {name: factor * gradient for name, gradient in unclipped.items()}, atol=1e-9, rtol=1e-4
    )


def test_an_update_uses_the_learning_rate_that_it_is_given() -> None:
    moved = []
    for lr in (0.01, 0.002):
        model = make_decoder().train()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        output = _train_step(model, weight_decay=0.0)(_batch(4), lr)
        assert output.lr == lr
        moved.append(sum(float((a - b.detach()).norm()) for a, b in zip(before, model.parameters(), strict=True)))
    assert moved[0] == pytest.approx(5 * moved[1], rel=1e-3)


def test_dropout_follows_seed_step_and_micro_batch_and_nothing_else() -> None:
    def loss(step: int, seed: int = 7, noise: int = 0) -> float:
        torch.manual_seed(noise)
        model = make_decoder(dropout=0.3).train()
        optimizers = build_optimizers(model, OptimizerConfig())
        train_step = TrainStep(model, CausalLMObjective(), optimizers, max_grad_norm=None, seed=seed)
        return float(train_step(replace(_batch(4), step=step), 0.0).loss)

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
def test_an_update_with_gradients_that_are_not_finite_changes_no_bit(name: str, bad: float, scaled: bool) -> None:
    scale = GradScaler(CPU) if scaled else None
    train_step = _train_step(make_decoder(hidden_size=64).train(), 1.0, scale, name=name)
    train_step(_batch(4), 0.01)
    before = _bits(train_step)
    hook = next(train_step.model.parameters()).register_hook(lambda gradient: gradient * bad)
    output = train_step(_batch(4), 0.01, log_details=True)
    hook.remove()
    assert bool(output.is_skipped) and not math.isfinite(float(output.grad_norm))
    assert _bits(train_step) == before
    assert all(parameter.grad is None for parameter in train_step.model.parameters())
    assert set(map(float, output.update_ratios.values())) == {0.0}
    assert scale is None or (scale.state()["skipped"] == 1 and float(output.loss_scale or 0) == 2 * float(scale.scale))
    assert not bool(train_step(_batch(4), 0.01).is_skipped)
    assert _bits(train_step) != before


def test_a_loss_scale_changes_neither_gradients_nor_reported_figures() -> None:
    plain, scaled = _train_step(make_decoder().train(), 0.5), _train_step(make_decoder().train(), 0.5, GradScaler(CPU))
    ours, theirs = _applied_gradients(plain), _applied_gradients(scaled)
    one, two = plain(_batch(2), 0.01, log_details=True), scaled(_batch(2), 0.01, log_details=True)
    assert_same_gradients(theirs, ours, atol=1e-7, rtol=1e-4)
    assert (one.loss_scale, one.num_skipped_steps) == (None, None) and float(two.loss_scale or 0) == 65536
    assert float(one.loss) == float(two.loss) and float(one.grad_norm) == pytest.approx(float(two.grad_norm), rel=1e-5)
    assert one.halves is not None and two.halves is not None
    assert float(one.halves.norm) == pytest.approx(float(two.halves.norm), rel=1e-5)


# -- halves of a step batch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro", [4, 2, 1])
def test_the_first_half_is_measured_as_if_it_were_the_step_batch(micro: int) -> None:
    batch = _batch(micro)
    output = _train_step(make_decoder().train())(batch, 0.01, log_details=True)
    middle, halves = len(batch.batches) // 2, output.halves
    assert halves is not None
    halves_of_batch = (batch.batches[:middle], batch.batches[middle:])
    for half, loss, weight in zip(halves_of_batch, halves.losses, halves.weights, strict=True):
        total = sum(micro_batch.weight for micro_batch in half)
        half_batch = replace(batch, batches=half, num_micro_steps=len(half), normalizer=total)
        alone = _train_step(make_decoder().train())(half_batch, 0.01)
        assert weight == pytest.approx(total) and float(loss) == pytest.approx(float(alone.loss), rel=1e-5)
        if half is halves_of_batch[0]:
            assert float(halves.norm) == pytest.approx(float(alone.grad_norm), rel=1e-5)
    mean = sum(float(a) * b for a, b in zip(halves.losses, halves.weights, strict=True)) / sum(halves.weights)
    assert float(output.loss) == pytest.approx(mean, rel=1e-6)


def test_one_micro_batch_has_no_halves_and_details_are_measured_only_when_requested() -> None:
    assert _train_step(make_decoder().train())(_batch(8), 0.01, log_details=True).halves is None
    output = _train_step(make_decoder().train())(_batch(2), 0.01)
    assert output.halves is None and output.update_ratios == {}


def test_the_noise_scale_of_gradients_with_known_covariance_is_estimated_correctly() -> None:
    """Gradients g + noise of covariance diag(c) / tokens, averaged over 20 and 60 of 80 tokens: B = Σc / |g|²."""
    generator = torch.Generator().manual_seed(0)
    signal, spread = torch.linspace(0.5, 1.5, 50).double(), torch.linspace(0.1, 40, 50).double()
    expected = float(spread.sum() / signal.square().sum())
    norms = torch.zeros(2, dtype=torch.float64)
    draws, weights = 4000, (20.0, 60.0)
    for _ in range(draws):
        samples = [
            signal + (spread / weight).sqrt() * torch.randn(50, generator=generator, dtype=torch.float64) for weight in weights
        ]
        mean = (samples[0] * weights[0] + samples[1] * weights[1]) / sum(weights)
        norms += torch.stack((samples[0].square().sum(), mean.square().sum())) / draws
    halves = HalfBatchStats((torch.zeros(()), torch.zeros(())), norms[0].sqrt(), weights)
    estimated = noise_scale(halves, float(norms[1].sqrt()))
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
        (
            RuntimeError(
                "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call"
            ),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`"), False),
        (RuntimeError("out of resource: shared memory, Required: 114688, Hardware limit: 101376"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_failed_allocations_are_distinguished_from_other_errors(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_other_errors_are_raised_unchanged() -> None:
    class Broken:
        def __call__(self, *what: Any) -> LossOutput:
            raise RuntimeError("shapes")

        def normalizer(self, batch: Any) -> float:
            return 1.0

        def evaluate(self, *what: Any) -> dict[str, Ratio]:
            return {}

        def in_window(self, *what: Any) -> "Broken":
            return self

    train_step = _train_step(make_decoder())
    train_step.objective = Broken()
    with pytest.raises(RuntimeError, match="shapes"):
        train_step(_batch(4), 0.01)


LIMITED = """
import resource, sys
from fledge.errors import FledgeError
from fledge.training.train_step import OutOfMemory
from tests.training.test_train_step import limited_{case}

def limit(free):
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + free, resource.RLIM_INFINITY))

limited_{case}(limit)
print("as promised")
"""


def limited_gradients(limit: Callable[[int], None]) -> None:
    """A forward or backward pass that runs out of memory."""
    batch = _batch(8)
    for free, far in ((20 << 20, False), (92 << 20, True)):  # 83 MiB are enough for the forward pass, 104 for both
        train_step = _train_step(make_decoder(intermediate_size=8192).train())
        train_step(batch, 0.01)  # the optimizer has its state
        begun: list[bool] = []
        train_step.model.norm.weight.register_post_accumulate_grad_hook(lambda parameter, begun=begun: begun.append(True))
        before, unlimited = _bits(train_step), 10**12
        limit(free)
        try:
            train_step(batch, 0.01)
        except OutOfMemory as error:
            assert "allocate" in str(error), error
        else:
            raise AssertionError("it fitted")
        limit(unlimited)
        assert bool(begun) == far
        assert _bits(train_step) == before
        assert all(parameter.grad is None for parameter in train_step.model.parameters())
        train_step(_batch(8), 0.01)
        assert _bits(train_step) != before


def limited_state(limit: Callable[[int], None]) -> None:
    """Gradients fit into memory, the optimizer state does not."""
    model = make_decoder(vocab=200_000).train()
    train_step = _train_step(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    limit(30 << 20)  # the first moment of the table fits, the second does not
    try:
        train_step._step_optimizers(0.01, torch.tensor(False))
    except FledgeError as error:
        assert "out of memory" in error.what and error.where == "optimizer.name" and "adamw8bit" in str(error.hint)
    else:
        raise AssertionError("it fitted")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits its address space as Linux does")
@pytest.mark.parametrize("case", ["gradients", "state"])
def test_running_out_of_memory_is_reported_and_changes_nothing(case: str) -> None:
    """Real failures of the allocator, in a process whose address space is limited."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    code = LIMITED.format(case=case)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0 and "as promised" in done.stdout, done.stderr[-2000:]
