"""One update: forward and backward over the micro-batches of a step batch, one division, clipping, one optimizer step.

On a GPU nothing here waits for the device: what a step measures stays in tensors until they are read.
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
from fledge.objective import LossOutput, Objective
from fledge.optim.grad_scaler import GradScaler
from fledge.plan.memory import is_out_of_memory
from fledge.training.batch_source import StepBatch

MAX_MICRO_STEPS = 2**20  # of an update: keeps the seeds of ranks apart
aten: Any = torch.ops.aten  # its `_foreach` operations: one launch for many tensors


class OutOfMemory(Exception):
    """A micro-batch did not fit into memory. The model is as it was before the step."""


class StopRequested(Exception):
    """A stop was requested during work that changes nothing until its end; nothing has changed."""


@dataclass(frozen=True)
class HalfBatchStats:
    """The two halves of a step batch: how much more the gradient of fewer tokens varies tells how noisy gradients are
    (McCandlish et al. 2018, appendix A.1). `losses` are the means of the halves, `norm` is that of the first half's mean
    gradient, `weights` are the normalizers of the halves."""

    losses: tuple[Tensor, Tensor]
    norm: Tensor
    weights: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """What one update measured. Tensors are scalars, perhaps still being computed on the device."""

    batch: StepBatch
    lr: float
    loss: Tensor  # mean over the step batch
    metrics: dict[str, Tensor]  # of the objective, means over the step batch
    grad_norm: Tensor  # before clipping
    is_skipped: Tensor  # bool: the gradient was not finite, or above the limit, and nothing was learned
    loss_scale: Tensor | None  # of fp16
    num_skipped_steps: Tensor | None  # of fp16, since the stage began
    halves: HalfBatchStats | None
    update_ratios: dict[str, Tensor]  # by kind of parameter
    router_stats: RouterStats | None
    timer: PhaseTimer


def derive_seed(seed: int, step: int, number: int) -> int:
    """One seed for each micro-batch (splitmix64's odd constants keep neighbours apart)."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + number * 0x94D049BB133111EB) % 2**63


class TrainStep:
    """Performs updates. Each rank computes its own part of a step batch.

    Gradients are summed over the ranks after the last micro-batch, or by FSDP in each micro-batch where the model is sharded.
    They are divided by the normalizer of the whole step batch.
    """

    def __init__(
        self,
        model: LanguageModel,
        objective: Objective,
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        max_grad_norm: float | None,
        seed: int,
        grad_scaler: GradScaler | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
        ranks: DistributedContext | None = None,
    ) -> None:
        """`grad_scaler` is for fp16 only. `stop_requested` is called before every micro-batch but the first, and must return
        the same on all ranks."""
        self.model, self.objective, self.optimizers = model, objective, optimizers
        self.max_grad_norm, self.seed, self.grad_scaler = max_grad_norm, seed, grad_scaler
        self.stop_requested = stop_requested
        self.ranks, self.is_sharded = ranks or DistributedContext(), is_sharded(model.lm_head_weight)
        self.device = model.device
        self.update_ratios = UpdateRatioMonitor(model, self.ranks)

    def __call__(
        self,
        batch: StepBatch,
        lr: float,
        data_seconds: float = 0.0,
        log_details: bool = False,
        skip_above_grad_norm: float | None = None,
    ) -> StepOutput:
        """Learn from a step batch. `data_seconds` is how long it was waited for. With `log_details` the sizes of the update
        and the halves of the batch are measured too, which costs time. Raises OutOfMemory, or StopRequested where a stop is
        requested between two micro-batches, before anything has changed."""
        timer = PhaseTimer(self.device)
        timer.add("data", data_seconds)
        try:
            outputs, halves = self._gradients(batch, timer, log_details)
            if log_details:
                self.update_ratios.before()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.model.zero_grad(set_to_none=True)
            raise OutOfMemory(str(error).splitlines()[0]) from None
        grad_norm, is_skipped, loss_scale = self._step(lr, skip_above_grad_norm)
        update_ratios = self.update_ratios.after() if log_details else {}
        timer.mark("optimizer")
        loss, metrics, router_stats = self._reduce(batch, outputs)
        return StepOutput(
            batch=batch,
            lr=lr,
            loss=loss,
            metrics=metrics,
            grad_norm=grad_norm,
            is_skipped=is_skipped,
            loss_scale=loss_scale,
            num_skipped_steps=None if self.grad_scaler is None else self.grad_scaler.skipped,
            halves=halves,
            update_ratios=update_ratios,
            router_stats=router_stats,
            timer=timer,
        )

    def _reduce(self, batch: StepBatch, outputs: list[LossOutput]) -> tuple[Tensor, dict[str, Tensor], RouterStats | None]:
        """The mean loss of the step batch, its metrics, each over its own denominator, and its routing, over all ranks."""
        loss = torch.stack([output.loss for output in outputs]).sum()
        ratios = {name: [output.metrics[name] for output in outputs] for name in outputs[0].metrics}
        totals = [torch.stack([_scalar_like(ratio.total, loss) for ratio in parts]).sum() for parts in ratios.values()]
        counts = [sum(ratio.count for ratio in parts) for parts in ratios.values()]
        if self.ranks.is_distributed:
            counts = [_scalar_like(count, loss) for count in counts]
            self.ranks.all_reduce_([loss, *totals, *counts])
        metrics = {
            name: parts[0].reduction(total, count)
            for (name, parts), total, count in zip(ratios.items(), totals, counts, strict=True)
        }
        routed = [output.routing for output in outputs if output.routing is not None]
        router_stats = RouterStats.merged(routed) if routed else None
        if router_stats is not None and self.ranks.is_distributed:
            router_stats = router_stats.all_reduced(self.ranks.all_reduce_)
        return loss / batch.normalizer, metrics, router_stats

    def _gradients(
        self, batch: StepBatch, timer: PhaseTimer, log_details: bool
    ) -> tuple[list[LossOutput], HalfBatchStats | None]:
        """Forward and backward of every micro-batch; afterwards the gradients are those of the mean loss."""
        outputs: list[LossOutput] = []
        middle, first_norm = len(batch.batches) // 2, None
        for number in range(batch.num_micro_steps):
            if number and self.stop_requested():
                self.model.zero_grad(set_to_none=True)
                raise StopRequested
            if log_details and middle and number == middle and not self.ranks.is_distributed:
                first_norm = self._grad_norm()
            if number < len(batch.batches):
                outputs.append(self._forward_backward(batch, number, batch.batches[number], timer))
            elif batch.padding_batch is not None and (self.is_sharded or not outputs):
                outputs.append(self._forward_backward(batch, number, batch.padding_batch, timer, learn=False))
        if not self.is_sharded and self.ranks.is_distributed:
            self.ranks.all_reduce_(self._dense_grads())
            timer.mark("exchange")
        if first_norm is None:
            return outputs, None
        weights = [self.objective.normalizer(micro_batch) for micro_batch in batch.batches]
        first, second = sum(weights[:middle]), sum(weights[middle:])
        means = [
            torch.stack([output.loss for output in half]).sum() / weight
            for half, weight in ((outputs[:middle], first), (outputs[middle:], second))
        ]
        return outputs, HalfBatchStats((means[0], means[1]), first_norm * (batch.normalizer / first), (first, second))

    def _dense_grads(self) -> list[Tensor]:
        """The gradient of every trained parameter in order; zeros where this rank has none, so that all ranks have the same
        ones."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in trained if parameter.grad is not None]

    def _forward_backward(
        self, batch: StepBatch, number: int, micro_batch: Batch, timer: PhaseTimer, learn: bool = True
    ) -> LossOutput:
        """One micro-batch; its gradients are added to those of the micro-batches before. Without `learn` they are zero."""
        if self.model.draws_random_numbers:
            torch.manual_seed(derive_seed(self.seed, batch.step, number + self.ranks.rank * MAX_MICRO_STEPS))
        output = self.objective(self.model, micro_batch.to(self.device))
        timer.mark("forward")
        loss = output.loss if output.aux_loss is None else output.loss + output.aux_loss
        loss = loss / batch.normalizer if learn else 0.0 * loss
        if self.is_sharded:  # FSDP averages over the ranks what is to be summed
            loss = loss * self.ranks.world_size
        (loss if self.grad_scaler is None else loss * self.grad_scaler.scale).backward()
        timer.mark("backward")
        return output.detached() if learn else output.zeros_like()

    def _grad_norm(self) -> Tensor:
        """Norm of the gradients so far, without the loss scale."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        norm = get_full_tensor(torch.nn.utils.get_total_norm(gradients))
        return norm if self.grad_scaler is None else norm / self.grad_scaler.scale

    def _step(self, lr: float, skip_above_grad_norm: float | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Clip and step, unless the gradients are not finite or their norm is above the limit; returns the norm, whether the
        update was skipped, and the loss scale."""
        norm = self._grad_norm()
        overflow = ~norm.isfinite()
        is_skipped = overflow if skip_above_grad_norm is None else overflow | (norm > skip_above_grad_norm)
        loss_scale = None if self.grad_scaler is None else self.grad_scaler.scale
        factor = torch.ones_like(norm) if loss_scale is None else 1 / loss_scale
        if self.max_grad_norm is not None:
            factor = factor * (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        if factor.device.type != "cpu" or float(factor) != 1.0:  # on the CPU it is known, and a pass over all gradients saved
            gradients = [
                get_local_tensor(parameter.grad) for parameter in self.model.parameters() if parameter.grad is not None
            ]
            aten._foreach_mul_.Tensor(gradients, factor)
        self._step_optimizers(lr, is_skipped)
        self.model.zero_grad(set_to_none=True)
        if self.grad_scaler is not None:
            self.grad_scaler.after(overflow)
        return norm, is_skipped, loss_scale

    def _step_optimizers(self, lr: float, is_skipped: Tensor) -> None:
        """Step all optimizers, or leave the update out. On a GPU the optimizers leave it out themselves, so that the host does
        not wait; on the CPU, and for sharded models, it is decided here."""
        decided_on_device = is_skipped.device.type != "cpu" and not self.is_sharded
        if not decided_on_device and bool(is_skipped):
            return
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.found_inf = is_skipped.float() if decided_on_device else None  # type: ignore[attr-defined]
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


def _scalar_like(value: Tensor | float, like: Tensor) -> Tensor:
    """A scalar of the dtype and on the device of `like`; a float becomes one there, without waiting for the device."""
    return value.to(like) if isinstance(value, Tensor) else torch.full_like(like, value)


def noise_scale(halves: HalfBatchStats, norm: float) -> float | None:
    """The batch size (in tokens, or pairs) at which the gradient's noise is as large as the gradient: B_simple = tr(Σ)/|G|²
    from the norms at two batch sizes (McCandlish et al. 2018, eq. A.1–A.2). One step's value is very noisy: average many.
    None where it is not positive."""
    small, large = halves.weights[0], sum(halves.weights)
    squared, squared_small = norm**2, float(halves.norm) ** 2
    signal = (large * squared - small * squared_small) / (large - small)
    noise = (squared_small - squared) / (1 / small - 1 / large)
    if signal <= 0 or noise <= 0 or not math.isfinite(noise):
        return None
    return noise / signal
