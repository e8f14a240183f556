"""Evaluation sets: files of items that models are asked, by kind, and what each kind measures."""

from fledge.evaluate.sets.base import EvaluationSet
from fledge.evaluate.sets.kinds import KINDS, guess_kind, load_set
from fledge.evaluate.sets.model import EvaluatedModel

__all__ = ["KINDS", "EvaluatedModel", "EvaluationSet", "guess_kind", "load_set"]
