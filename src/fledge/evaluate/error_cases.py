"""The error cases of a stage: the validation rows with the highest losses, and the answers whose rules do not hold.

`eval/errors.jsonl` has one JSON object a line, grouped by kind: `loss` (by source, the worst first), then `rule` (by set and
group). Its size is bounded.
"""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fledge.data import Batch
from fledge.distributed.context import DistributedContext
from fledge.distributed.fsdp import reshard_after
from fledge.evaluate.records import SetResult
from fledge.model.eager import force_eager
from fledge.model.protocol import LanguageModel, eval_mode
from fledge.run.text_files import write_text
from fledge.tokenizer import Tokenizer
from fledge.training.bad_rows import example_losses
from fledge.training.batch_loader import on_device
from fledge.training.validation import ValidationSet, local_row_batches

MAX_WORST = 40  # validation rows
MAX_FAILING = 100  # answers of each set
MAX_TEXT = 2_000  # characters of a text
Case = dict[str, Any]


@dataclass(frozen=True)
class WorstRow:
    """A validation example: its mean loss in nats a target (infinite for one that is not finite), its number in the data, its
    tokens, and those of them that are targets."""

    loss: float
    example: int
    tokens: tuple[int, ...]
    targets: tuple[int, ...]


@torch.no_grad()
def worst_rows(
    model: LanguageModel, validation: ValidationSet, micro_batch_rows: int, ranks: DistributedContext
) -> list[WorstRow]:
    """The MAX_WORST validation examples with the highest losses, the worst first; equal on all ranks. Collective."""
    found: list[WorstRow] = []
    with force_eager(), eval_mode(model), reshard_after(model):
        for batch, counts in local_row_batches(validation.data, validation.max_packed_rows, micro_batch_rows, ranks):
            rows = _rows_of(model, validation, on_device(batch, model.device))
            found = _worst([*found, *rows]) if counts else found
    gathered = ranks.all_gather_object([_as_json(row) for row in found])
    return _worst(_from_json(values) for of_rank in gathered for values in of_rank)


def _as_json(row: WorstRow) -> list[Any]:
    """The row for the other ranks; JSON has no infinity."""
    return [row.loss if math.isfinite(row.loss) else None, row.example, row.tokens, row.targets]


def _from_json(values: list[Any]) -> WorstRow:
    loss, example, tokens, targets = values
    return WorstRow(math.inf if loss is None else loss, example, tuple(tokens), tuple(targets))


def _worst(rows: Iterable[WorstRow]) -> list[WorstRow]:
    return sorted(rows, key=lambda row: (-row.loss, row.example))[:MAX_WORST]


def _rows_of(model: LanguageModel, validation: ValidationSet, batch: Batch) -> list[WorstRow]:
    """The examples of a batch with the highest losses."""
    losses = sorted(
        ((loss, number) for number, (loss, _) in enumerate(example_losses(model, validation.objective, batch))),
        key=lambda item: -item[0],
    )[:MAX_WORST]
    owner = batch.sequence_ids // batch.sequences_per_example
    is_padding = batch.sequence_ids >= batch.num_sequences
    rows = []
    for loss, number in losses:
        own = (owner == number) & ~is_padding
        trained = own & (batch.loss_weights > 0)
        tokens = [*batch.input_ids[own].tolist(), *batch.targets[own][-1:].tolist()]  # the last one is only predicted
        targets = batch.targets[trained].tolist()
        rows.append(WorstRow(loss, batch.examples[number], tuple(tokens), tuple(targets)))
    return rows


def loss_cases(
    rows: Iterable[WorstRow], validation: ValidationSet, tokenizer: Tokenizer, locate: Callable[[int], str]
) -> list[Case]:
    """The cases of the rows, by source; `locate` gives the file and line of an example."""
    source_of, names = validation.data.examples.source, validation.data.sources
    return [
        {
            "kind": "loss",
            "group": "" if source_of is None else names[int(source_of[row.example])],
            "loss": round(row.loss, 4) if math.isfinite(row.loss) else None,
            "where": locate(row.example),
            "text": cut(tokenizer.decode(row.tokens)),
            "targets": cut(tokenizer.decode(row.targets)),
        }
        for row in rows
    ]


def rule_cases(results: Iterable[SetResult]) -> list[Case]:
    """The cases of items whose rules do not hold, at most MAX_FAILING of a set, by group."""
    cases: list[Case] = []
    for result in results:
        failing = sorted((item for item in result.items if item.failures), key=lambda item: item.group)
        cases += [
            {
                "kind": "rule",
                "group": f"{result.name}/{item.group}" if item.group else result.name,
                "failures": list(item.failures),
                "prompt": cut(item.prompt),
                "given": cut(item.given or ""),
                "expected": None if item.expected is None else cut(item.expected),
            }
            for item in failing[:MAX_FAILING]
        ]
    return cases


def write_error_cases(file: Path, cases: Iterable[Case]) -> None:
    """Write the cases, grouped by kind and group. Raises FledgeError or OSError when the disk refuses them."""
    ordered = sorted(cases, key=lambda case: (case["kind"], case["group"]))  # stable: the worst first inside a group
    lines = "".join(f"{json.dumps(case, ensure_ascii=False)}\n" for case in ordered)
    write_text(file, lines.encode("utf-8", errors="replace").decode("utf-8"))


def cut(text: str) -> str:
    """The text, or its beginning with the number of characters that are left out."""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT:,} characters more)"
