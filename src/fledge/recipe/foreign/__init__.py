"""Answers to keys that a recipe does not have: keys of other trainers, and earlier names of fledge's own keys."""

from fledge.recipe.foreign.explain import explain
from fledge.recipe.foreign.translate import translate
from fledge.recipe.foreign.wording import AnsweredKey, answer_lines

__all__ = ["AnsweredKey", "answer_lines", "explain", "translate"]
