"""Faults of the batches: targets that are not the next token, rows that are not shuffled, slow loading."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fledge.data import Batch
from fledge.data.dataset import packed_dataset, packing
from fledge.data.dataset.packed_dataset import PackedDataset
from fledge.doctor_bench.condition import Fault, replaced, together, wrapping
from fledge.doctor_bench.group_data import is_chinese
from fledge.doctor_bench.setup import Row, RunSetup, write_rows

LANGUAGE_SHAPES = ("pretrain", "sft", "lora", "moe", "seq2seq")


def _changed(change: Callable[[Batch], Batch]) -> AbstractContextManager[None]:
    """A context in which every batch of packed rows is changed before anybody sees it."""

    def make(original: Callable[..., Batch]) -> Callable[..., Batch]:
        return lambda self, chosen: change(original(self, chosen))

    return wrapping(PackedDataset, "_assemble", make)


def unshifted(batch: Batch) -> Batch:
    """The batch whose targets are its inputs."""
    return replace(batch, targets=batch.input_ids)


def shifted_twice(batch: Batch) -> Batch:
    """The batch whose targets are two tokens on; what leaves its document has no weight."""
    same = (batch.documents[:, 1:] == batch.documents[:, :-1]) & (batch.documents[:, 1:] > 0)
    targets, weights = batch.targets.clone(), torch.zeros_like(batch.loss_weights)
    targets[:, :-1] = torch.where(same, batch.targets[:, 1:], targets[:, :-1])
    weights[:, :-1] = torch.where(same, batch.loss_weights[:, 1:], weights[:, :-1])
    index = weights.flatten().nonzero(as_tuple=True)[0]
    return replace(batch, targets=targets, loss_weights=weights, known_target_index=index)


def _shift(setup: RunSetup, change: Callable[[Batch], Batch]) -> AbstractContextManager[None]:
    return _changed(change)


# -- order --------------------------------------------------------------------------------------------------------------


def length_of(row: Row) -> int:
    """Characters of a row."""
    return len(row["text"]) if "text" in row else sum(len(turn["content"]) for turn in row["messages"])


def _sort(setup: RunSetup, key: str) -> None:
    """Rows by their length, or one source of rows after the other."""
    if key == "length":
        setup.change_rows(lambda rows: sorted(rows, key=length_of))
        return
    parts = sources_of(setup.rows())
    for name, part in parts.items():
        write_rows(setup.folder / f"{name}.jsonl", part)
    setup.stage["data"]["train"] = [str(setup.folder / f"{name}.jsonl") for name in parts]


def sources_of(rows: list[Row]) -> dict[str, list[Row]]:
    """Two sources of rows: by their language where there are two, else by how their last text begins."""
    parts = {"first": [row for row in rows if is_chinese(row)], "second": [row for row in rows if not is_chinese(row)]}
    if all(parts.values()):
        return parts
    ordered = sorted(rows, key=lambda row: row["text"] if "text" in row else row["messages"][-1]["content"])
    return {"first": ordered[: len(rows) // 2], "second": ordered[len(rows) // 2 :]}


def _in_order(setup: RunSetup, amount: Any) -> AbstractContextManager[None]:
    """Rows are packed and read in the order of their file."""

    def in_order(count: int, *key: int) -> np.ndarray:
        return np.arange(count)

    return together(*(replaced(module, "permutation", in_order) for module in (packing, packed_dataset)))


FAULTS = (
    Fault(
        name="target not shifted", category="targets", shapes=("pretrain", "sft"), levels={"": unshifted}, patch=_shift,
        is_silent=True,
    ),
    Fault(
        name="target shifted twice", category="targets", shapes=("pretrain", "sft"), levels={"": shifted_twice}, patch=_shift,
        is_silent=True,
    ),
    Fault(
        name="not shuffled", category="data", shapes=("pretrain", "sft"), levels={"length": "length", "source": "source"},
        prepare=_sort, patch=_in_order,
    ),
)  # fmt: skip
