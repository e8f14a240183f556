"""What is trained and all that training keeps of it: one place that can be copied, saved and put back."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from fledge.model.decoder import Decoder
from fledge.model.directory import load_model
from fledge.recipe.schema import StageBase
from fledge.train.averaging import COUNT, PREFIX, Average
from fledge.train.checkpoint import Snapshot, TrainState, copied, optimizer_file
from fledge.train.optimizer import build_optimizers, optimizer_tensors, restore_optimizers
from fledge.train.scaling import LossScale


class Learner:
    """Weights, the state of their optimizers, their average, and the loss scale of fp16."""

    def __init__(self, model: Decoder, stage: StageBase, steps: int, device: torch.device, precision: str) -> None:
        self.model, self.device = model, device
        self.optimizers = build_optimizers(model, stage.optimizer)
        self.average = Average(model, stage.averaging, steps) if stage.averaging.decay else None
        self.scale = LossScale(device) if precision == "fp16" else None

    def after_update(self, step: int) -> None:
        """Take the weights after step number `step` (from 0) into the average."""
        if self.average is not None:
            self.average.update(self.model, step)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with its averaged weights, where they are averaged."""
        with self.average.applied(self.model) if self.average is not None else nullcontext():
            yield

    def snapshot(self, state: TrainState) -> Snapshot:
        """A copy of everything in main memory."""
        models = {"model": copied(self.model.state_dict())}
        tensors = optimizer_tensors(self.model, self.optimizers)
        if self.average is not None:
            tensors |= self.average.tensors()
            with self.averaged():
                models["averaged"] = copied(self.model.state_dict())
        if self.scale is not None:
            state.scale = self.scale.state()
        return Snapshot(replace(state), models, copied(tensors))

    def restore(self, path: Path, state: TrainState) -> None:
        """Put back what a checkpoint holds. FledgeError where it is of another model."""
        self.model.load_state_dict(load_model(path / "model").state_dict())
        tensors = optimizer_file(path)
        if self.average is not None:
            saved = [name for name in tensors if name.startswith((PREFIX, COUNT))]
            self.average.restore({name: tensors.pop(name) for name in saved}, self.device)
        restore_optimizers(self.model, self.optimizers, tensors)
        if self.scale is not None:
            self.scale.restore(state.scale)
