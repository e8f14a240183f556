"""Which rows a step went wrong with."""

from collections.abc import Iterable
from typing import Any

import torch

from fledge.data import Batch
from fledge.model.decoder import Decoder, evaluating
from fledge.model.head import scores
from fledge.train.machine import eagerly

MOST = 5


@torch.no_grad()
def suspects(model: Decoder, batches: Iterable[Batch], where: Any, device: torch.device) -> list[dict[str, Any]]:
    """The examples of these batches whose loss is not finite, or highest: `where` it stands, and its `loss` (nats a target,
    null where it is not finite). Measured with the weights as they are, without dropout; changes nothing."""
    found: list[tuple[float, int]] = []
    with eagerly(), evaluating(model):
        for batch in batches:
            found += _losses(model, batch.to(device))
    worst = sorted(found, key=lambda one: -one[0])[:MOST]
    return [{"where": where(example), "loss": None if loss == torch.inf else round(loss, 4)} for loss, example in worst]


def _losses(model: Decoder, batch: Batch) -> list[tuple[float, int]]:
    """Mean loss and number of each example; infinite where it is not finite."""
    hidden = model(batch.tokens, batch.positions, batch.documents).flatten(0, 1)
    keep = batch.places
    logps, _ = scores(hidden, model.head_weight, batch.targets.flatten()[keep], keep)
    owner = batch.sequences.flatten()[keep] // (batch.count // len(batch.examples))
    sums = torch.zeros(len(batch.examples), device=logps.device).index_add(0, owner, -logps.float())
    counts = torch.zeros_like(sums).index_add(0, owner, torch.ones_like(sums[owner]))
    means = torch.where(sums.isfinite(), sums / counts.clamp(min=1), torch.inf)
    return list(zip(means.tolist(), batch.examples, strict=True))
