"""Whether training has diverged: the loss of earlier updates' rows, measured again with the current weights."""

import math
from collections.abc import Sequence

import torch

from fledge.distributed.context import DistributedContext
from fledge.distributed.fsdp import reshard_after
from fledge.model.eager import force_eager
from fledge.model.protocol import LanguageModel, eval_mode
from fledge.objective import Objective
from fledge.training.batch_source import StepBatch


@torch.no_grad()
def loss_now(
    model: LanguageModel, objective: Objective, batch: StepBatch, device: torch.device, ranks: DistributedContext
) -> float:
    """The loss of a step batch with the current weights, without dropout: the mean over the rows of all ranks. Collective."""
    total = count = 0.0
    with force_eager(), eval_mode(model), reshard_after(model):
        window = ((micro_batch.to(device), True) for micro_batch in batch.batches)
        objective = objective.in_window(model, lambda: window, ranks.all_reduce_sum)
        for number in range(batch.num_micro_steps):
            if number < len(batch.batches):
                ratio = objective.evaluate(model, batch.batches[number].to(device))["loss"]
                total, count = total + float(ratio.total), count + float(ratio.count)
            elif batch.padding_batch is not None:  # keeps the ranks in step; not counted
                objective.evaluate(model, batch.padding_batch.to(device))
    total, count = ranks.all_reduce_sum((total, count))
    return total / count


def has_risen(then: Sequence[float], now: Sequence[float], min_increase: float) -> bool:
    """Whether losses of the same rows have risen by more than `min_increase` on average, or are no longer finite."""
    difference = sum(now) / len(now) - sum(then) / len(then)
    return not math.isfinite(difference) or difference > min_increase
