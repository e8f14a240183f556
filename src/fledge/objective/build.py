"""The objective of a stage: one table, by the kind of the stage."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from fledge.data import PackedDataset
from fledge.model.linear_cross_entropy import LossKernel
from fledge.objective.base import Objective
from fledge.objective.kto import KTOObjective
from fledge.objective.language import CausalLMObjective
from fledge.objective.policy import PolicyObjective
from fledge.objective.preference import DPOObjective, Reference
from fledge.objective.reward import RewardObjective
from fledge.recipe.schema import GrpoStage, KtoStage, PreferenceStage, PretrainStage, RewardStage, SftStage, StageBase

StageT = TypeVar("StageT", bound=StageBase, covariant=True)


@dataclass(frozen=True, kw_only=True)
class ObjectiveContext(Generic[StageT]):
    """The inputs from which the objective of a stage is built.

    `data`: the packed examples of one `split` (training or validation) of the stage. `kernel`: the compiled chunk of the
    cross-entropy; None: not compiled. `token_bytes` [V]: UTF-8 length of each token's text; None if the lengths are not fixed.
    `reference`: gives the reference model or its log-probabilities for the examples of a split; None while autotune measures,
    when there is no reference yet.
    """

    stage: StageT
    data: PackedDataset
    split: str
    kernel: LossKernel | None = None
    token_bytes: Tensor | None = None
    reference: Callable[[PackedDataset, str], Reference] | None = None


def build_causal_lm(context: ObjectiveContext[PretrainStage | SftStage]) -> Objective:
    """Next-token prediction, for pretraining and supervised fine-tuning."""
    return CausalLMObjective(context.stage.label_smoothing, context.kernel, context.token_bytes)


def build_preference(context: ObjectiveContext[PreferenceStage]) -> Objective:
    """The preference loss that the recipe names, against the reference of the context where it has one."""
    stage = context.stage
    return DPOObjective(
        loss_type=stage.loss_type,
        beta=stage.beta,
        label_smoothing=stage.label_smoothing,
        simpo_gamma=stage.simpo_gamma or 0.0,
        sft_loss_weight=stage.sft_loss_weight,
        reference=_reference(context) if stage.loss_keys.has_reference else None,
        token_bytes=context.token_bytes,
    )


def build_kto(context: ObjectiveContext[KtoStage]) -> Objective:
    """The KTO loss, against the reference of the context."""
    stage, labels = context.stage, context.data.examples.labels
    assert labels is not None
    return KTOObjective(
        beta=stage.beta,
        desirable_weight=stage.desirable_weight,
        undesirable_weight=stage.undesirable_weight,
        labels=torch.from_numpy(labels),
        reference=_reference(context),
        token_bytes=context.token_bytes,
    )


def build_reward(context: ObjectiveContext[RewardStage]) -> Objective:
    """The loss of a reward model on pairs."""
    margins = context.data.examples.margins
    assert margins is not None
    return RewardObjective(
        margins=torch.from_numpy(margins),
        pad=context.data.pad,
        center_rewards_coefficient=context.stage.center_rewards_coefficient,
    )


def build_policy(context: ObjectiveContext[GrpoStage]) -> Objective:
    """The clipped objective of drawn answers, with a reference where the recipe asks for a KL term."""
    stage = context.stage
    reference = _reference(context) if stage.beta else None
    assert not isinstance(reference, Tensor)  # a table has no log-probabilities of new answers
    return PolicyObjective(
        loss_type=stage.loss_type,
        epsilon=stage.epsilon,
        epsilon_high=stage.epsilon_high,
        beta=stage.beta,
        temperature=stage.rollout.temperature,
        max_new_tokens=stage.rollout.max_new_tokens,
        reference=reference,
        token_bytes=context.token_bytes,
    )


def _reference(context: ObjectiveContext[Any]) -> Reference | None:
    return None if context.reference is None else context.reference(context.data, context.split)


BUILDERS: dict[str, Callable[[ObjectiveContext[Any]], Objective]] = {
    "pretrain": build_causal_lm,
    "sft": build_causal_lm,
    "preference": build_preference,
    "kto": build_kto,
    "reward": build_reward,
    "grpo": build_policy,
}


def build_objective(context: ObjectiveContext[Any]) -> Objective:
    """Build the objective of the context's stage, by the kind of the stage."""
    return BUILDERS[context.stage.kind](context)
