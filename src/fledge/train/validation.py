"""Validation: loss, perplexity and token accuracy over a fixed set of packed rows."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fledge.data import Batch, PackedData
from fledge.model.decoder import Decoder
from fledge.objective import PreferenceObjective, evaluate_language
from fledge.train.machine import eagerly
from fledge.train.update import Abandoned


def validation_batches(data: PackedData, rows: int, micro: int) -> Iterator[Batch]:
    """The first `rows` packed rows, always the same ones."""
    count = min(rows, len(data.rows))
    for start in range(0, count, micro):
        yield data.assemble(list(range(start, min(start + micro, count))))


def _chosen_only(batch: Batch) -> Batch:
    """A preference batch with weight on the chosen answers alone."""
    chosen = (batch.sequences % 2 == 0) & (batch.sequences < batch.count)
    return replace(batch, weights=batch.weights * chosen, trained=None)


@torch.no_grad()
def validate(
    model: Decoder,
    data: PackedData,
    rows: int,
    micro: int,
    preference: PreferenceObjective | None = None,
    token_bytes: Tensor | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """`loss` (that of the stage's kind), `perplexity` and `token_accuracy` of what is supervised (for preferences: of
    the chosen answers), `tokens` it is measured on, and for preferences `rewards/…`. Dropout is off.

    With `token_bytes` [V], the length of each token's text in UTF-8, also `bits_per_byte`, which models with different
    tokenizers can be compared by: Σ nll / (ln 2 · Σ bytes). Raises Abandoned where somebody asks to stop."""
    was_training, device = model.training, model.embed_tokens.weight.device
    model.eval()
    language = {"nll": 0.0, "correct": 0.0, "weight": 0.0}
    sums: dict[str, float] = {}
    pairs, loss, size = 0.0, 0.0, 0.0
    sizes = None if token_bytes is None else token_bytes.to(device)
    with eagerly():
        for batch in validation_batches(data, rows, micro):
            if asked_to_stop():
                model.train(was_training)
                raise Abandoned
            batch = batch.to(device)
            if preference is not None:
                outcome = preference(model, batch)
                loss += float(outcome.loss)
                pairs += preference.weight(batch)
                for name, value in outcome.metrics.items():
                    sums[name] = sums.get(name, 0.0) + float(value)
                batch = _chosen_only(batch)
            for name, value in evaluate_language(model, batch).items():
                language[name] += value
            if sizes is not None:
                size += float((sizes[batch.targets] * batch.weights).sum(dtype=torch.float64))
    model.train(was_training)
    nll = language["nll"] / language["weight"]
    measured: dict[str, Any] = {
        "loss": loss / pairs if preference is not None else nll,
        "perplexity": math.exp(min(nll, 700.0)),
        "token_accuracy": language["correct"] / language["weight"],
        "tokens": int(language["weight"]),
    }
    if size:
        measured["bits_per_byte"] = language["nll"] / math.log(2) / size
    if preference is not None:
        measured["pairs"] = int(pairs)
        measured.update({name: value / pairs for name, value in sums.items()})
    return measured
