"""The embedded default: a bilingual closed world, a model raised from nothing in minutes, and its answers graded."""

from fledge.quickstart.budget import Budget
from fledge.quickstart.recipe import make_recipe
from fledge.quickstart.run import quickstart

__all__ = ["Budget", "make_recipe", "quickstart"]
