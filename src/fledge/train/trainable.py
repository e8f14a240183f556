"""What is trained and all that training keeps of it: one place that can be copied, saved and put back."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fledge.checkpoint.checkpoint import Snapshot, TrainState, load_optimizer_state, to_cpu_copy
from fledge.distributed.context import DistributedContext
from fledge.distributed.fsdp import full_state_dict, load_full_state_dict, shard, stage_to_cpu
from fledge.model.loading import load_model
from fledge.model.protocol import LanguageModel
from fledge.optim.build import build_optimizers, optimizer_tensors, restore_optimizers
from fledge.optim.ema import COUNT, EMA, PREFIX
from fledge.optim.grad_scaler import GradScaler
from fledge.recipe.schema import StageBase


class TrainableModel:
    """Weights, the state of their optimizers, their average, and the loss scale of fp16; on every rank the same, or, where
    the model is `divided`, each rank's part of it."""

    def __init__(
        self,
        model: LanguageModel,
        stage: StageBase,
        steps: int,
        device: torch.device,
        precision: str,
        ranks: DistributedContext | None = None,
        divided: bool = False,
    ) -> None:
        self.model, self.device, self.divided = model, device, divided
        self.ranks = ranks or DistributedContext()
        if divided:
            shard(model, self.ranks)
        self.optimizers = build_optimizers(model, stage.optimizer)
        self.average = EMA(model, stage.ema, steps) if stage.ema.decay else None
        self.scale = GradScaler(device) if precision == "fp16" else None

    def update_ema(self, step: int) -> None:
        """Take the weights after step number `step` (from 0) into the average."""
        if self.average is not None:
            self.average.update(self.model, step)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with its averaged weights, where they are averaged."""
        with self.average.swapped_in(self.model) if self.average is not None else nullcontext():
            yield

    def full_model(self) -> LanguageModel | None:
        """The model as one rank by itself can ask it; None on ranks that do not get it. Where the model is divided, all must
        call this, and the first rank gets a copy with the weights of now."""
        if not self.divided:
            return self.model
        weights = full_state_dict(self.model, keep=self.ranks.is_main_process)
        if not self.ranks.is_main_process:
            return None
        return self.model.with_weights(weights)

    def snapshot(self, state: TrainState) -> Snapshot:
        """A copy of everything in main memory: of weights on the first rank, of the rest there or, divided, on each."""
        if self.scale is not None:
            state.grad_scaler = self.scale.state()
        first = self.ranks.is_main_process
        if not (first or self.divided):
            return Snapshot(replace(state), {}, {})
        models = {"model": self._weights()}
        tensors = optimizer_tensors(self.model, self.optimizers)
        if self.average is not None:
            tensors |= self.average.tensors()
            with self.averaged():
                models["averaged"] = self._weights()
        return Snapshot(replace(state), models, stage_to_cpu(tensors) if self.divided else to_cpu_copy(tensors), self.divided)

    def _weights(self) -> dict[str, Tensor]:
        return (
            full_state_dict(self.model, keep=self.ranks.is_main_process)
            if self.divided
            else to_cpu_copy(self.model.state_dict())
        )

    def restore(self, path: Path, state: TrainState) -> None:
        """Put back what a checkpoint holds, by however many ranks it was saved. FledgeError where it is of another model."""
        load_full_state_dict(self.model, load_model(path / "model", self.model.implementation).state_dict())
        like = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        tensors = load_optimizer_state(path, like if self.divided else None)
        if self.average is not None:
            saved = [name for name in tensors if name.startswith((PREFIX, COUNT))]
            self.average.restore({name: tensors.pop(name) for name in saved}, self.device)
        restore_optimizers(self.model, self.optimizers, tensors)
        if self.scale is not None:
            self.scale.restore(state.grad_scaler)
