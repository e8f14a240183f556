"""A small bilingual closed world, generated from a seed: texts, conversations, preferences, scored questions."""

from .builder import build, load_questions
from .records import Question, Sizes
from .scoring import correct, correct_content, habits

__all__ = ["Question", "Sizes", "build", "correct", "correct_content", "habits", "load_questions"]
