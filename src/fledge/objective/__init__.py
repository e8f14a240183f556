"""Objectives: sums of losses and metrics of a model on a batch. An update adds the sums up and divides once."""

from fledge.objective.base import LossOutput, Objective, Ratio
from fledge.objective.build import BUILDERS, ObjectiveContext, build_objective
from fledge.objective.kto import KTOObjective
from fledge.objective.language import CausalLMObjective, target_metrics
from fledge.objective.policy import PolicyObjective
from fledge.objective.preference import DPOObjective, sequence_log_probabilities
from fledge.objective.preference_losses import PREFERENCE_LOSSES, LossParams, PairLogps
from fledge.objective.reward import RewardObjective

__all__ = [
    "BUILDERS",
    "PREFERENCE_LOSSES",
    "CausalLMObjective",
    "DPOObjective",
    "KTOObjective",
    "LossOutput",
    "LossParams",
    "Objective",
    "ObjectiveContext",
    "PairLogps",
    "PolicyObjective",
    "Ratio",
    "RewardObjective",
    "build_objective",
    "sequence_log_probabilities",
    "target_metrics",
]
