"""Preference pairs from a model's own answers: sample, rank, compare raters, and write the rows of a preference stage."""
