"""The rows that probably caused a bad update: the rows with the highest losses."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fledge.data import Batch
from fledge.distributed.context import DistributedContext
from fledge.distributed.fsdp import reshard_after
from fledge.model.eager import force_eager
from fledge.model.linear_cross_entropy import token_logps_and_correct
from fledge.model.protocol import LanguageModel, eval_mode
from fledge.objective import Objective, RewardObjective
from fledge.training.batch_source import StepBatch

MAX_ROWS = 5


@torch.no_grad()
def highest_loss_rows(
    model: LanguageModel,
    objective: Objective,
    batch: StepBatch,
    locate: Callable[[int], str],
    device: torch.device,
    ranks: DistributedContext,
) -> list[dict[str, Any]]:
    """The MAX_ROWS examples of a step batch with the highest losses, as mappings: `where` (FILE:LINE, from `locate`) and `loss`
    (nats per target, or per pair of a reward model; None for a loss that is not finite, which counts as highest). The
    losses are computed with the current weights, without dropout. Collective."""
    losses: list[tuple[float, int]] = []
    with force_eager(), eval_mode(model), reshard_after(model):
        for number in range(batch.num_micro_steps):
            if number < len(batch.batches):
                losses += example_losses(model, objective, batch.batches[number].to(device))
            elif batch.padding_batch is not None:
                example_losses(model, objective, batch.padding_batch.to(device))
    gathered = [tuple(item) for of_rank in ranks.all_gather_object(_highest(losses)) for item in of_rank]
    return [
        {"where": locate(int(example)), "loss": None if loss is None else round(loss, 4)}
        for loss, example in _highest([(torch.inf if loss is None else loss, example) for loss, example in gathered])
    ]


def _highest(losses: list[tuple[float, int]]) -> list[tuple[float | None, int]]:
    """The highest (loss, example); None for an infinite loss, which JSON cannot hold."""
    highest = sorted(losses, key=lambda item: -item[0])[:MAX_ROWS]
    return [(None if loss == torch.inf else loss, example) for loss, example in highest]


def example_losses(model: LanguageModel, objective: Objective, batch: Batch) -> list[tuple[float, int]]:
    """(mean loss, index) of each example; an infinite loss for one that is not finite."""
    losses = objective.pair_losses(model, batch)[0] if isinstance(objective, RewardObjective) else _token_losses(model, batch)
    finite = torch.where(losses.isfinite(), losses, torch.inf)
    return list(zip(finite.tolist(), batch.examples, strict=True))


def _token_losses(model: LanguageModel, batch: Batch) -> Tensor:
    """The mean loss [examples] of the targets of each example."""
    hidden = model(*batch.model_inputs).flatten(0, 1)
    index = batch.target_index
    logps, _ = token_logps_and_correct(hidden, model.lm_head_weight, batch.targets.flatten()[index], index)
    owner = batch.sequence_ids.flatten()[index] // batch.sequences_per_example
    sums = torch.zeros(len(batch.examples), device=logps.device).index_add(0, owner, -logps.float())
    counts = torch.zeros_like(sums).index_add(0, owner, torch.ones_like(sums[owner]))
    return sums / counts.clamp(min=1)
