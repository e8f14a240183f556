"""The model in training with all its state: weights, optimizer state, EMA, loss scale; with snapshot and restore."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fledge.checkpoint.checkpoint import load_optimizer_state
from fledge.checkpoint.state import Snapshot, TrainState, to_cpu_copy
from fledge.distributed.context import DistributedContext
from fledge.distributed.fsdp import full_state_dict, load_full_state_dict, shard, stage_to_cpu
from fledge.model.adapter_files import load_adapter_weights
from fledge.model.adapters import adapter_weights
from fledge.model.loading import load_model
from fledge.model.protocol import LanguageModel
from fledge.optim.build import build_optimizers, optimizer_tensors, restore_optimizers
from fledge.optim.ema import COUNT, EMA, PREFIX
from fledge.optim.grad_scaler import GradScaler
from fledge.recipe.schema import StageBase

SOURCE = "source."  # of the names of the tensors that a source of batches needs


def load_saved_weights(model: LanguageModel, folder: Path) -> None:
    """Copy the weights that a stage has saved into its model: all of them, or, since the base is frozen, those of its adapter.

    Raises FledgeError if they belong to another model.
    """
    if model.adapter is not None:
        load_adapter_weights(model, folder, finite=False)
    else:
        load_full_state_dict(model, load_model(folder, model.implementation, purpose="any", finite=False).state_dict())


class TrainableModel:
    """The model in training: weights, optimizer state, EMA, and the loss scale of fp16. Equal on every rank, or, if
    `is_sharded`, this rank's shards."""

    def __init__(
        self,
        model: LanguageModel,
        stage: StageBase,
        steps: int,
        device: torch.device,
        precision: str,
        *,
        ranks: DistributedContext | None = None,
        is_sharded: bool = False,
    ) -> None:
        """Shards the model among the ranks if `is_sharded`. `steps`: updates of the stage."""
        self.model, self.device, self.is_sharded = model, device, is_sharded
        self.ranks = ranks or DistributedContext()
        if is_sharded:
            shard(model, self.ranks)
        self.optimizers = build_optimizers(model, stage.optimizer)
        self.ema = EMA(model, stage.ema, steps) if stage.ema.decay else None
        self.grad_scaler = GradScaler(device) if precision == "fp16" else None
        self.source_tensors: dict[str, Tensor] = {}  # of the source of batches, saved with the rest

    def update_ema(self, step: int) -> None:
        """Add the weights after step `step` (from 0) to the average."""
        if self.ema is not None:
            self.ema.update(self.model, step)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """A context in which the model has its averaged weights, if the stage averages weights."""
        with self.ema.swapped_in(self.model) if self.ema is not None else nullcontext():
            yield

    def full_model(self) -> LanguageModel | None:
        """The model in a form that one rank can run alone. All ranks must call this if the model is sharded: the main process
        gets a copy with the current weights, the others get None."""
        if not self.is_sharded:
            return self.model
        weights = full_state_dict(self.model, keep=self.ranks.is_main_process)
        if not self.ranks.is_main_process:
            return None
        return self.model.with_weights(weights)

    def snapshot(self, state: TrainState) -> Snapshot:
        """A copy of the complete training state in main memory. The main process has the weights and the other tensors; if the
        model is sharded, each rank has its shards of the other tensors."""
        if self.grad_scaler is not None:
            state.grad_scaler = self.grad_scaler.state()
        if not (self.ranks.is_main_process or self.is_sharded):
            return Snapshot(replace(state), {}, {})
        models = {"model": self._weights()}
        tensors = optimizer_tensors(self.model, self.optimizers)
        tensors |= {f"{SOURCE}{name}": tensor for name, tensor in self.source_tensors.items()}
        if self.ema is not None:
            tensors |= self.ema.tensors()
            with self.averaged():
                models["averaged"] = self._weights()
        copied = stage_to_cpu(tensors) if self.is_sharded else to_cpu_copy(tensors)
        return Snapshot(replace(state), models, copied, self.is_sharded)

    def _weights(self) -> dict[str, Tensor]:
        if self.is_sharded:
            return full_state_dict(self.model, keep=self.ranks.is_main_process)
        return to_cpu_copy(self.model.state_dict() if self.model.adapter is None else adapter_weights(self.model))

    def restore(self, path: Path, state: TrainState) -> None:
        """Load a checkpoint, saved by any number of ranks. Raises FledgeError if it belongs to another model."""
        load_saved_weights(self.model, path / "model")
        like = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        tensors = load_optimizer_state(path, like if self.is_sharded else None)
        self.source_tensors = {
            name.removeprefix(SOURCE): tensors.pop(name) for name in list(tensors) if name.startswith(SOURCE)
        }
        if self.ema is not None:
            saved = [name for name in tensors if name.startswith((PREFIX, COUNT))]
            self.ema.restore({name: tensors.pop(name) for name in saved}, self.device)
        restore_optimizers(self.model, self.optimizers, tensors)
        if self.grad_scaler is not None:
            self.grad_scaler.restore(state.grad_scaler)
