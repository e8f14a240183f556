"""Validation: loss, perplexity and token accuracy over a fixed set of packed rows."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fledge.autotune.autotune import force_eager
from fledge.data import Batch, PackedDataset
from fledge.distributed.context import DistributedContext
from fledge.distributed.fsdp import reshard_after
from fledge.model.protocol import LanguageModel, eval_mode
from fledge.objective import DPOObjective, evaluate_language
from fledge.train.train_step import StopRequested

EVAL_SUMS: tuple[str, ...] = ("nll", "correct", "weight", "pairs", "loss", "bytes")


def validation_batches(data: PackedDataset, rows: int, micro: int) -> Iterator[Batch]:
    """The first `rows` packed rows, always the same ones."""
    count = min(rows, len(data.rows))
    for start in range(0, count, micro):
        yield data.assemble(list(range(start, min(start + micro, count))))


def shared_batches(data: PackedDataset, rows: int, micro: int, ranks: DistributedContext) -> Iterator[tuple[Batch, bool]]:
    """This rank's share of them: each `ranks.size`-th. All ranks get equally many; with each comes whether it counts."""
    batches = list(range(0, min(rows, len(data.rows)), micro))
    for first in range(0, len(batches), ranks.world_size):
        number = first + ranks.rank
        start = batches[min(number, len(batches) - 1)]
        yield data.assemble(list(range(start, min(start + micro, rows, len(data.rows))))), number < len(batches)


def _chosen_only(batch: Batch) -> Batch:
    """A preference batch with weight on the chosen answers alone."""
    chosen = (batch.sequence_ids % 2 == 0) & (batch.sequence_ids < batch.num_sequences)
    return replace(batch, loss_weights=batch.loss_weights * chosen, known_target_index=None)


@torch.no_grad()
def validate(
    model: LanguageModel,
    data: PackedDataset,
    rows: int,
    micro: int,
    preference: DPOObjective | None = None,
    token_bytes: Tensor | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
    ranks: DistributedContext | None = None,
) -> dict[str, Any]:
    """`loss` (that of the stage's kind), `perplexity` and `token_accuracy` of what is supervised (for preferences: of
    the chosen answers), `tokens` it is measured on, and for preferences `rewards/…`. Dropout is off.

    With `token_bytes` [V], the length of each token's text in UTF-8, also `bits_per_byte`, which models with different
    tokenizers can be compared by: Σ nll / (ln 2 · Σ bytes). Several ranks take batches in turn and give the same figures.
    Raises Abandoned where somebody asks to stop."""
    device, ranks = model.device, ranks or DistributedContext()
    sums = dict.fromkeys(EVAL_SUMS, 0.0)
    sizes = None if token_bytes is None else token_bytes.to(device)
    with force_eager(), eval_mode(model), reshard_after(model):
        for batch, counts in shared_batches(data, rows, micro, ranks):
            if asked_to_stop():
                raise StopRequested
            found = _measure(model, batch.to(device), preference, sizes)
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + (value if counts else 0.0)
    sums = dict(zip(sums, ranks.all_reduce_sum(list(sums.values())), strict=True))
    nll, pairs = sums["nll"] / sums["weight"], sums["pairs"]
    measured: dict[str, Any] = {
        "loss": sums["loss"] / pairs if preference is not None else nll,
        "perplexity": math.exp(min(nll, 700.0)),
        "token_accuracy": sums["correct"] / sums["weight"],
        "tokens": int(sums["weight"]),
    }
    if sums["bytes"]:
        measured["bits_per_byte"] = sums["nll"] / math.log(2) / sums["bytes"]
    if preference is not None:
        measured["pairs"] = int(pairs)
        measured.update({name: value / pairs for name, value in sums.items() if name not in EVAL_SUMS})
    return measured


def _measure(model: LanguageModel, batch: Batch, preference: DPOObjective | None, sizes: Tensor | None) -> dict[str, float]:
    """Sums over a batch."""
    sums = dict.fromkeys(EVAL_SUMS, 0.0)
    if preference is not None:
        outcome = preference(model, batch)
        sums |= {"loss": float(outcome.loss), "pairs": preference.normalizer(batch)}
        sums |= {name: float(value) for name, value in outcome.metrics.items()}
        batch = _chosen_only(batch)
    sums |= evaluate_language(model, batch)
    if sizes is not None:
        sums["bytes"] = float((sizes[batch.targets] * batch.loss_weights).sum(dtype=torch.float64))
    return sums
