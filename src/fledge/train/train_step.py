"""One update: forward and backward over the micro-batches of a window, one division, clipping, one optimizer step.

On a GPU nothing here waits for the device: what a step measured stays in tensors until somebody reads it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fledge.data import Batch
from fledge.distributed.context import DistributedContext
from fledge.distributed.fsdp import get_full_tensor, get_local_tensor, is_sharded
from fledge.errors import FledgeError
from fledge.model.moe import RouterStats
from fledge.model.protocol import LanguageModel
from fledge.monitor.phase_timer import PhaseTimer
from fledge.monitor.update_ratio import UpdateRatioMonitor
from fledge.objective import CausalLMObjective, DPOObjective, LossOutput
from fledge.optim.grad_scaler import GradScaler
from fledge.plan.memory import is_out_of_memory
from fledge.train.batch_loader import StepBatch

Objective = CausalLMObjective | DPOObjective
MOST_BATCHES = 2**20  # of a window: keeps the seeds of ranks apart
aten: Any = torch.ops.aten  # its `_foreach` operations: one launch for many tensors


class OutOfMemory(Exception):
    """A micro-batch did not fit. The model is as it was before the step."""


class StopRequested(Exception):
    """Somebody asked to stop in the middle of work that changes nothing until its end; nothing has changed."""


@dataclass(frozen=True)
class HalfBatchStats:
    """The first half of a window by itself: how gradients of fewer tokens differ tells how noisy they are
    (McCandlish et al. 2018, appendix A.1). Losses are means of each half; `norm` is of the first half's mean gradient."""

    losses: tuple[Tensor, Tensor]
    norm: Tensor
    weights: tuple[float, float]


@dataclass(frozen=True)
class StepOutput:
    """What one update measured. Tensors are scalars, perhaps still on their way."""

    window: StepBatch
    rate: float
    loss: Tensor
    metrics: dict[str, Tensor]
    norm: Tensor
    overflow: Tensor
    scale: Tensor | None
    skipped: Tensor | None
    half: HalfBatchStats | None
    groups: dict[str, Tensor]
    routing: RouterStats | None
    clock: PhaseTimer


def derive_seed(seed: int, step: int, number: int) -> int:
    """One seed for each micro-batch (splitmix64's odd constants keep neighbours apart)."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + number * 0x94D049BB133111EB) % 2**63


class TrainStep:
    """Makes updates, together with other ranks that have the rest of each window. `scale` is for fp16 only.

    Gradients are added up over the ranks after the last micro-batch, or, where the model is divided among them, by FSDP in
    each; what is divided by is the weight of the whole window."""

    def __init__(
        self,
        model: LanguageModel,
        objective: Objective,
        optimizers: Sequence[torch.optim.Optimizer],
        clip: float | None,
        seed: int,
        scale: GradScaler | None = None,
        asked_to_stop: Callable[[], bool] = lambda: False,
        ranks: DistributedContext | None = None,
    ) -> None:
        """`asked_to_stop` is asked before every micro-batch but the first, and must say the same on all ranks."""
        self.model, self.objective, self.optimizers = model, objective, optimizers
        self.clip, self.seed, self.scale, self.asked_to_stop = clip, seed, scale, asked_to_stop
        self.ranks, self.divided = ranks or DistributedContext(), is_sharded(model.lm_head_weight)
        self.device = model.device
        self.groups = UpdateRatioMonitor(model, self.ranks)

    def __call__(
        self,
        window: StepBatch,
        rate: float,
        data_seconds: float = 0.0,
        log_details: bool = False,
        skip_above_grad_norm: float | None = None,
    ) -> StepOutput:
        """Learn from a window. `watch`: also measure what costs something. Raises OutOfMemory, or Abandoned where somebody
        asks to stop between two micro-batches, before anything changed."""
        clock = PhaseTimer(self.device)
        clock.add("data", data_seconds)
        try:
            outcomes, half = self._gradients(window, clock, log_details)
            if log_details:
                self.groups.before()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.model.zero_grad(set_to_none=True)
            raise OutOfMemory(str(error).splitlines()[0]) from None
        norm, overflow, scale = self._step(rate, skip_above_grad_norm)
        groups = self.groups.after() if log_details else {}
        clock.mark("optimizer")
        loss, metrics, routing = self._measured(window, outcomes)
        skipped = None if self.scale is None else self.scale.skipped
        return StepOutput(window, rate, loss, metrics, norm, overflow, scale, skipped, half, groups, routing, clock)

    def _measured(self, window: StepBatch, outcomes: list[LossOutput]) -> tuple[Tensor, dict[str, Tensor], RouterStats | None]:
        """Loss, metrics and routing of the whole window, over all ranks."""
        names = list(outcomes[0].metrics)
        sums = [torch.stack([outcome.loss for outcome in outcomes]).sum()]
        sums += [torch.stack([outcome.metrics[name].float() for outcome in outcomes]).sum() for name in names]
        self.ranks.all_reduce_(sums)
        loss, *metrics = (value / window.weight for value in sums)
        routed = [outcome.routing for outcome in outcomes if outcome.routing is not None]
        routing = RouterStats.merged(routed) if routed else None
        if routing is not None and not self.ranks.alone:
            routing = routing.all_reduced(self.ranks.all_reduce_)
        return loss, dict(zip(names, metrics, strict=True)), routing

    def _gradients(self, window: StepBatch, clock: PhaseTimer, watch: bool) -> tuple[list[LossOutput], HalfBatchStats | None]:
        """Forward and backward of every micro-batch; the gradients are those of the window's mean."""
        outcomes: list[LossOutput] = []
        middle, first_norm = len(window.batches) // 2, None
        for number in range(window.num_micro_steps):
            if number and self.asked_to_stop():
                self.model.zero_grad(set_to_none=True)
                raise StopRequested
            if watch and middle and number == middle and self.ranks.alone:
                first_norm = self._norm()
            if number < len(window.batches):
                outcomes.append(self._forward_backward(window, number, window.batches[number], clock))
            elif window.padding_batch is not None and (self.divided or not outcomes):
                outcomes.append(self._forward_backward(window, number, window.padding_batch, clock, learn=False))
        if not self.divided and not self.ranks.alone:
            self.ranks.all_reduce_(self._dense_grads())
            clock.mark("exchange")
        if first_norm is None:
            return outcomes, None
        weights = [self.objective.normalizer(batch) for batch in window.batches]
        first, second = sum(weights[:middle]), sum(weights[middle:])
        means = [
            torch.stack([outcome.loss for outcome in part]).sum() / weight
            for part, weight in ((outcomes[:middle], first), (outcomes[middle:], second))
        ]
        return outcomes, HalfBatchStats((means[0], means[1]), first_norm * (window.weight / first), (first, second))

    def _dense_grads(self) -> list[Tensor]:
        """Of every trained parameter in order; zeros where this rank has none, so that the ranks have the same ones."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in trained if parameter.grad is not None]

    def _forward_backward(
        self, window: StepBatch, number: int, batch: Batch, clock: PhaseTimer, learn: bool = True
    ) -> LossOutput:
        if self.model.draws_random_numbers:
            torch.manual_seed(derive_seed(self.seed, window.step, number + self.ranks.rank * MOST_BATCHES))
        outcome = self.objective(self.model, batch.to(self.device))
        clock.mark("forward")
        trained = outcome.loss if outcome.aux_loss is None else outcome.loss + outcome.aux_loss
        trained = trained / window.weight if learn else 0.0 * trained
        if self.divided:  # means over the ranks are made of what is to be summed
            trained = trained * self.ranks.world_size
        (trained if self.scale is None else trained * self.scale.scale).backward()
        clock.mark("backward")
        return outcome.detached() if learn else outcome.nothing()

    def _norm(self) -> Tensor:
        """Norm of the gradients so far, without the loss scale."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        norm = get_full_tensor(torch.nn.utils.get_total_norm(gradients))
        return norm if self.scale is None else norm / self.scale.scale

    def _step(self, rate: float, skip_above_grad_norm: float | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Clip and step, unless the gradients are not finite or too large; returns their norm, whether the step was left out,
        and the loss scale."""
        norm = self._norm()
        overflow = ~norm.isfinite()
        left_out = overflow if skip_above_grad_norm is None else overflow | (norm > skip_above_grad_norm)
        scale = None if self.scale is None else self.scale.scale
        factor = torch.ones_like(norm) if scale is None else 1 / scale
        if self.clip is not None:
            factor = factor * (self.clip / (norm + 1e-6)).clamp(max=1.0)
        if factor.device.type != "cpu" or float(factor) != 1.0:  # on the CPU it is known, and a pass over all gradients saved
            gradients = [
                get_local_tensor(parameter.grad) for parameter in self.model.parameters() if parameter.grad is not None
            ]
            aten._foreach_mul_.Tensor(gradients, factor)
        self._step_optimizers(rate, left_out)
        self.model.zero_grad(set_to_none=True)
        if self.scale is not None:
            self.scale.after(overflow)
        return norm, left_out, scale

    def _step_optimizers(self, rate: float, overflow: Tensor) -> None:
        """On the CPU a step with gradients that are not finite is left out; on a GPU the optimizers skip it themselves, but
        for those of a model that is divided: for it the host waits."""
        waiting = overflow.device.type != "cpu" and not self.divided
        if not waiting and bool(overflow):
            return
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.found_inf = overflow.float() if waiting else None  # type: ignore[attr-defined]
            try:
                optimizer.step()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise FledgeError(
                    "there is no memory left for the optimizer's state",
                    where="optimizer.name",
                    hint="a smaller model, or optimizer adamw8bit, whose state of the blocks is a quarter",
                ) from None


def noise_scale(half: HalfBatchStats, norm: float) -> float | None:
    """Weight (tokens, or pairs) at which the gradient's noise is as large as the gradient itself: B_simple = tr(Σ)/|G|²
    from the norms at two batch sizes (McCandlish et al. 2018, eq. A.1–A.2). One step's value is very noisy: average many.
    None where it is not positive."""
    small, large = half.weights[0], sum(half.weights)
    squared, squared_small = norm**2, float(half.norm) ** 2
    signal = (large * squared - small * squared_small) / (large - small)
    noise = (squared_small - squared) / (1 / small - 1 / large)
    if signal <= 0 or noise <= 0 or not math.isfinite(noise):
        return None
    return noise / signal
