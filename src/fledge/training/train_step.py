"""One update: forward and backward over the micro-batches of a step batch, one division, clipping, one optimizer step.

The host never waits for a GPU here: the figures of a step stay in tensors until they are read.
"""

import math
from collections.abc import Callable, Iterator, Sequence
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
from fledge.objective.base import with_derived
from fledge.optim.grad_scaler import GradScaler
from fledge.plan.memory import is_out_of_memory
from fledge.training.batch_source import StepBatch

MAX_MICRO_STEPS = 2**20  # of an update: keeps the seeds of ranks apart
aten: Any = torch.ops.aten  # its `_foreach` operations: one launch for many tensors


class OutOfMemory(Exception):
    """A micro-batch did not fit into memory. The weights have not changed."""


class StopRequested(Exception):
    """A stop was requested during work that changes nothing until its end; nothing has changed."""


@dataclass(frozen=True)
class HalfBatchStats:
    """Statistics of the two halves of a step batch, for the gradient noise scale (McCandlish et al. 2018, appendix A.1).
    `losses`: mean loss of each half. `norm`: norm of the first half's mean gradient. `weights`: normalizer of each half."""

    losses: tuple[Tensor, Tensor]
    norm: Tensor
    weights: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """The results of one update. Tensors are scalars, which the device may still be computing."""

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


def micro_batch_seed(seed: int, step: int, number: int, rank: int) -> int:
    """The seed of the random numbers of dropout in a rank's micro-batch `number` of an update."""
    return derive_seed(seed, step, number + rank * MAX_MICRO_STEPS)


def derive_seed(seed: int, step: int, number: int) -> int:
    """One seed for each micro-batch (splitmix64's odd constants keep neighbours apart)."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + number * 0x94D049BB133111EB) % 2**63


class TrainStep:
    """Performs updates. Each rank computes its own share of a step batch.

    Gradients are summed over the ranks after the last micro-batch, or by FSDP in each micro-batch if the model is sharded, and
    divided by the normalizer of the complete step batch.
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
        """`grad_scaler`: for fp16 only. `stop_requested`: called before every micro-batch except the first; all ranks must get
        equal results."""
        self.model, self.objective, self.optimizers = model, objective, optimizers
        self.max_grad_norm, self.seed, self.grad_scaler = max_grad_norm, seed, grad_scaler
        self.stop_requested = stop_requested
        self.ranks, self.is_sharded = ranks or DistributedContext(), is_sharded(next(model.parameters()))
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
        """Update the weights with a step batch. `data_seconds`: time spent waiting for the batch. `log_details`: measure also
        the update ratios and the half-batch statistics, which costs time. Raises OutOfMemory, and StopRequested if a stop is
        requested between two micro-batches; the weights have not changed then."""
        timer = PhaseTimer(self.device)
        timer.add("data", max(0.0, data_seconds - sum(batch.seconds.values())))
        for name, seconds in batch.seconds.items():
            timer.add(name, seconds)
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
        """The mean loss of the step batch, its metrics (each with its own denominator) and its router statistics, over all
        ranks."""
        loss = torch.stack([output.loss for output in outputs]).sum()
        ratios = {name: [output.metrics[name] for output in outputs] for name in outputs[0].metrics}
        totals = [torch.stack([_scalar_like(ratio.total, loss) for ratio in values]).sum() for values in ratios.values()]
        counts = [sum(ratio.count for ratio in values) for values in ratios.values()]
        if self.ranks.is_distributed:
            counts = [_scalar_like(count, loss) for count in counts]
            self.ranks.all_reduce_([loss, *totals, *counts])
        metrics = {
            name: values[0].reduction(total, count)
            for (name, values), total, count in zip(ratios.items(), totals, counts, strict=True)
        }
        metrics = with_derived(metrics)
        routed = [output.routing for output in outputs if output.routing is not None]
        router_stats = RouterStats.merged(routed) if routed else None
        if router_stats is not None and self.ranks.is_distributed:
            router_stats = router_stats.all_reduced(self.ranks.all_reduce_)
        return loss / batch.normalizer, metrics, router_stats

    def _gradients(
        self, batch: StepBatch, timer: PhaseTimer, log_details: bool
    ) -> tuple[list[LossOutput], HalfBatchStats | None]:
        """Forward and backward of every micro-batch, which leaves the gradients of the mean loss in the parameters."""
        outputs: list[LossOutput] = []
        middle, first_norm = len(batch.batches) // 2, None
        objective = self.objective.in_window(self.model, lambda: self._window(batch), self.ranks.all_reduce_sum)
        timer.mark("forward")
        for number in range(batch.num_micro_steps):
            if number and self.stop_requested():
                self.model.zero_grad(set_to_none=True)
                raise StopRequested
            if log_details and middle and number == middle and not self.ranks.is_distributed:
                first_norm = self._grad_norm()
            if number < len(batch.batches):
                outputs.append(self._forward_backward(objective, batch, number, batch.batches[number], timer))
            elif batch.padding_batch is not None and (self.is_sharded or not outputs):
                outputs.append(self._forward_backward(objective, batch, number, batch.padding_batch, timer, learn=False))
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
        """The gradient of every trained parameter in order; zeros for a parameter without one, so that all ranks have equally
        many."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in trained if parameter.grad is not None]

    def _window(self, batch: StepBatch) -> Iterator[tuple[Batch, bool]]:
        """This rank's micro-batches of an update on the device, each with whether it counts."""
        for micro_batch in batch.batches:
            yield micro_batch.to(self.device), True

    def _forward_backward(
        self,
        objective: Objective,
        batch: StepBatch,
        number: int,
        micro_batch: Batch,
        timer: PhaseTimer,
        *,
        learn: bool = True,
    ) -> LossOutput:
        """Forward and backward of one micro-batch, which adds to the gradients of the earlier ones; it adds zeros if not
        `learn`."""
        if self.model.draws_random_numbers:
            torch.manual_seed(micro_batch_seed(self.seed, batch.step, number, self.ranks.rank))
        output = objective(self.model, micro_batch.to(self.device))
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
        """Step all optimizers, unless the update is skipped. The optimizers skip it themselves on a GPU, so that the host does
        not wait; on the CPU the host decides here."""
        decided_on_device = is_skipped.device.type != "cpu"
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
                    "out of memory for the optimizer's state",
                    where="optimizer.name",
                    hint="use a smaller model, or optimizer.name: adamw8bit, whose state for the blocks takes a quarter",
                ) from None


def _scalar_like(value: Tensor | float, like: Tensor) -> Tensor:
    """The value as a scalar with the dtype and the device of `like`; a float is filled in on the device without waiting."""
    return value.to(like) if isinstance(value, Tensor) else torch.full_like(like, value)


def noise_scale(halves: HalfBatchStats, norm: float) -> float | None:
    """The gradient noise scale B_simple = tr(Σ)/|G|², a batch size in tokens (or pairs) at which the noise of the gradient is
    as large as the gradient, from the norms at two batch sizes (McCandlish et al. 2018, eq. A.1–A.2). The value of one step is
    very noisy: average many. None if it is not positive."""
    small, large = halves.weights[0], sum(halves.weights)
    squared, squared_small = norm**2, float(halves.norm) ** 2
    signal = (large * squared - small * squared_small) / (large - small)
    noise = (squared_small - squared) / (1 / small - 1 / large)
    if signal <= 0 or noise <= 0 or not math.isfinite(noise):
        return None
    return noise / signal
