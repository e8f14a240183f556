"""The sections of a recipe by subject."""
