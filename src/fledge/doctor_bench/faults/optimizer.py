"""Faults of an update: how gradients are summed and applied, what is trained, numbers that overflow, a state that is lost."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fledge.data import Batch
from fledge.doctor_bench.condition import Fault, together, wrapping
from fledge.doctor_bench.setup import RunSetup
from fledge.model.protocol import LanguageModel
from fledge.objective.base import LossOutput
from fledge.objective.language import CausalLMObjective
from fledge.optim.grad_scaler import GradScaler
from fledge.training import trainable
from fledge.training.batch_source import StepBatch
from fledge.training.train_step import TrainStep
from fledge.training.trainable import TrainableModel

# -- accumulation -------------------------------------------------------------------------------------------------------


def _single_rows(setup: RunSetup, amount: Any) -> None:
    """As many rows in an update, one at a time: rows with few targets then count as much as rows with many."""
    rows = setup.stage["batch"]["micro_batch_size"] * setup.stage["batch"]["gradient_accumulation_steps"]
    setup.set("batch", micro_batch_size=1, gradient_accumulation_steps=rows)


def _means_of_means(setup: RunSetup, is_divided: bool) -> AbstractContextManager[None]:
    """The loss of each micro-batch is divided by its own weight; `is_divided`: and by their number."""

    def make(original: Callable[..., LossOutput]) -> Callable[..., LossOutput]:
        def changed(
            self: TrainStep, objective: Any, batch: StepBatch, number: int, micro: Batch, timer: Any, **more: Any
        ) -> Any:
            own = objective.normalizer(micro) * (len(batch.batches) if is_divided else 1)
            return original(self, objective, replace(batch, normalizer=max(own, 1e-9)), number, micro, timer, **more)

        return changed

    return wrapping(TrainStep, "_forward_backward", make)


def _logged_sum(setup: RunSetup, amount: Any) -> AbstractContextManager[None]:
    """The logged loss is the sum over micro-batches of their means."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def changed(self: TrainStep, batch: StepBatch, outputs: list[LossOutput]) -> Any:
            loss, *rest = original(self, batch, outputs)
            return loss * len(outputs), *rest

        return changed

    return wrapping(TrainStep, "_reduce", make)


# -- what is trained ----------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[str], bool]] = {
    "a block": lambda name: ".0." in name,
    "the blocks": lambda name: "layers." in name,
    "feed-forward": lambda name: ".mlp." in name,
    "embedding": lambda name: "embed_tokens" in name,
}


def _not_in_optimizer(setup: RunSetup, part: str) -> AbstractContextManager[None]:
    """Tensors of a part of the model are in no optimizer."""

    def make(original: Callable[..., list[torch.optim.Optimizer]]) -> Callable[..., list[torch.optim.Optimizer]]:
        def changed(model: LanguageModel, config: Any) -> list[torch.optim.Optimizer]:
            left_out = {id(tensor) for name, tensor in model.named_parameters() if PARTS[part](name)}
            optimizers = original(model, config)
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["params"] = [tensor for tensor in group["params"] if id(tensor) not in left_out]
            return optimizers

        return changed

    return wrapping(trainable, "build_optimizers", make)


def _frozen(setup: RunSetup, part: str) -> AbstractContextManager[None]:
    """Tensors of a part of the model do not require a gradient."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def changed(model: LanguageModel, config: Any) -> Any:
            for name, tensor in model.named_parameters():
                if PARTS[part](name):
                    tensor.requires_grad_(False)
            return original(model, config)

        return changed

    return wrapping(trainable, "build_optimizers", make)


def _base_drifts(setup: RunSetup, share: float) -> AbstractContextManager[None]:
    """The frozen weights beside an adapter shrink by a share in each update, and are not saved."""

    def make(original: Callable[..., None]) -> Callable[..., None]:
        @torch.no_grad()
        def changed(self: TrainStep, *arguments: Any) -> None:
            original(self, *arguments)
            for tensor in self.model.parameters():
                if not tensor.requires_grad:
                    tensor.mul_(1 - share)

        return changed

    return wrapping(TrainStep, "_step_optimizers", make)


# -- numbers ------------------------------------------------------------------------------------------------------------


def _overflowing(setup: RunSetup, share: float) -> AbstractContextManager[None]:
    """Loss scaling as in fp16, where the gradients of a share of the updates overflow."""
    count = 0

    def with_scaler(original: Callable[..., None]) -> Callable[..., None]:
        def changed(self: TrainableModel, *arguments: Any, **more: Any) -> None:
            original(self, *arguments, **more)
            self.grad_scaler = GradScaler(self.device)

        return changed

    def with_overflow(original: Callable[..., Any]) -> Callable[..., Any]:
        def changed(self: TrainStep, *arguments: Any) -> Any:
            nonlocal count
            count += 1
            if int(count * share) > int((count - 1) * share):
                for tensor in self.model.parameters():
                    if tensor.grad is not None:
                        tensor.grad.fill_(float("inf"))
                        break
            return original(self, *arguments)

        return changed

    scaler, overflow = wrapping(TrainableModel, "__init__", with_scaler), wrapping(TrainStep, "_step", with_overflow)
    return together(scaler, overflow)


def _not_finite(setup: RunSetup, share: float) -> AbstractContextManager[None]:
    """From a share of the steps on, each loss is NaN."""
    count, first = 0, share * setup.steps * setup.stage["batch"]["gradient_accumulation_steps"]

    def make(original: Callable[..., LossOutput]) -> Callable[..., LossOutput]:
        def changed(self: CausalLMObjective, model: LanguageModel, batch: Batch) -> LossOutput:
            nonlocal count
            count += 1
            output = original(self, model, batch)
            return replace(output, loss=output.loss * float("nan")) if count > first else output

        return changed

    return wrapping(CausalLMObjective, "__call__", make)


def _state_lost(setup: RunSetup, amount: Any) -> AbstractContextManager[None]:
    """A resumed run begins with empty optimizer states."""

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def changed(model: LanguageModel, optimizers: Sequence[Any], tensors: dict[str, Tensor]) -> None:
            original(model, list(optimizers), {})

        return changed

    return wrapping(trainable, "restore_optimizers", make)


FAULTS = (
    Fault(
        name="accumulation is a mean of means", category="targets", shapes=("sft",), levels={"": True}, prepare=_single_rows,
        patch=_means_of_means, is_silent=True,
    ),
    Fault(
        name="accumulation is not divided", category="targets", shapes=("pretrain", "sft"), levels={"": False},
        prepare=_single_rows, patch=_means_of_means, is_silent=True,
    ),
    Fault(
        name="logged loss is summed", category="evaluation", shapes=("pretrain", "sft"), levels={"": None},
        patch=_logged_sum, is_silent=True, yardstick="always",
    ),
    Fault(
        name="parameters not in the optimizer", category="model", shapes=("pretrain", "sft", "reward"),
        levels={"a block": "a block", "the blocks": "the blocks"}, patch=_not_in_optimizer, is_silent=True,
    ),
    Fault(
        name="parameters frozen", category="model", shapes=("pretrain", "sft"),
        levels={"feed-forward": "feed-forward", "the blocks": "the blocks"}, patch=_frozen, is_silent=True,
    ),
    Fault(
        name="frozen weights change", category="model", shapes=("lora",), levels={"0.1%": 1e-3, "1%": 1e-2},
        patch=_base_drifts, is_silent=True,
    ),
    Fault(
        name="loss scale dies", category="precision", shapes=("pretrain", "sft"), levels={"60%": 0.6, "97%": 0.97},
        patch=_overflowing,
    ),
    Fault(
        name="loss not finite", category="precision", shapes=("pretrain", "sft", "seq2seq"), levels={"late": 0.6, "early": 0.1},
        patch=_not_finite,
    ),
    Fault(
        name="optimizer state lost at resume", category="machine", shapes=("pretrain", "sft"), levels={"": None},
        patch=_state_lost, is_resumed=True,
    ),
)  # fmt: skip
