"""Validation: the metrics of a stage's objective over a fixed set of packed rows."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from fledge.data import Batch, PackedDataset
from fledge.distributed.context import DistributedContext
from fledge.distributed.fsdp import reshard_after
from fledge.errors import FledgeError
from fledge.metric_names import ANSWER_METRICS, METRIC_NAMES
from fledge.model.eager import force_eager
from fledge.model.protocol import LanguageModel, eval_mode
from fledge.objective import CausalLMObjective, Objective, Ratio
from fledge.objective.base import LENGTH_CORRELATION, read_numbers, with_derived
from fledge.objective.token_losses import TokenLosses
from fledge.training.batch_loader import on_device
from fledge.training.train_step import StopRequested

_SHORT = {
    "loss": "loss {:.4f}",
    "perplexity": "perplexity {:.4g}",
    "token_accuracy": "token accuracy {:.1%}",
    "rewards/accuracies": "pairs right {:.1%}",
    "length_baseline": "by length alone {:.1%}",
    "reward": "reward {:.3f}",
    "exact_match": "exact answers {:.1%}",
    "valid_json": "valid JSON {:.1%}",
    "f1": "F1 {:.1%}",
    "bleu": "BLEU-4 {:.2f}",
}
CONSOLE_METRICS = _SHORT | {  # in this order, where the objective has them
    name: f"{METRIC_NAMES[name].label} {METRIC_NAMES[name].format}" for name in ANSWER_METRICS if name not in _SHORT
}


@dataclass(frozen=True)
class ValidationSet:
    """Packed validation data, the objective that evaluates them, and the maximum number of packed rows to read. `probe`:
    further figures of the first batch, which may take gradients."""

    data: PackedDataset
    objective: Objective
    max_packed_rows: int
    probe: Callable[[LanguageModel, Batch], dict[str, float]] | None = None


def row_batches(data: PackedDataset, rows: int, micro_batch_rows: int) -> Iterator[Batch]:
    """Yield the first `rows` packed rows in their fixed order, `micro_batch_rows` at a time."""
    count = min(rows, len(data.layout))
    for start in range(0, count, micro_batch_rows):
        yield data.assemble(list(range(start, min(start + micro_batch_rows, count))))


def local_row_batches(
    data: PackedDataset, rows: int, micro_batch_rows: int, ranks: DistributedContext
) -> Iterator[tuple[Batch, bool]]:
    """Yield every `ranks.world_size`-th batch of `row_batches`, from number `ranks.rank` on, each with True. A rank with one
    batch fewer than others repeats the last batch of all with False: it keeps the ranks in step and is not counted."""
    count = min(rows, len(data.layout))
    starts = list(range(0, count, micro_batch_rows))
    for first in range(0, len(starts), ranks.world_size):
        number = first + ranks.rank
        start = starts[min(number, len(starts) - 1)]
        yield data.assemble(list(range(start, min(start + micro_batch_rows, count)))), number < len(starts)


@torch.no_grad()
def validate(
    model: LanguageModel,
    validation: ValidationSet,
    micro_batch_rows: int,
    asked_to_stop: Callable[[], bool] = lambda: False,
    ranks: DistributedContext | None = None,
    with_distribution: bool = False,
) -> dict[str, Any]:
    """The metrics of the objective, including `loss`, over all rows of the validation set, without dropout.
    `with_distribution`: with those of `TokenLosses` too, if the loss is that of next tokens.

    Several ranks share the batches and get equal figures. A metric whose denominator is 0 is left out. Raises StopRequested if
    `asked_to_stop` returns True before a batch, and FledgeError if the rows have no targets."""
    device, ranks = model.device, ranks or DistributedContext()
    sums: dict[str, Ratio] = {}
    token_losses: TokenLosses | None = None

    def batches() -> Iterator[tuple[Batch, bool]]:
        for batch, counts in local_row_batches(validation.data, validation.max_packed_rows, micro_batch_rows, ranks):
            if asked_to_stop():
                raise StopRequested
            yield on_device(batch, device), counts

    with force_eager(), eval_mode(model), reshard_after(model):
        objective = validation.objective.in_window(model, batches, ranks.all_reduce_sum)
        counted = objective
        if with_distribution and isinstance(objective, CausalLMObjective):
            token_losses = TokenLosses(validation.data, device)
            counted = objective.adding_to(token_losses)
        for batch, counts in batches():
            for name, ratio in (counted if counts else objective).evaluate(model, batch).items():
                sums[name] = sums.get(name, ratio.zeroed()) + (ratio if counts else ratio.zeroed())
    metrics = with_derived({name: ratio.value for name, ratio in _all_reduced(sums, ranks).items() if ratio.count})
    if math.isnan(metrics.get(LENGTH_CORRELATION, 0.0)):  # nothing varies, as before the first step
        del metrics[LENGTH_CORRELATION]
    if "loss" not in metrics:
        raise FledgeError("the validation rows have no targets to measure the loss on", where="data.validation")
    if token_losses is not None:
        metrics |= token_losses.summary(ranks.all_reduce_sum(token_losses.numbers()))
    if validation.probe is not None:
        with force_eager():
            first = next(row_batches(validation.data, validation.max_packed_rows, micro_batch_rows))
            metrics |= validation.probe(model, on_device(first, device))
    return metrics


def _all_reduced(sums: dict[str, Ratio], ranks: DistributedContext) -> dict[str, Ratio]:
    """The ratios summed over all ranks, in float64."""
    values = ranks.all_reduce_sum(read_numbers([value for ratio in sums.values() for value in (ratio.total, ratio.count)]))
    totals, counts = values[::2], values[1::2]
    return {
        name: replace(sums[name], total=total, count=count) for name, total, count in zip(sums, totals, counts, strict=True)
    }


def metrics_line(metrics: dict[str, float]) -> str:
    """The metrics of an evaluation as console text, such as "loss 2.3026, perplexity 10, token accuracy 40.0%"."""
    return ", ".join(text.format(metrics[name]) for name, text in CONSOLE_METRICS.items() if name in metrics)
