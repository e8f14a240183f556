"""A small bilingual closed world, generated from a seed: texts, conversations, preference pairs and scored questions."""

from fledge.world.builder import build, load_questions, make_world
from fledge.world.records import Question, Sizes
from fledge.world.scoring import correct, correct_content, habits

__all__ = ["Question", "Sizes", "build", "correct", "correct_content", "habits", "load_questions", "make_world"]
