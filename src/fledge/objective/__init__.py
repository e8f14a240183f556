"""From a model and a batch to (loss sum, weight sum, metric sums): never means; the loop divides once."""

from fledge.objective.language import CausalLMObjective, LossOutput, evaluate_language
from fledge.objective.preference import DPOObjective, preference_loss, sequence_log_probabilities

__all__ = [
    "CausalLMObjective",
    "DPOObjective",
    "LossOutput",
    "evaluate_language",
    "preference_loss",
    "sequence_log_probabilities",
]
