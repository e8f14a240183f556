"""Which rows a step went wrong with."""

from collections.abc import Callable
from typing import Any

import torch

from fledge.autotune.autotune import force_eager
from fledge.data import Batch
from fledge.distributed.context import DistributedContext
from fledge.distributed.fsdp import reshard_after
from fledge.model.linear_cross_entropy import token_logps_and_correct
from fledge.model.protocol import LanguageModel, eval_mode
from fledge.train.batch_loader import StepBatch

MOST = 5


@torch.no_grad()
def highest_loss_rows(
    model: LanguageModel, window: StepBatch, where: Callable[[int], str], device: torch.device, ranks: DistributedContext
) -> list[dict[str, Any]]:
    """The examples of a window whose loss is not finite, or highest: `where` it stands, and its `loss` (nats a target,
    null where it is not finite). Measured with the weights as they are, without dropout; changes nothing."""
    found: list[tuple[float, int]] = []
    with force_eager(), eval_mode(model), reshard_after(model):
        for number in range(window.num_micro_steps):
            if number < len(window.batches):
                found += _losses(model, window.batches[number].to(device))
            elif window.padding_batch is not None:
                _losses(model, window.padding_batch.to(device))
    everywhere = [tuple(one) for part in ranks.all_gather_object(_worst(found)) for one in part]
    return [
        {"where": where(int(example)), "loss": None if loss is None else round(loss, 4)}
        for loss, example in _worst([(torch.inf if loss is None else loss, example) for loss, example in everywhere])
    ]


def _worst(found: list[tuple[float, int]]) -> list[tuple[float | None, int]]:
    """JSON has no word for infinity: null."""
    worst = sorted(found, key=lambda one: -one[0])[:MOST]
    return [(None if loss == torch.inf else loss, example) for loss, example in worst]


def _losses(model: LanguageModel, batch: Batch) -> list[tuple[float, int]]:
    """Mean loss and number of each example; infinite where it is not finite."""
    hidden = model(batch.input_ids, batch.position_ids, batch.documents).flatten(0, 1)
    keep = batch.target_index
    logps, _ = token_logps_and_correct(hidden, model.lm_head_weight, batch.targets.flatten()[keep], keep)
    owner = batch.sequence_ids.flatten()[keep] // (batch.num_sequences // len(batch.examples))
    sums = torch.zeros(len(batch.examples), device=logps.device).index_add(0, owner, -logps.float())
    counts = torch.zeros_like(sums).index_add(0, owner, torch.ones_like(sums[owner]))
    means = torch.where(sums.isfinite(), sums / counts.clamp(min=1), torch.inf)
    return list(zip(means.tolist(), batch.examples, strict=True))
