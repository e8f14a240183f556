"""Which rows a step went wrong with."""

from collections.abc import Callable
from typing import Any

import torch

from fledge.data import Batch
from fledge.model.decoder import Decoder, evaluating
from fledge.model.head import scores
from fledge.train.feed import Window
from fledge.train.machine import eagerly
from fledge.train.ranks import Ranks
from fledge.train.sharding import at_rest

MOST = 5


@torch.no_grad()
def suspects(
    model: Decoder, window: Window, where: Callable[[int], str], device: torch.device, ranks: Ranks
) -> list[dict[str, Any]]:
    """The examples of a window whose loss is not finite, or highest: `where` it stands, and its `loss` (nats a target,
    null where it is not finite). Measured with the weights as they are, without dropout; changes nothing."""
    found: list[tuple[float, int]] = []
    with eagerly(), evaluating(model), at_rest(model):
        for number in range(window.rounds):
            if number < len(window.batches):
                found += _losses(model, window.batches[number].to(device))
            elif window.idle is not None:
                _losses(model, window.idle.to(device))
    everywhere = [tuple(one) for part in ranks.gather(_worst(found)) for one in part]
    return [
        {"where": where(int(example)), "loss": None if loss is None else round(loss, 4)}
        for loss, example in _worst([(torch.inf if loss is None else loss, example) for loss, example in everywhere])
    ]


def _worst(found: list[tuple[float, int]]) -> list[tuple[float | None, int]]:
    """JSON has no word for infinity: null."""
    worst = sorted(found, key=lambda one: -one[0])[:MOST]
    return [(None if loss == torch.inf else loss, example) for loss, example in worst]


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
