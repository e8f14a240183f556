"""The objective of a stage: one table, by the kind of the stage."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fledge.data import PackedDataset
from fledge.model.linear_cross_entropy import LossKernel
from fledge.objective.base import Objective
from fledge.objective.language import CausalLMObjective
from fledge.objective.preference import DPOObjective, Reference
from fledge.recipe.schema import PreferenceStage, PretrainStage, SftStage


@dataclass(frozen=True, kw_only=True)
class ObjectiveContext:
    """What an objective may be built from.

    `data` are the packed examples of one `split` (training or validation) of the stage. `kernel` is the compiled part of the
    head, or None for the plain one. `token_bytes` [V] are the UTF-8 lengths of the tokens' texts, where they are fixed.
    `reference` gives the reference of the model for the examples of a split; it is None while the machine is measured, when
    there is no reference yet.
    """

    stage: PretrainStage | SftStage | PreferenceStage
    data: PackedDataset
    split: str
    kernel: LossKernel | None = None
    token_bytes: Tensor | None = None
    reference: Callable[[PackedDataset, str], Reference] | None = None


def build_causal_lm(context: ObjectiveContext) -> Objective:
    """Next-token prediction, for pretraining and supervised fine-tuning."""
    assert isinstance(context.stage, PretrainStage | SftStage)
    return CausalLMObjective(context.stage.label_smoothing, context.kernel, context.token_bytes)


def build_preference(context: ObjectiveContext) -> Objective:
    """The preference loss that the recipe names, against the reference of the context."""
    stage = context.stage
    assert isinstance(stage, PreferenceStage)
    return DPOObjective(
        loss_type=stage.loss_type,
        beta=stage.beta,
        label_smoothing=stage.label_smoothing,
        sft_loss_weight=stage.sft_loss_weight,
        reference=None if context.reference is None else context.reference(context.data, context.split),
        token_bytes=context.token_bytes,
    )


BUILDERS: dict[str, Callable[[ObjectiveContext], Objective]] = {
    "pretrain": build_causal_lm,
    "sft": build_causal_lm,
    "preference": build_preference,
}


def build_objective(context: ObjectiveContext) -> Objective:
    """The objective of a stage."""
    return BUILDERS[context.stage.kind](context)
