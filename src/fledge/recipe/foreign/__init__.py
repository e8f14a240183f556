"""Keys that are not fledge's, answered in its words: those of other trainers, and those that fledge had before."""

from fledge.recipe.foreign.explain import explain
from fledge.recipe.foreign.translate import translate
from fledge.recipe.foreign.wording import AnsweredKey, answer_lines

__all__ = ["AnsweredKey", "answer_lines", "explain", "translate"]
