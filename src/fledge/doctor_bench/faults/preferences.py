"""Faults of stages on pairs: another loss, a wrong reference, extreme settings, pairs the wrong way round."""

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fledge.data import Batch
from fledge.doctor_bench.condition import Fault, replaced, together, wrapping
from fledge.doctor_bench.setup import Row, RunSetup
from fledge.model.protocol import LanguageModel
from fledge.objective.base import LossOutput
from fledge.objective.preference import DPOObjective, by_pair, sequence_logps_with_router_stats
from fledge.objective.preference_losses import PairLogps
from fledge.training import reference
from fledge.training.reference import ReferenceProvider


def _unchecked(*patches: AbstractContextManager[None]) -> AbstractContextManager[None]:
    """The patches in a trainer that does not compare the reference with the model before the first step."""
    return together(replaced(ReferenceProvider, "check", lambda self, objective, data: None), *patches)


def _cross_entropy(setup: RunSetup, amount: Any) -> AbstractContextManager[None]:
    """The loss is the cross-entropy of the chosen answers."""

    def make(original: Callable[..., tuple[LossOutput, PairLogps]]) -> Callable[..., tuple[LossOutput, PairLogps]]:
        def changed(self: DPOObjective, model: LanguageModel, batch: Batch) -> tuple[LossOutput, PairLogps]:
            output, logps = original(self, model, batch)
            return replace(output, loss=-logps.means[:, 0].sum()), logps

        return changed

    return _unchecked(wrapping(DPOObjective, "with_logps", make))


def _no_reference(setup: RunSetup, amount: Any) -> AbstractContextManager[None]:
    """The log-probabilities of the reference are 0."""

    def zeros(self: DPOObjective, batch: Batch) -> Tensor:
        return torch.zeros(len(batch.examples), 2, device=batch.input_ids.device)

    return _unchecked(replaced(DPOObjective, "reference_log_probabilities", zeros))


def _moving_reference(setup: RunSetup, amount: Any) -> AbstractContextManager[None]:
    """The reference is the policy itself at each step."""

    def make(original: Callable[..., tuple[LossOutput, PairLogps]]) -> Callable[..., tuple[LossOutput, PairLogps]]:
        def changed(self: DPOObjective, model: LanguageModel, batch: Batch) -> tuple[LossOutput, PairLogps]:
            with torch.no_grad():
                own = by_pair(sequence_logps_with_router_stats(model, batch)[0], batch).clone()
            numbers = torch.full((max(batch.examples, default=0) + 1, 2), float("nan"))
            numbers[list(batch.examples)] = own.cpu()
            return original(replace(self, reference=numbers.to(own.device)), model, batch)

        return changed

    return _unchecked(wrapping(DPOObjective, "with_logps", make))


def _wrong_reference(setup: RunSetup, nats: float) -> AbstractContextManager[None]:
    """The table of the reference is of other weights: sums of log-probabilities are off by about so many nats."""

    def make(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def changed(*arguments: Any) -> Tensor:
            table = original(*arguments)
            return table + nats * torch.randn(table.shape, generator=torch.Generator().manual_seed(3))

        return changed

    return _unchecked(wrapping(reference, "precompute_ref_log_probs", make))


def _beta(setup: RunSetup, beta: float) -> None:
    setup.stage["beta"] = beta


def _swapped(setup: RunSetup, share: float) -> None:
    """Chosen and rejected answers of a share of the pairs change places."""

    def change(rows: list[Row]) -> list[Row]:
        draw = random.Random(setup.seed)
        return [swapped(row) if draw.random() < share else row for row in rows]

    setup.change_rows(change, "train", "validation")


def swapped(row: Row) -> Row:
    """The pair, or the label of a single answer, the other way round."""
    if "label" in row:
        return {**row, "label": not row["label"]}
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


def _longer_is_chosen(setup: RunSetup, amount: Any) -> None:
    """The longer answer of each pair is the chosen one."""

    def change(rows: list[Row]) -> list[Row]:
        return [row if len(row["chosen"]) >= len(row["rejected"]) else swapped(row) for row in rows]

    setup.change_rows(change, "train", "validation")


def _contradicting(setup: RunSetup, share: float) -> None:
    """A share of the pairs stand there the other way round as well."""

    def change(rows: list[Row]) -> list[Row]:
        draw = random.Random(setup.seed)
        half = rows[: len(rows) // 2]
        both = [*half, *(swapped(row) if draw.random() < share else row for row in half)]
        draw.shuffle(both)
        return both

    setup.change_rows(change)


def _displaced(setup: RunSetup, factor: float) -> None:
    """A high rate and a weak pull to the reference: both answers become unlikely."""
    from fledge.doctor_bench.faults.rates import scale_rate

    scale_rate(setup, factor)
    setup.stage["beta"] = 0.02


def _fault(name: str, levels: dict[str, Any], **more: Any) -> Fault:
    return Fault(**{"name": name, "category": "preferences", "shapes": ("dpo",), "levels": levels, **more})


FAULTS = (
    _fault("cross-entropy instead of preferences", {"": None}, patch=_cross_entropy, is_silent=True),
    _fault("no reference", {"": None}, patch=_no_reference, is_silent=True),
    _fault("reference moves with the policy", {"": None}, patch=_moving_reference, is_silent=True),
    _fault("reference of other weights", {"2 nats": 2.0, "10 nats": 10.0}, patch=_wrong_reference, is_silent=True),
    _fault("beta far too small", {"1e-3": 1e-3, "1e-5": 1e-5}, prepare=_beta),
    _fault("beta far too large", {"5": 5.0, "50": 50.0}, prepare=_beta),
    _fault("pairs swapped", {"70%": 0.7, "all": 1.0}, prepare=_swapped, is_silent=True, shapes=("dpo", "reward", "kto")),
    _fault("longer answer always chosen", {"": None}, prepare=_longer_is_chosen, shapes=("dpo", "reward")),
    _fault("pairs contradict each other", {"half": 0.5, "all": 1.0}, prepare=_contradicting, shapes=("dpo", "reward")),
    _fault("likelihood displaced", {"4x": 4.0, "12x": 12.0}, prepare=_displaced),
)
