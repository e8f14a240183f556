"""The parts of a recipe, by what they are about."""
