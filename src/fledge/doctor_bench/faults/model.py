"""Faults of the model: what attention sees, the head, adapters, experts, dropout where it does not belong."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledge.doctor_bench.condition import Fault, replaced, together
from fledge.doctor_bench.setup import RunSetup
from fledge.model import attention
from fledge.model.adapters import LoraLinear
from fledge.model.decoder import Decoder
from fledge.model.dropout import dropout
from fledge.model.moe import Router
from fledge.objective import language, preference
from fledge.training import validation

# -- attention ----------------------------------------------------------------------------------------------------------


def _sees_ahead(setup: RunSetup, ahead: int) -> AbstractContextManager[None]:
    """Attention sees so many later positions of the document."""

    def mask(documents: Tensor | None, start: int, stop: int, device: torch.device) -> Tensor:
        positions = torch.arange(stop, device=device)
        visible = positions[start:, None] + ahead >= positions[None, :]
        if documents is None:
            return visible
        return (visible & attention.sees(documents[:, start:stop, None], documents[:, None, :stop]))[:, None]

    return replaced(attention, "causal_document_mask", mask)


def _one_document(setup: RunSetup, amount: Any) -> AbstractContextManager[None]:
    """Packed documents see those before them."""

    def sees(queries: Tensor, keys: Tensor) -> Tensor:
        return (queries > 0) & (keys > 0) | (queries == keys)

    return replaced(attention, "sees", sees)


# -- head and adapter ---------------------------------------------------------------------------------------------------


def _head_is_a_copy(setup: RunSetup, amount: Any) -> AbstractContextManager[None]:
    """The head is a copy of the embedding, made when the model was, which nobody trains or saves."""

    def head(self: Decoder) -> Tensor:
        if "_head_copy" not in self.__dict__:
            object.__setattr__(self, "_head_copy", self.embed_tokens.weight.detach().clone())
        return self.__dict__["_head_copy"].to(self.embed_tokens.weight.device)

    return replaced(Decoder, "lm_head_weight", property(head))


def _untied(setup: RunSetup, amount: Any) -> None:
    setup.recipe["model"].pop("tie_word_embeddings", None)


def _adapter_is_stuck(setup: RunSetup, part: str) -> AbstractContextManager[None]:
    """The gradient of B does not arrive: in all layers, or in those of the feed-forward parts, which are wider."""

    def forward(self: LoraLinear, x: Tensor) -> Tensor:
        is_stuck = part == "all" or max(self.in_features, self.out_features) > 2 * min(self.in_features, self.out_features)
        drops = self.training and self.dropout > 0
        low = F.linear(dropout(x, self.dropout) if drops else x, self.lora_A.to(x.dtype))
        matrix = self.lora_B.detach() if is_stuck else self.lora_B
        return nn.Linear.forward(self, x) + F.linear(low, matrix.to(x.dtype)) * self.scaling

    return replaced(LoraLinear, "forward", forward)


# -- experts ------------------------------------------------------------------------------------------------------------


def _router(bend: Callable[[Tensor, int], Tensor]) -> AbstractContextManager[None]:
    """A context in which `bend` changes the logits [N, E] of routers; it is told how many experts a token passes through."""

    def forward(self: Router, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logits = bend(F.linear(x.float(), self.weight.float()), self.top_k)
        probabilities = logits.softmax(-1)
        bias = self.e_score_correction_bias
        scores = probabilities.detach() if bias is None else probabilities.detach() + bias
        chosen = scores.topk(self.top_k, dim=-1).indices
        weights = probabilities.gather(-1, chosen)
        return logits, probabilities, chosen, weights / weights.sum(-1, keepdim=True) if self.normalise else weights

    return replaced(Router, "forward", forward)


def _collapsed(setup: RunSetup, lead: float) -> AbstractContextManager[None]:
    """The first experts lead by so many nats."""

    def bend(logits: Tensor, chosen: int) -> Tensor:
        return logits + lead * (torch.arange(logits.shape[1], device=logits.device) < chosen)

    return _router(bend)


def _dead(setup: RunSetup, experts: int) -> AbstractContextManager[None]:
    """The last experts are never chosen."""

    def bend(logits: Tensor, chosen: int) -> Tensor:
        return logits - 40.0 * (torch.arange(logits.shape[1], device=logits.device) >= logits.shape[1] - experts)

    return _router(bend)


def _unbalanced(setup: RunSetup, amount: Any) -> None:
    setup.recipe["model"]["moe"] = {**setup.recipe["model"]["moe"], "router_aux_loss_coef": 0.0, "router_z_loss_coef": 0.0}


# -- dropout in evaluation ----------------------------------------------------------------------------------------------


def _evaluates_in_training_mode(setup: RunSetup, amount: Any) -> AbstractContextManager[None]:
    @contextmanager
    def training_mode(model: nn.Module) -> Iterator[None]:
        was_training = model.training
        model.train()
        try:
            yield
        finally:
            model.train(was_training)

    modules: tuple[ModuleType, ...] = (validation, language, preference)
    return together(*(replaced(module, "eval_mode", training_mode) for module in modules))


def _with_dropout(setup: RunSetup, share: float) -> None:
    if "adapter" in setup.stage:
        setup.stage["adapter"]["lora_dropout"] = share
    else:
        setup.recipe["model"]["dropout"] = share


FAULTS = (
    Fault(
        name="attention sees the future", category="model", shapes=("pretrain", "sft"), levels={"next": 1, "all": 1000},
        patch=_sees_ahead, is_silent=True,
    ),
    Fault(
        name="packed documents see each other", category="model", shapes=("sft", "dpo"), levels={"": None},
        patch=_one_document, is_silent=True,
    ),
    Fault(
        name="head not tied", category="model", shapes=("pretrain", "sft"), levels={"": None}, prepare=_untied,
        patch=_head_is_a_copy, is_silent=True,
    ),
    Fault(
        name="adapter never updates", category="model", shapes=("lora",), levels={"part": "part", "all": "all"},
        patch=_adapter_is_stuck, is_silent=True,
    ),
    Fault(
        name="experts collapsed", category="model", shapes=("moe",), levels={"3": 3.0, "12": 12.0}, prepare=_unbalanced,
        patch=_collapsed,
    ),
    Fault(name="experts dead", category="model", shapes=("moe",), levels={"1": 1, "2": 2}, patch=_dead),
    Fault(
        name="dropout in evaluation", category="evaluation", shapes=("pretrain", "lora"), levels={"0.1": 0.1, "0.4": 0.4},
        prepare=_with_dropout, patch=_evaluates_in_training_mode, is_silent=True, yardstick="logged evaluation",
    ),
)  # fmt: skip
