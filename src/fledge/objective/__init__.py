"""From a model and a batch to (loss sum, weight sum, metric sums): never means; the loop divides once."""

from fledge.objective.language import LanguageObjective, Outcome, evaluate_language
from fledge.objective.preference import PreferenceObjective, preference_loss, sequence_log_probabilities

__all__ = [
    "LanguageObjective",
    "Outcome",
    "PreferenceObjective",
    "evaluate_language",
    "preference_loss",
    "sequence_log_probabilities",
]
