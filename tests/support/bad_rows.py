"""A row of the training data that makes the loss NaN."""

from typing import Any

import pytest
import torch

from fledge.data import Batch
from fledge.model.decoder import Decoder
from fledge.objective import CausalLMObjective, LossOutput
from fledge.training.train_step import TrainStep


def poison_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loss NaN for every batch that holds the first row of step 7 (of update 8)."""
    call, update, victim = CausalLMObjective.__call__, TrainStep.__call__, []

    def noting(updater: TrainStep, window: Any, *arguments: Any) -> Any:
        if window.step == 7 and not victim:
            victim.append(window.batches[0].input_ids[0].clone())
        return update(updater, window, *arguments)

    def bad(objective: CausalLMObjective, model: Decoder, batch: Batch) -> LossOutput:
        outcome = call(objective, model, batch)
        hit = bool(victim) and any(torch.equal(row, victim[0]) for row in batch.input_ids)
        return LossOutput(outcome.loss * float("nan")) if hit else outcome

    monkeypatch.setattr(TrainStep, "__call__", noting)
    monkeypatch.setattr(CausalLMObjective, "__call__", bad)
